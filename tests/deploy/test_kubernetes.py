"""The manifests of deploy/kubernetes, against the definitions of what they make and each other."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from fastapi.testclient import TestClient

from services.settings import load_settings
from services.shards.store import open_store
from services.stats.access import new_token
from services.stats.app import create_app
from tests.deploy.kuberay import KINDS, broken_rules
from tests.deploy.test_files import DEPLOY, ROOT, entries

Manifest = dict[str, Any]


def documents(name: str) -> list[Manifest]:
    text = (DEPLOY / "kubernetes" / name).read_text()
    return [one for one in yaml.safe_load_all(text) if one]


SETTINGS = documents("settings.yaml")[0]["data"]
MANIFESTS = {
    f"{one['kind']} {one['metadata']['name']}": one
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    for one in documents(path.name)
    if one["kind"] != "ConfigMap"
}
RAY = {name: one for name, one in MANIFESTS.items() if one["kind"].startswith("Ray")}


@pytest.fixture(params=MANIFESTS)
def manifest(request: pytest.FixtureRequest) -> Manifest:
    return copy.deepcopy(MANIFESTS[request.param])


@pytest.fixture(params=RAY)
def ray_manifest(request: pytest.FixtureRequest) -> Manifest:
    return copy.deepcopy(RAY[request.param])


def test_manifests_fit_what_reads_them(manifest: Manifest) -> None:
    jsonschema.validate(manifest, KINDS[manifest["kind"]])


def test_a_misspelt_field_of_a_manifest_is_found(manifest: Manifest) -> None:
    """Every mapping of fields, with one more: the check has no hole where it would pass."""
    check = jsonschema.Draft202012Validator(KINDS[manifest["kind"]])
    for mapping in fields(manifest):
        mapping["surprise"] = "x"
        assert not check.is_valid(manifest)
        del mapping["surprise"]
    assert check.is_valid(manifest)


def test_manifests_keep_the_rules_that_the_operator_checks_besides(
    ray_manifest: Manifest,
) -> None:
    manifest = ray_manifest
    assert broken_rules(manifest) == []
    spec = manifest["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    cluster["rayVersion"] = "2.51.0"
    cluster["workerGroupSpecs"][0]["template"]["spec"]["restartPolicy"] = "Always"
    manifest["metadata"]["name"] = "Large"
    submitters = [spec["submitterPodTemplate"]] if spec is not cluster else []
    for template in submitters:
        del template["spec"]["restartPolicy"]
    assert len(broken_rules(manifest)) == 3 + len(submitters)


_FREE = ("labels", "nodeSelector", "rayStartParams", "requests", "limits", "matchLabels")


def fields(node: Any, name: str = "") -> Iterator[dict[str, Any]]:
    """All mappings whose keys are names of fields, not of a user's choice; each object once."""
    seen: set[int] = set()
    waiting = [(node, name)]
    while waiting:
        at, called = waiting.pop()
        if id(at) in seen:
            continue
        if isinstance(at, dict):
            seen.add(id(at))
            labels = called == "selector" and "matchLabels" not in at  # a Service's
            if called not in _FREE and not labels:
                yield at
            waiting += [(value, key) for key, value in at.items()]
        elif isinstance(at, list):
            waiting += [(value, called) for value in at]


def templates(manifest: Manifest) -> list[dict[str, Any]]:
    """The pods that a manifest makes; of a RayJob the submitter's, which would else be the
    operator's own, that is not confined."""
    spec = manifest["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    groups = [cluster[name] for name in ("headGroupSpec",) if name in cluster]
    found = [one["template"] for one in (*groups, *cluster.get("workerGroupSpecs", []))]
    found += [spec[name] for name in ("template", "submitterPodTemplate") if name in spec]
    return [one["spec"] for one in found]


PODS = [
    pytest.param(pod, id=f"{name} {number}")
    for name, one in MANIFESTS.items()
    for number, pod in enumerate(templates(one))
]


@pytest.mark.parametrize("pod", PODS)
def test_pods_are_confined_and_what_they_mount_stands(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for container in pod["containers"]:
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert container["resources"]["limits"].keys() >= {"cpu", "memory", "ephemeral-storage"}


def test_the_autoscaler_is_confined_and_writes_where_the_head_does(ray_manifest: Manifest) -> None:
    spec = ray_manifest["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    head = cluster["headGroupSpec"]["template"]["spec"]
    (container,) = head["containers"]
    options = cluster["autoscalerOptions"]
    assert options["securityContext"] == container["securityContext"]
    own = [mount for mount in container["volumeMounts"] if mount["name"] != "cache"]
    assert options["volumeMounts"] == own


@pytest.mark.parametrize("pod", PODS)
def test_programs_write_to_volumes_alone(pod: dict[str, Any]) -> None:
    """What is written is /tmp, for Ray its user's home, and the cache, where tokens are read."""
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    (home,) = re.findall(r"--home-dir (\S+)", dockerfile)
    (container,) = pod["containers"]
    wanted = {"/tmp"}
    if container["name"].startswith("ray-"):
        wanted.add(home)
    if container["name"] != "ray-job-submitter":
        wanted.add(SETTINGS["SEIT_CACHE_DIR"])
    writable = [one for one in container["volumeMounts"] if not one.get("readOnly")]
    assert {one["mountPath"] for one in writable} >= wanted


def number(quantity: str) -> int:
    """Bytes of a Kubernetes quantity."""
    count, unit = re.fullmatch(r"(\d+)(Gi|Mi)", quantity).groups()  # type: ignore[union-attr]
    return int(count) << {"Mi": 20, "Gi": 30}[unit]


@pytest.mark.parametrize("pod", PODS)
def test_the_cache_and_what_else_is_written_fit_the_disk_that_a_pod_asks_for(
    pod: dict[str, Any],
) -> None:
    """A kubelet counts no hostPath: what is asked for holds its place on the node all the same."""
    (container,) = pod["containers"]
    said = {**SETTINGS, **{one["name"]: one.get("value", "") for one in container.get("env", [])}}
    cache = load_settings({"SEIT_CACHE_BYTES": said["SEIT_CACHE_BYTES"]}).cache_bytes
    needed = 0
    for volume in pod["volumes"]:
        room = volume.get("emptyDir")
        if volume["name"] == "cache":
            assert room is None or number(room["sizeLimit"]) > cache
            needed += number(room["sizeLimit"]) if room else cache
        elif room is not None and room.get("medium") != "Memory":
            needed += number(room["sizeLimit"])
    disk = container["resources"]["requests"]["ephemeral-storage"]
    assert number(disk) > needed  # more: the container's log
    assert container["resources"]["limits"]["ephemeral-storage"] == disk


def test_groups_of_workers_keep_their_bounds(ray_manifest: Manifest) -> None:
    spec = ray_manifest["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_workers_tell_ray_before_their_pod_ends(ray_manifest: Manifest) -> None:
    """The command itself is run in tests/system/test_elastic.py."""
    told = 0
    for pod in templates(ray_manifest):
        for container in pod["containers"]:
            if "nvidia.com/gpu" not in container["resources"].get("limits", {}):
                continue
            said = " ".join(container["lifecycle"]["preStop"]["exec"]["command"])
            deadline, waits = re.findall(r"(?:-seconds|seq) (\d+)", said)
            # Time is left in it for Ray to be told, and for the pod to end.
            assert int(deadline) == int(waits) <= pod["terminationGracePeriodSeconds"] - 5
            told += 1
    assert told == 2


def test_the_stats_api_is_asked_what_it_answers(tmp_path: Path) -> None:
    """Probes, port, options and labels: those of the program, and of each other. Probes show no
    token; a store that is away makes the service unready, and restarts nothing."""
    deployment, service, budget = documents("stats.yaml")
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert budget["spec"]["minAvailable"] < deployment["spec"]["replicas"]
    (container,) = template["spec"]["containers"]
    (port,) = container["ports"]
    (served,) = service["spec"]["ports"]
    probes = {name: one["httpGet"] for name, one in container.items() if name.endswith("Probe")}
    assert {one["port"] for one in probes.values()} == {port["name"]} == {served["targetPort"]}
    new_token(tmp_path / "tokens", "somebody", ["read"])
    settings = load_settings({"SEIT_STATS_TOKENS": str(tmp_path / "tokens")})
    for root, unready in ((tmp_path, 200), (tmp_path / "tokens", 503)):  # a folder, and a file
        with TestClient(create_app(open_store(str(root)), settings, [])) as client:
            codes = {name: client.get(one["path"]).status_code for name, one in probes.items()}
        assert codes == {"startupProbe": 200, "livenessProbe": 200, "readinessProbe": unready}
    command = container["command"]
    assert command[command.index("--port") + 1] == str(port["containerPort"])
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["api"]
    spoken = [word for word in compose["command"].split() if word.startswith("--")]
    assert [word for word in command if word.startswith("--")] == spoken
    tokens = {one["name"]: one for one in container["env"]}["SEIT_STATS_TOKENS"]["value"]
    (mount,) = (one for one in container["volumeMounts"] if one["name"] == "tokens")
    assert tokens == f"{mount['mountPath']}/tokens"


def test_ray_stops_spilling_before_a_kubelet_evicts_its_pod() -> None:
    settings = SETTINGS
    assert all(isinstance(value, str) for value in settings.values())  # no other kind is taken
    (name,) = (name for name in settings if name.startswith("RAY_local_fs"))
    raylet = (Path(ray.__file__).parent / "core/src/ray/raylet/raylet").read_bytes()
    assert name.removeprefix("RAY_").encode() in raylet
    assert float(settings[name]) < 0.9


def test_the_job_and_the_standing_cluster_are_the_same_cluster() -> None:
    (standing,), (job,) = documents("raycluster.yaml"), documents("rayjob.yaml")
    assert job["spec"]["rayClusterSpec"] == standing["spec"]


def test_manifests_name_the_ray_that_the_lock_pins() -> None:
    pinned = next(name for name in entries(DEPLOY / "image.lock") if name.startswith("ray=="))
    version = documents("raycluster.yaml")[0]["spec"]["rayVersion"]
    assert pinned == f"ray=={version}"
