from __future__ import annotations

import contextlib
import io
import json
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import FormatError, NotFoundError
from services.tokens.codebook import Codebook
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


@pytest.mark.parametrize("inside", ["state_dict", "model", "top", "module", "wrapped module"])
def test_the_command_that_a_refusal_names_saves_the_tensors(inside: str, tmp_path: Path) -> None:
    """Published checkpoints hold them under `model` or `state_dict`, beside whatever else."""
    model = torch.nn.Linear(2, 2)
    state = model.state_dict()
    whole: object = {
        "state_dict": {"state_dict": state, "best": tmp_path},
        "model": {"model": state, "best": tmp_path},
        "top": {**state, "best": tmp_path},
        "module": model,
        "wrapped module": {"model": model},
    }[inside]
    torch.save(whole, tmp_path / "IN")
    with pytest.raises(FormatError, match="OUT") as refused:
        read_torch(tmp_path / "IN")
    _, _, command = str(refused.value).partition("save its tensors alone: python ")
    subprocess.run([sys.executable, *shlex.split(command)], cwd=tmp_path, check=True)
    saved = state_dict_of(read_torch(tmp_path / "OUT"), "OUT")
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[name], value) for name, value in state.items())


@pytest.mark.parametrize("keep", [0, 1, 100, 700])
def test_truncated_files(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.pt"
    torch.save({"weight": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"cut\.pt"):
        read_torch(path)
    with pytest.raises(FormatError, match=r"cut\.pt"):
        read_safetensors(path)


def saved(zipped: bool) -> bytes:
    file = io.BytesIO()
    state = {"weight": torch.arange(12.0).reshape(4, 3), "codes": torch.arange(5), "step": 3}
    torch.save({"state_dict": state}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


SAVED = {zipped: saved(zipped) for zipped in (True, False)}


@pytest.mark.filterwarnings("ignore")  # torch warns of what it finds in damaged files
@settings(deadline=None, max_examples=400)
@given(
    zipped=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=8),
    keep=st.floats(0.5, 3),
)
def test_any_damaged_file_is_loaded_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    zipped: bool,
    changes: list[tuple[int, int]],
    keep: float,
) -> None:
    data = bytearray(SAVED[zipped])
    for place, byte in changes:
        data[place % len(data)] = byte
    path = tmp_path_factory.mktemp("damaged") / "model.pt"
    path.write_bytes(data[: int(keep * len(data))])
    with contextlib.suppress(FormatError):
        state_dict_of(read_torch(path), "model.pt")


@pytest.mark.filterwarnings("ignore")
def test_no_damaged_byte_of_an_old_file_is_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    for place in range(len(SAVED[False])):
        for byte in (0, 0x71, 0xFF):
            path.write_bytes(SAVED[False][:place] + bytes([byte]) + SAVED[False][place + 1 :])
            with contextlib.suppress(FormatError):
                read_torch(path)


@pytest.mark.parametrize("error", [MemoryError(), PermissionError(13, "no"), KeyboardInterrupt()])
def test_what_the_machine_refuses_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(SAVED[True])

    def load(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises((FormatError, type(error))) as raised:
        read_torch(path)
    if isinstance(error, MemoryError):
        assert "more memory than there is" in str(raised.value)
    else:
        assert raised.value is error


def test_text_metadata_may_be_null() -> None:
    data = to_safetensors({"a": torch.ones(1)}, {"seit": "x"})
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length]) | {"__metadata__": None}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    forged = struct.pack("<Q", len(text)) + text + data[8 + length :]
    assert read_safetensors(forged)[1] == {}
    with pytest.raises(FormatError, match="no mark of this program"):
        Codebook.from_bytes(forged)


def test_original_ids_of_another_type_are_refused() -> None:
    words = {"seit": "codebook", "format": "1", "metric": "cosine"}
    for kind in (torch.bfloat16, torch.int32, torch.float64):
        tensors = {"weight": torch.ones(4, 2), "original": torch.ones(4, dtype=kind)}
        with pytest.raises(FormatError, match=r"`original` \(int64\)"):
            Codebook.from_bytes(to_safetensors(tensors, words))


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


def test_no_flipped_bit_of_a_tensor_passes_unseen(tmp_path: Path) -> None:
    weight = torch.randn(32, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "model.pt"
    torch.save({"weight": weight}, path)
    whole = path.read_bytes()
    at = whole.index(weight.numpy().tobytes())
    for bit in range(weight.nbytes * 8):
        spoilt = bytearray(whole)
        spoilt[at + bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        with pytest.raises(FormatError, match="do not have the checksum"):
            read_torch(path)


def test_a_file_that_was_saved_without_checksums_says_how_to_save_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.ones(9)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.raises(FormatError, match="set_crc32_options"):
        read_torch(path)
