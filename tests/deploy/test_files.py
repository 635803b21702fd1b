"""The files of deploy/, against schemas and against each other. No engine or cluster is needed."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SECRETS = (
    *("SEIT_STORE_USER", "SEIT_STORE_PASSWORD"),
    *("SEIT_STORE_WRITER", "SEIT_STORE_WRITER_PASSWORD"),
    *("SEIT_STORE_READER", "SEIT_STORE_READER_PASSWORD"),
    "RAY_AUTH_TOKEN",
    "GRAFANA_PASSWORD",
)


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


def test_what_is_installed_stands_compiled() -> None:
    """Where Python may write no bytecode, each process would compile torch anew, for seconds."""
    assert Path(importlib.util.cache_from_source(torch.__file__)).exists()


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
    for name in SECRETS:
        uses = re.findall(r"\$\{" + name + r"\b([^}]*)\}", text)
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
    assert first.keys() == set(SECRETS)
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
    assert made.keys() == {*old, *SECRETS}
