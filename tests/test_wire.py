"""services/wire is what proto/ generates, file by file, and old messages keep their meaning.

wire_fields.txt records each field there ever was: `Message.name number label type`. JSON stands on
storage, by names, so a name is as lasting as a number. A field that goes is reserved by both, and
its line stays; a new one gets a line.

The generator formats what it writes by the pyproject.toml of the folder it is started in, so it
has to be started in the project's root.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import DescriptorProto

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


def messages(folder: Path) -> dict[str, DescriptorProto]:
    """The messages of all schemas, as protoc understands them."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed: `pip install .[dev]`")
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    schemas = [path.relative_to(ROOT).as_posix() for path in (ROOT / "proto").rglob("*.proto")]
    made = folder / "descriptors"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Iproto", f"--descriptor_set_out={made}"]
    subprocess.run([*command, *schemas], cwd=ROOT, check=True, timeout=120)
    found = FileDescriptorSet.FromString(made.read_bytes())
    return {one.name: one for file in found.file for one in file.message_type}


def lines_of(message: DescriptorProto) -> dict[str, str]:
    """Each field's line of the record, by its name in there."""
    lines = {}
    for field in message.field:
        kind = field.DESCRIPTOR.enum_types_by_name["Type"].values_by_number[field.type].name
        repeated = field.label == field.LABEL_REPEATED
        label = "repeated" if repeated else "optional" if field.proto3_optional else "single"
        what = field.type_name.rpartition(".")[2] or kind.removeprefix("TYPE_").lower()
        lines[f"{message.name}.{field.name}"] = f"{field.number} {label} {what}"
    return lines


def test_what_a_field_says_stays_what_it_said(tmp_path: Path) -> None:
    stands = messages(tmp_path)
    fields = {name: line for one in stands.values() for name, line in lines_of(one).items()}
    record = Path(__file__).with_name("wire_fields.txt").read_text().splitlines()
    recorded = dict(line.split(" ", 1) for line in record)
    assert len(recorded) == len(record)
    assert record == sorted(record)
    new = [f"{name} {fields[name]}" for name in fields.keys() - recorded.keys()]
    assert not new, f"add to tests/wire_fields.txt, in its order: {sorted(new)}"
    for full, said in recorded.items():
        if full in fields:
            assert fields[full] == said, f"{full}: old messages say {said}; give a new field a name"
            continue
        message, name = full.split(".")
        number = int(said.split()[0])
        assert message in stands, f"{message}: old messages of it stand; keep it, with its fields"
        numbers = [range(span.start, span.end) for span in stands[message].reserved_range]
        assert any(number in span for span in numbers), f"{full}: reserve the number {number}"
        assert name in stands[message].reserved_name, f"{full}: reserve the name {name!r}"
