"""The programs of docs/own-loop.md, run by its commands as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch
from torch import Tensor

from services.errors import FormatError, InvalidInputError
from services.plan.epoch import OrderSpec
from services.shards.store import open_store
from services.stream.batch import StreamBatch
from services.stream.opening import open_stream, token_request
from services.tokens.codebook import Codebook
from services.wire.seit import v1 as wire
from tests.small_datasets import write_dataset

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/own-loop.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)\n```$", PAGE, re.DOTALL | re.MULTILINE)
PROGRAMS = {text.split()[1]: text for kind, text in BLOCKS if kind == "python"}
COMMANDS = [text for kind, text in BLOCKS if not kind]
SPEC = wire.TokenSpec(
    grid_height=8, grid_width=8, codes=64, channels=16, image_height=32, image_width=32
)
EPOCH_STEPS = 3  # of 150 rows, 64 a step
ROW = re.compile(r"^\| (?:`(\w+)` )?\| (.*?) \| (.*?) \|", re.MULTILINE)


def laid_out(folder: Path) -> Path:
    """What `make demo` leaves, in small, and the page's programs beside it."""
    codebook = Codebook(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)))
    root = open_store(str(folder / "demo-out/data"))
    write_dataset(root, "demo", rows=50, spec=SPEC, codebook=codebook.to_bytes())
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return laid_out(tmp_path)


@dataclass(frozen=True)
class Whole:
    """What the first program, left alone, prints and ends with."""

    told: list[str]
    weights: dict[str, Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = laid_out(tmp_path_factory.mktemp("whole"))
    return Whole(run(folder, "own_loop.py").splitlines(), weights(folder / "own-loop.pt"))


def run(folder: Path, program: str) -> str:
    """What the page's command for `program` prints."""
    (command,) = (one for one in COMMANDS if program in one)
    done = subprocess.run(
        shlex.split(command),
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "SEIT_CACHE_DIR": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "RAY_ADDRESS": "local",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def halved(folder: Path) -> None:
    """Run the first program with half of its epochs: a run that was stopped there."""
    program = folder / "own_loop.py"
    assert program.read_text().count("= 4, Path") == 1
    program.write_text(program.read_text().replace("= 4, Path", "= 2, Path"))
    assert f"step {2 * EPOCH_STEPS}:" in run(folder, "own_loop.py").splitlines()[-1]
    program.write_text(PROGRAMS["own_loop.py"])


def weights(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(path, weights_only=True)["model"]
    return found


def test_each_command_runs_a_program_of_the_page() -> None:
    assert [shlex.split(command)[-1] for command in COMMANDS] == list(PROGRAMS)


def test_a_run_that_was_stopped_ends_with_the_same_weights(folder: Path, whole: Whole) -> None:
    steps = [f"step {EPOCH_STEPS * epoch}" for epoch in range(1, 5)]
    assert [line.partition(":")[0] for line in whole.told] == steps
    assert all(line.endswith("of 2 rows right") for line in whole.told)
    halved(folder)
    half = weights(folder / "own-loop.pt")
    assert not any(torch.equal(half[name], end) for name, end in whole.weights.items())
    assert len(run(folder, "own_loop.py").splitlines()) == 2
    for name, tensor in weights(folder / "own-loop.pt").items():
        assert torch.equal(tensor, whole.weights[name])


def test_two_ranks_go_on_with_what_one_process_began(folder: Path, whole: Whole) -> None:
    halved(folder)
    assert len(run(folder, "own_ddp.py").splitlines()) == 2
    for name, tensor in weights(folder / "own-loop.pt").items():
        torch.testing.assert_close(tensor, whole.weights[name], rtol=0, atol=1e-5)


@pytest.mark.timeout(600)  # two clusters, one after the other
@pytest.mark.system
def test_ray_train_gives_the_same_and_a_finished_run_stays_finished(
    folder: Path, whole: Whole
) -> None:
    run(folder, "own_ray.py")
    kept = sorted((folder / "own-ray").rglob("state.pt"), key=lambda path: path.stat().st_mtime)
    assert len(kept) == 4
    for name, tensor in weights(kept[-1]).items():
        torch.testing.assert_close(tensor, whole.weights[name], rtol=0, atol=1e-5)
    run(folder, "own_ray.py")
    assert len(list((folder / "own-ray").rglob("state.pt"))) == 4


@pytest.mark.parametrize("recipe", ["finetune", "scratch"])
def test_the_table_tells_of_batches_as_they_are(
    folder: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEIT_CACHE_DIR", str(folder / "cache"))
    order = OrderSpec(seed=0, global_batch_rows=64, block_rows=16, lanes=2, window_shards=4)
    request = token_request(
        str(folder / "demo-out/data"), "demo", "train", order, recipe=recipe, crop=(6, 6)
    )
    *_, tail = open_stream(request)
    sizes = {"N": 64, "h": 6, "w": 6, "D": 16}
    there = tail.rows >= 0
    assert there.sum() == 150 - 2 * 64
    assert tail.weight.tolist() == there.tolist()
    assert not tail.label[~torch.from_numpy(there)].any()
    told: dict[str, list[tuple[str, str]]] = {}
    for name, shape, dtype in ROW.findall(PAGE[PAGE.index("| field |") :]):
        told.setdefault(name or "inputs", []).append((shape, dtype))
    assert set(told) == {field.name for field in fields(StreamBatch)}
    for name, value in vars(tail).items():
        if not hasattr(value, "dtype"):
            continue
        shape, dtype = told[name][recipe == "scratch" if name == "inputs" else 0]
        assert value.shape == tuple(sizes[letter] for letter in re.findall(r"\w", shape))
        here, _, there_too = dtype.partition(", ")
        assert str(value.dtype).removeprefix("torch.") == here
        if there_too.endswith("after `to`"):
            moved = getattr(tail.to(torch.device("cpu")), name)
            assert f"{moved.dtype}" == f"torch.{there_too.split()[0]}"


def test_what_a_loop_gives_wrongly_is_told_before_a_stream_is_open(folder: Path) -> None:
    root = folder / "demo-out/data"
    order = OrderSpec(0, global_batch_rows=64, block_rows=16, lanes=2, window_shards=4)
    with pytest.raises(InvalidInputError, match=r"crop is 8, expected \(height, width\)"):
        token_request(root, "demo", "train", order, recipe="eval", crop=8)  # type: ignore[arg-type]
    request = token_request(root, "demo", "train", order, recipe="eval")
    position = open_stream(request).cursor(1)
    for saved in ({"position": position}, {}, position.decode()):
        with pytest.raises(InvalidInputError, match="expected the bytes that"):
            open_stream(request, saved=saved)  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="take an earlier checkpoint"):
        open_stream(request, saved=b"")  # not a run from its start
    for epochs in (-1, 1.5, "4"):
        with pytest.raises(InvalidInputError, match="expected a whole number"):
            open_stream(request, epochs=epochs)  # type: ignore[arg-type]


def test_paths_are_as_good_as_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEIT_CACHE_DIR", str(folder / "cache"))
    root, recipe = folder / "demo-out/data", folder / "mine.json"
    recipe.write_text('{"name": "mine"}')
    order = OrderSpec(0, global_batch_rows=64, block_rows=16, lanes=2, window_shards=4)
    asked = token_request(root, "demo", "train", order, recipe=recipe)
    assert asked == token_request(str(root), "demo", "train", order, recipe=str(recipe))
