"""services/wire is what proto/ generates, file by file.

The generator formats what it writes by the pyproject.toml of the folder it is started in, so it
has to be started in the project's root.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = "pydantic_dataclasses,client_generation=none,server_generation=none"
REMEDY = (
    "python -m grpc_tools.protoc -Iproto --python_betterproto2_out=services/wire "
    f"--python_betterproto2_opt={OPTIONS} proto/seit/v1/*.proto"
)


def python_files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.py")}


def test_wire_is_generated_from_proto(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed: `pip install .[dev]`")
    schemas = sorted(
        path.relative_to(ROOT).as_posix() for path in (ROOT / "proto").rglob("*.proto")
    )
    arguments = ["-Iproto", f"--python_betterproto2_out={tmp_path}"]
    arguments += [f"--python_betterproto2_opt={OPTIONS}", *schemas]
    # protoc starts its plugin by name: the folder of this Python comes first.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    generated, present = python_files(tmp_path), python_files(ROOT / "services/wire")
    assert generated.keys() == present.keys()
    for name, text in generated.items():
        assert present[name] == text, f"services/wire/{name} is stale; in {ROOT} run: {REMEDY}"
