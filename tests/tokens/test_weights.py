from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.errors import FormatError, NotFoundError
from services.tokens.weights import read_safetensors, read_torch, state_dict_of, to_safetensors


class Payload:
    """An object whose unpickling would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


def test_missing_files() -> None:
    for read in (read_safetensors, read_torch):
        with pytest.raises(NotFoundError, match="nowhere"):
            read(Path("/nowhere/at.all"))


def test_a_pickled_object_is_refused_and_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "model.pt"
    torch.save({"state_dict": {}, "model": Payload(trace)}, path)
    with pytest.raises(FormatError, match=r"state_dict.*OUT"):
        read_torch(path)
    assert not trace.exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "module.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(FormatError, match="refused"):
        read_torch(path)


@pytest.mark.parametrize("keep", [0, 1, 100, 700])
def test_truncated_files(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.pt"
    torch.save({"weight": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"cut\.pt"):
        read_torch(path)
    with pytest.raises(FormatError, match=r"cut\.pt"):
        read_safetensors(path)


def test_state_dict_of_a_checkpoint() -> None:
    tensor = torch.ones(2)
    assert state_dict_of({"state_dict": {"a": tensor}, "epoch": 3}, "x") == {"a": tensor}
    assert state_dict_of({"a": tensor, "epoch": 3}, "x") == {"a": tensor}
    with pytest.raises(FormatError, match="x holds a list"):
        state_dict_of([tensor], "x")


def test_saving_twice_gives_the_same_bytes() -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.int64).T}
    metadata = {f"key{index}": f"ä{index}" for index in range(8)}
    files = {to_safetensors(tensors, metadata) for _ in range(8)}
    files.add(to_safetensors(tensors, dict(reversed(metadata.items()))))
    assert len(files) == 1
    loaded, read = read_safetensors(files.pop())
    assert read == metadata
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
