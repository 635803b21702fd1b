"""Checkpoint files: whole, counted, read without running code, and whose folder it is."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.errors import FormatError, InvalidInputError, NotFoundError, StoreError
from services.shards.store import Store, open_store
from trainers import checkpoint
from trainers.checkpoint import (
    BEST,
    Checkpoint,
    Checkpoints,
    claim,
    claimed,
    export,
    load_checkpoint,
    load_export,
    owned,
)

ROOT = Path(__file__).resolve().parents[2]


def state(step: int) -> Checkpoint:
    weight = torch.nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.AdamW([weight], betas=(0.9, 0.95), fused=True)
    weight.sum().backward()
    optimizer.step()
    return Checkpoint(
        step=step,
        model={"weight": weight.detach()},
        ema=None,
        optimizer=optimizer.state_dict(),
        rng=torch.arange(6, dtype=torch.uint8).view(2, 3),
        cursor=b'{"step": 3}\xff',
        config="{}",
        metrics={"loss": 0.1 + 0.2},
    )


@pytest.mark.parametrize("root", ["{tmp}", "memory://{tmp}"])
def test_what_is_saved_is_loaded(tmp_path: Path, root: str) -> None:
    checkpoints = Checkpoints(root.format(tmp=tmp_path), keep=2)
    saved = state(5)
    checkpoints.save(saved)
    kept = saved.model["weight"].clone()
    saved.model["weight"].zero_()  # training goes on while the file is written
    checkpoints.close()
    found = checkpoints.load(5)
    assert torch.equal(found.model["weight"], kept)
    assert torch.equal(found.rng, saved.rng)
    assert found.optimizer["param_groups"] == saved.optimizer["param_groups"]
    assert torch.equal(
        found.optimizer["state"][0]["exp_avg"], saved.optimizer["state"][0]["exp_avg"]
    )
    same = ("step", "ema", "cursor", "config", "metrics")
    assert all(getattr(found, name) == getattr(saved, name) for name in same)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    assert checkpoints.steps() == []
    for step in (1, 2, 30, 4):
        checkpoints.save(state(step), best=step == 2)
    checkpoints.close()
    assert checkpoints.steps() == [4, 30]
    store = open_store(str(tmp_path)).child("checkpoints")
    assert load_checkpoint(store, "best.pt").step == 2


@pytest.mark.parametrize("files", range(1, 8))
def test_the_best_outlives_a_death_between_any_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    """The newest checkpoint never knows of a best one that does not stand."""
    scores = [0.1, 0.9, 0.3, 0.2]
    checkpoints = Checkpoints(str(tmp_path), keep=9)
    store = type(checkpoints._store)
    write, left = store.write, files

    def dies(self: Store, name: str, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            raise KeyboardInterrupt
        write(self, name, data)

    monkeypatch.setattr(store, "write", dies)
    best = 0.0
    for step, score in enumerate(scores, start=1):
        improved, best = score > best, max(best, score)
        saved = replace(state(step), metrics={"score": score, "best": best})
        with suppress(KeyboardInterrupt):
            checkpoints._write(saved, improved, lambda: None)
        if left <= 0:
            break
    monkeypatch.undo()
    if steps := checkpoints.steps():
        known = checkpoints.load(steps[-1]).metrics["best"]
        stands = load_checkpoint(checkpoints._store, BEST).metrics["score"]
        assert stands >= known
    checkpoints.close()


def test_a_failed_write_is_told(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    checkpoints.save(state(1))
    with pytest.raises(Exception, match="checkpoints"):
        checkpoints.close()


def test_damaged_foreign_and_newer_files_are_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=9)
    checkpoints.save(state(1))
    checkpoints.close()
    folder = tmp_path / "checkpoints"
    whole = (folder / "step-00000001.pt").read_bytes()
    newer, code = io.BytesIO(), io.BytesIO()
    torch.save({"format": 2}, newer)
    torch.save({"format": 1, "model": torch.nn.Linear(1, 1)}, code)
    spoilt = {2: whole[: len(whole) // 2], 3: b"", 4: newer.getvalue(), 5: code.getvalue()}
    for step, data in spoilt.items():
        (folder / f"step-{step:08d}.pt").write_bytes(data)
        with pytest.raises(FormatError, match=f"step-0000000{step}.pt"):
            checkpoints.load(step)
    with pytest.raises(NotFoundError, match="step-00000009"):
        checkpoints.load(9)


def test_no_flipped_bit_of_a_tensor_passes_unseen(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=9)
    weight = torch.randn(64, generator=torch.Generator().manual_seed(0))
    checkpoints.save(replace(state(1), model={"weight": weight}))
    checkpoints.close()
    file = tmp_path / "checkpoints/step-00000001.pt"
    whole = file.read_bytes()
    at = whole.index(weight.numpy().tobytes())
    for bit in range(0, weight.nbytes * 8, 97):
        spoilt = bytearray(whole)
        spoilt[at + bit // 8] ^= 1 << bit % 8
        file.write_bytes(spoilt)
        with pytest.raises(FormatError, match=r"do not have the checksum.* resume from the one"):
            checkpoints.load(1)
    file.write_bytes(whole)
    assert torch.equal(checkpoints.load(1).model["weight"], weight)


_KILLED = """
import os, sys
from pathlib import Path
from tests.trainers.test_checkpoint import state
from trainers.checkpoint import Checkpoints
os.fsync = lambda handle: os.kill(os.getpid(), 9)  # when the bytes are out, and have no name yet
Checkpoints(sys.argv[1], 1).save(state(1), best=len(sys.argv) > 2)
"""


@pytest.mark.parametrize("best", [(), ("best",)])
def test_what_a_kill_left_of_a_checkpoint_is_no_run_and_goes_with_the_next(
    tmp_path: Path, best: tuple[str, ...]
) -> None:
    out = str(tmp_path)
    claim(out, {"kind": "MtmRun"})
    command = [sys.executable, "-c", _KILLED, out, *best]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
    (left,) = (tmp_path / "checkpoints").iterdir()
    assert left.suffix == ".tmp"
    claim(out, {"kind": "ClassifyRun"})
    checkpoints = Checkpoints(out, keep=1)
    checkpoints.save(state(2))
    checkpoints.close()
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["step-00000002.pt"]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_damage_does_to_a_checkpoint_is_said(tmp_path: Path, seed: int) -> None:
    """Of spoilt bytes torch raises IndexError, KeyError, TypeError and more."""
    checkpoints = Checkpoints(str(tmp_path), keep=9)
    checkpoints.save(state(1))
    checkpoints.close()
    file = tmp_path / "checkpoints" / "step-00000001.pt"
    whole, draws = file.read_bytes(), random.Random(seed)
    said = []
    for _ in range(100):
        spoilt = bytearray(whole)
        for _ in range(3):
            spoilt[draws.randrange(len(spoilt))] = draws.randrange(256)
        file.write_bytes(bytes(spoilt))
        try:
            checkpoints.load(1)  # bytes between the parts say nothing
        except FormatError as error:
            said.append(str(error))
    assert len(said) > 20
    assert all(str(file) in text for text in said)
    assert all("the one before" in text or "checkpoint format" in text for text in said)


@pytest.mark.parametrize("noted", [b"", b'{"kind": ', b"[]", b"\xff", b"[" * 99_999])
def test_a_damaged_note_of_a_run_is_named_and_left_alone(tmp_path: Path, noted: bytes) -> None:
    (tmp_path / "run.json").write_bytes(noted)
    for ask in (claimed, lambda out: claim(out, {"kind": "MtmRun"})):
        with pytest.raises(FormatError, match=r"run\.json holds no JSON object .*another folder"):
            ask(str(tmp_path))
    assert (tmp_path / "run.json").read_bytes() == noted


_OWNER = """
import sys
from trainers.checkpoint import owned
with owned(sys.argv[1], {"kind": "MtmRun"}):
    print("in", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(out: str) -> Iterator[subprocess.Popen[str]]:
    """That owns the folder until it is killed."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _OWNER, out]
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        try:
            yield process
        finally:
            process.kill()


def test_two_processes_do_not_train_into_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "run")
    with another_process(out) as process:
        noted = (tmp_path / "run" / "run.json").read_bytes()
        monkeypatch.setattr(checkpoint, "_HELD_SECONDS", 0.1)
        with (
            pytest.raises(StoreError, match=r"another process trains into .*/run: .*another --out"),
            owned(out, {"kind": "ClassifyRun"}),
        ):
            pass
        assert (tmp_path / "run" / "run.json").read_bytes() == noted
        with owned(str(tmp_path / "other"), {"kind": "ClassifyRun"}):
            pass
        monkeypatch.setattr(checkpoint, "_HELD_SECONDS", 60.0)
        killer = threading.Timer(0.0, process.kill)  # it dies while it is waited for, or before
        killer.start()
        with owned(out, {"kind": "ClassifyRun"}):
            assert claimed(out) == {"kind": "ClassifyRun"}
        killer.join()


def test_export_and_load(tmp_path: Path) -> None:
    model = {"a": torch.randn(2, 3).T, "b": torch.zeros(1)}
    export(str(tmp_path), model, {"config": "{}"})
    for url in (str(tmp_path), f"{tmp_path}/model.safetensors", f"file://{tmp_path}/"):
        tensors, about = load_export(url)
        assert about == {"config": "{}"}
        assert torch.equal(tensors["a"], model["a"])
    data = (tmp_path / "model.safetensors").read_bytes()
    for spoilt in (b"", b"x" * 200, data[:-3]):
        (tmp_path / "bad.safetensors").write_bytes(spoilt)
        with pytest.raises(FormatError, match=r"bad\.safetensors"):
            load_export(f"{tmp_path}/bad.safetensors")
    with pytest.raises(NotFoundError, match="there is no exported model"):
        load_export(str(tmp_path / "nowhere"))


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    out = str(tmp_path)
    claim(out, {"kind": "MtmRun", "loop": {"seed": 0}})
    claim(out, {"kind": "MtmRun", "loop": {"seed": 1}})  # nothing was trained for the first one
    checkpoints = Checkpoints(out, keep=1)
    checkpoints.save(replace(state(1)))
    checkpoints.close()
    claim(out, {"kind": "MtmRun", "loop": {"seed": 1}})
    with pytest.raises(InvalidInputError, match=r"'MtmRun' there, 'ClassifyRun' here") as refused:
        claim(out, {"kind": "ClassifyRun", "loop": {"seed": 1, "ema": 0.5}})
    assert "loop.ema is 'not set' there, 0.5 here" in str(refused.value)
    (tmp_path / "run.json").unlink()
    with pytest.raises(InvalidInputError, match="unknown run"):
        claim(out, {"kind": "MtmRun"})
