"""The files of deploy/, against schemas and against each other. No engine or cluster is needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from tests.deploy.kuberay import KINDS, broken_rules

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SECRETS = (
    "SEIT_STORE_PASSWORD",
    "SEIT_STORE_WRITER_PASSWORD",
    "SEIT_STORE_READER_PASSWORD",
    "RAY_AUTH_TOKEN",
    "GRAFANA_PASSWORD",
)
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("ray*.yaml"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def entries(lock: Path) -> dict[str, list[str]]:
    """Each pinned requirement, as it is written, and its hashes."""
    found: dict[str, list[str]] = {}
    for line in lock.read_text().splitlines():
        if re.match(r"[a-z0-9]", line):
            found[line.removesuffix(" \\")] = []
        elif "--hash=" in line:
            found[next(reversed(found))].append(line.strip().removesuffix(" \\"))
    return found


def test_the_image_holds_what_the_lock_pins_and_no_tool_of_development() -> None:
    image, whole = entries(DEPLOY / "image.lock"), entries(ROOT / "requirements.lock")
    for requirement, hashes in image.items():
        assert hashes, f"{requirement} has no hash"
        assert whole[requirement] == hashes
    names = {requirement.partition("==")[0] for requirement in image}
    assert {"torch", "ray", "gcsfs", "s3fs"} <= names
    assert not names & {"pytest", "mypy", "ruff", "hypothesis", "moto"}


def test_the_launcher_file_fits_ray_s_own_schema() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    config = load(DEPLOY / "ray-cluster.aws.yaml")
    jsonschema.validate(config, schema)
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert sum(kind.get("min_workers", 0) for kind in types.values()) <= config["max_workers"]
    config["surprise"] = 1  # a schema that takes anything would prove nothing
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config, schema)


def test_the_image_holds_what_ray_s_launcher_runs_in_it() -> None:
    """rsync to copy by, ssh and the API of AWS to start nodes by, and `ray` in a login shell."""
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    _, image = dockerfile.split("FROM ${BASE}\n", 1)
    assert {"rsync", "openssh-client"} <= set(image.split())
    provider = Path(ray.__file__).parent / "autoscaler/_private/aws"
    asked = {
        name.partition(".")[0]
        for file in provider.glob("*.py")
        for name in re.findall(r"^(?:import|from) ([a-z0-9_.]+)", file.read_text(), re.MULTILINE)
    } - sys.stdlib_module_names
    assert "boto3" in asked
    pinned = {requirement.partition("==")[0] for requirement in entries(DEPLOY / "image.lock")}
    assert asked <= pinned
    (first,) = re.findall(r"PATH=([^: ]+):/usr/local/bin", image)
    (line,) = re.findall(r"echo '(.+)' > /etc/profile\.d/\w+\.sh", image)
    shell = f"PATH=/usr/bin; {line}; printf %s $PATH"  # as /etc/profile sets one, and reads others
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout == f"{first}:/usr/bin"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_fit_what_kuberay_reads(path: Path) -> None:
    manifest = load(path)
    jsonschema.validate(manifest, KINDS[manifest["kind"]])


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_misspelt_field_of_a_manifest_is_found(path: Path) -> None:
    """Every mapping of fields, with one more: the check has no hole where it would pass."""
    manifest = load(path)
    check = jsonschema.Draft202012Validator(KINDS[manifest["kind"]])
    for mapping in fields(manifest):
        mapping["surprise"] = "x"
        assert not check.is_valid(manifest)
        del mapping["surprise"]
    assert check.is_valid(manifest)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_keep_the_rules_that_the_operator_checks_besides(path: Path) -> None:
    manifest = load(path)
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


_FREE = ("labels", "nodeSelector", "rayStartParams", "requests", "limits", "data")


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
            if called not in _FREE:
                yield at
            waiting += [(value, key) for key, value in at.items()]
        elif isinstance(at, list):
            waiting += [(value, called) for value in at]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_pods_are_confined_and_what_they_mount_stands(path: Path) -> None:
    spec = load(path)["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    templates = [group["template"] for group in groups]
    if "rayClusterSpec" in spec:  # the operator would add a pod that is not confined
        templates.append(spec["submitterPodTemplate"])
    for pod in (template["spec"] for template in templates):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_ray_stops_spilling_before_a_kubelet_evicts_its_pod() -> None:
    settings = load(DEPLOY / "kubernetes/settings.yaml")["data"]
    assert all(isinstance(value, str) for value in settings.values())  # no other kind is taken
    (name,) = (name for name in settings if name.startswith("RAY_local_fs"))
    raylet = (Path(ray.__file__).parent / "core/src/ray/raylet/raylet").read_bytes()
    assert name.removeprefix("RAY_").encode() in raylet
    assert float(settings[name]) < 0.9


def test_the_job_and_the_standing_cluster_are_the_same_cluster() -> None:
    standing = load(DEPLOY / "kubernetes/raycluster.yaml")["spec"]
    assert load(DEPLOY / "kubernetes/rayjob.yaml")["spec"]["rayClusterSpec"] == standing


def test_manifests_name_the_ray_that_the_lock_pins() -> None:
    pinned = next(name for name in entries(DEPLOY / "image.lock") if name.startswith("ray=="))
    version = load(DEPLOY / "kubernetes/raycluster.yaml")["spec"]["rayVersion"]
    assert pinned == f"ray=={version}"


def services() -> dict[str, Any]:
    found: dict[str, Any] = load(ROOT / "docker-compose.yml")["services"]
    return found


def test_every_lasting_service_is_healthy_bounded_and_confined() -> None:
    once = {"store-volume", "bucket", "client"}
    for name, service in services().items():
        assert "mem_limit" in service, name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        if name not in once:
            assert service["healthcheck"]["test"], name
            assert service["restart"] == "unless-stopped", name
        if name != "store-volume":  # which gives the volume to a user that is not root
            assert service.get("user", "") != "0:0", name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name


def test_no_secret_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for name in ("SEIT_STORE_USER", *SECRETS):
        uses = re.findall(r"\$\{" + name + r"([^}]*)\}", text)
        assert uses, name
        assert all(use.startswith(":?") for use in uses), name


@pytest.fixture
def make_env(tmp_path: Path) -> Path:
    """The program, in a folder of its own; it writes `.env` two folders above itself."""
    (tmp_path / "deploy").mkdir()
    program = tmp_path / "deploy" / "make_env.py"
    program.write_text((DEPLOY / "make_env.py").read_text())
    return program


def made_by(program: Path) -> tuple[int, dict[str, str]]:
    """The exit code, and what `.env` says then."""
    done = subprocess.run([sys.executable, program], capture_output=True, text=True)
    lines = (program.parents[1] / ".env").read_text().split()
    assert len({line.partition("=")[0] for line in lines}) == len(lines)
    return done.returncode, dict(line.split("=", 1) for line in lines)


def test_make_env_writes_fresh_secrets_for_its_owner_alone(make_env: Path) -> None:
    code, first = made_by(make_env)
    assert code == 0
    env = make_env.parents[1] / ".env"
    assert env.stat().st_mode & 0o777 == 0o600
    assert first.keys() == {"SEIT_STORE_USER", *SECRETS}
    assert len(set(first.values())) == len(first)
    assert made_by(make_env) == (2, first)
    env.unlink()
    _, second = made_by(make_env)
    assert all(second[name] != first[name] for name in SECRETS)


def test_make_env_adds_what_a_file_of_before_lacks(make_env: Path) -> None:
    """A release that wants another secret would else have no way to it but new ones for all."""
    old = {"RAY_AUTH_TOKEN": "kept", "SEIT_CACHE_BYTES": "5G"}
    lines = "\n".join(f"{name}={value}" for name, value in old.items())
    (make_env.parents[1] / ".env").write_text(lines)  # without a line's end
    code, made = made_by(make_env)
    assert code == 0
    assert made.items() >= old.items()
    assert made.keys() == {*old, "SEIT_STORE_USER", *SECRETS}
