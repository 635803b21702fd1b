"""The part of KubeRay's and Kubernetes' resource definitions that our manifests use, as a schema.

Names, types, enumerations and required fields are those of KubeRay's ray.io/v1, compared one by one
with its types and reference of releases 1.4 to 1.7 (raycluster_types.go, rayjob_types.go); of
Deployments, Services, PodDisruptionBudgets and pods with the types of Kubernetes' Python client 37.
Where KubeRay leaves a field to chance (`entrypoint`), it is required here. Every object is closed:
a field that is not listed is an error, also where the real definition has it; whoever uses a new
one adds it here.

`broken_rules` are those that the operator checks beyond its schema (validation.go).
"""

from __future__ import annotations

import re
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
BOOL: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}


def closed(*required: str, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def listed(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


NAMED = closed("name", name=TEXT)
ENV_FROM = listed({**closed(configMapRef=NAMED, secretRef=NAMED), "maxProperties": 1})
QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY}
CONFINED = closed(
    allowPrivilegeEscalation=BOOL,
    readOnlyRootFilesystem=BOOL,
    capabilities=closed(drop=listed(TEXT), add=listed(TEXT)),
)
OF_A_SECRET = closed(secretKeyRef=closed("name", "key", name=TEXT, key=TEXT, optional=BOOL))
VARIABLE = closed("name", name=TEXT, value={"type": "string"}, valueFrom=OF_A_SECRET)
ENV = listed({**VARIABLE, "minProperties": 2, "maxProperties": 2})
MOUNTS = listed(closed("name", "mountPath", name=TEXT, mountPath=TEXT, readOnly=BOOL))
PORT: Schema = {"anyOf": [TEXT, {"type": "integer", "minimum": 1, "maximum": 65535}]}
PROBE = closed(
    *("httpGet",),
    httpGet=closed("port", path=TEXT, port=PORT),
    periodSeconds=COUNT,
    timeoutSeconds=COUNT,
    failureThreshold=COUNT,
)
SELECTOR = closed("matchLabels", matchLabels=TEXTS)
CONTAINER = closed(
    *("name", "image"),
    name=TEXT,
    image=TEXT,
    command=listed(TEXT),
    envFrom=ENV_FROM,
    env=ENV,
    ports=listed(closed("containerPort", name=TEXT, containerPort=COUNT)),
    lifecycle=closed(preStop=closed("exec", exec=closed("command", command=listed(TEXT)))),
    startupProbe=PROBE,
    livenessProbe=PROBE,
    readinessProbe=PROBE,
    resources=closed(requests=QUANTITIES, limits=QUANTITIES),
    securityContext=CONFINED,
    volumeMounts=MOUNTS,
)
VOLUME = {
    **closed(
        "name",
        name=TEXT,
        secret=closed("secretName", secretName=TEXT, optional=BOOL),
        emptyDir=closed(medium=one_of("", "Memory"), sizeLimit=QUANTITY),
        hostPath=closed(
            "path", path=TEXT, type=one_of("", "Directory", "DirectoryOrCreate", "File")
        ),
    ),
    "minProperties": 2,
    "maxProperties": 2,
}
TOLERATION = closed(
    key=TEXT,
    operator=one_of("Exists", "Equal"),
    value=TEXT,
    effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
)
POD = closed(
    "containers",
    serviceAccountName=TEXT,
    automountServiceAccountToken=BOOL,
    restartPolicy=one_of("Always", "OnFailure", "Never"),
    securityContext=closed(
        runAsUser=COUNT,
        runAsGroup=COUNT,
        fsGroup=COUNT,
        runAsNonRoot=BOOL,
        seccompProfile=closed("type", type=one_of("RuntimeDefault", "Unconfined", "Localhost")),
    ),
    nodeSelector=TEXTS,
    tolerations=listed(TOLERATION),
    topologySpreadConstraints=listed(
        closed(
            *("maxSkew", "topologyKey", "whenUnsatisfiable"),
            maxSkew=COUNT,
            topologyKey=TEXT,
            whenUnsatisfiable=one_of("DoNotSchedule", "ScheduleAnyway"),
            labelSelector=SELECTOR,
        )
    ),
    terminationGracePeriodSeconds=COUNT,
    containers=listed(CONTAINER),
    volumes=listed(VOLUME),
)
TEMPLATE = closed("spec", metadata=closed(labels=TEXTS, annotations=TEXTS), spec=POD)
CLUSTER = closed(
    "headGroupSpec",
    rayVersion=TEXT,
    enableInTreeAutoscaling=BOOL,
    authOptions=closed(mode=one_of("token", "disabled"), secretName=TEXT),  # 1.5.1; the name 1.6
    autoscalerOptions=closed(
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
        idleTimeoutSeconds=COUNT,
        securityContext=CONFINED,
        volumeMounts=MOUNTS,
    ),
    headGroupSpec=closed(
        *("rayStartParams", "template"),
        serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
        rayStartParams=TEXTS,
        template=TEMPLATE,
    ),
    workerGroupSpecs=listed(
        closed(
            *("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=TEMPLATE,
        )
    ),
)
JOB = closed(
    *("entrypoint", "rayClusterSpec"),
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode"),
    shutdownAfterJobFinishes=BOOL,
    ttlSecondsAfterFinished=COUNT,
    backoffLimit=COUNT,
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    rayClusterSpec=CLUSTER,
    submitterPodTemplate=TEMPLATE,
)


DEPLOYMENT = closed(
    *("selector", "template"),
    replicas=COUNT,
    selector=SELECTOR,
    strategy=closed(rollingUpdate=closed(maxUnavailable=COUNT, maxSurge=COUNT)),
    template=TEMPLATE,
)
SERVICE = closed(
    "ports",
    type=one_of("ClusterIP", "NodePort", "LoadBalancer"),
    selector=TEXTS,
    ports=listed(closed("port", name=TEXT, port=COUNT, targetPort=PORT)),
)
BUDGET = closed("selector", minAvailable=COUNT, selector=SELECTOR)


def resource(kind: str, spec: Schema, version: str = "ray.io/v1") -> Schema:
    """A whole manifest of a kind."""
    return closed(
        *("apiVersion", "kind", "metadata", "spec"),
        apiVersion=one_of(version),
        kind=one_of(kind),
        metadata=closed("name", name=TEXT, namespace=TEXT, labels=TEXTS),
        spec=spec,
    )


KINDS = {
    "RayCluster": resource("RayCluster", CLUSTER),
    "RayJob": resource("RayJob", JOB),
    "Deployment": resource("Deployment", DEPLOYMENT, "apps/v1"),
    "Service": resource("Service", SERVICE, "v1"),
    "PodDisruptionBudget": resource("PodDisruptionBudget", BUDGET, "policy/v1"),
}

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # a label of DNS, as RFC 1035 has it
_LONGEST = {"RayCluster": 63, "RayJob": 47}
_TOKEN_SINCE = (2, 52)


def broken_rules(manifest: dict[str, Any]) -> list[str]:
    """What the operator would refuse although the schema allows it."""
    kind, name, spec = manifest["kind"], manifest["metadata"]["name"], manifest["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    submitter = spec.get("submitterPodTemplate", {}).get("spec", {"restartPolicy": "Never"})
    version = tuple(int(part) for part in cluster.get("rayVersion", "0").split(".")[:2])
    token = cluster.get("authOptions", {}).get("mode") == "token"
    kept = {
        "the name is a label, and short": _NAME.fullmatch(name) and len(name) <= _LONGEST[kind],
        "tokens since Ray 2.52": not token or version >= _TOKEN_SINCE,
        "autoscaling replaces pods": not cluster.get("enableInTreeAutoscaling")
        or all(g["template"]["spec"].get("restartPolicy", "Never") == "Never" for g in groups),
        "labels are no start parameter": all("labels" not in g["rayStartParams"] for g in groups),
        "time to live of a cluster that is shut down": not spec.get("ttlSecondsAfterFinished")
        or spec.get("shutdownAfterJobFinishes"),
        "a Job's pod is not restarted": submitter.get("restartPolicy", "Always") != "Always",
        "no retries of a job by hand": spec.get("submissionMode") != "InteractiveMode"
        or not spec.get("backoffLimit"),
    }
    return [rule for rule, holds in kept.items() if not holds]
