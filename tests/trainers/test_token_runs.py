"""Runs by their command line: mixtures, versions, and what a resumed run may change."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from services.shards.manifest import load_manifest
from services.shards.store import open_store
from services.tokens.codebook import Codebook
from services.wire.seit import v1 as wire
from tests.small_datasets import write_dataset
from tests.trainers.test_loop import stops_after
from trainers.command import run
from trainers.config import MtmRun
from trainers.context import Place
from trainers.options import parse
from trainers.program import INTERRUPTED
from trainers.recipes.mtm import RECIPES
from trainers.step import mtm_worker
from trainers.streams import settle

SPEC = wire.TokenSpec(
    grid_height=8, grid_width=8, codes=32, channels=8, image_height=32, image_width=32
)
SMALL = (
    *("--recipe", "mtm-tiny", "--cluster.no-ray", "--optim.warmup-epochs", "0"),
    *("--order.global-batch", "16", "--order.block", "4", "--order.lanes", "2"),
    *("--loop.epochs", "3", "--loop.validate-every", "3", "--loop.checkpoint-every", "1"),
    *("--loop.log-every", "1", "--model.depth", "1", "--model.width", "32", "--model.heads", "2"),
    *("--model.decoder-depth", "1", "--model.decoder-width", "32", "--model.decoder-heads", "2"),
)


def put(root: Path, name: str, shards: int, rows: int, seed: int = 0) -> None:
    """Commit the next version of a dataset."""
    codebook = Codebook(torch.randn(32, 8, generator=torch.Generator().manual_seed(0))).to_bytes()
    write_dataset(
        open_store(str(root)),
        name,
        shards=shards,
        rows=rows,
        seed=seed,
        spec=SPEC,
        codebook=codebook,
    )


class Runs:
    """Runs of one folder: `__call__` gives the exit code, `said` what was logged meanwhile."""

    def __init__(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.root, self.out = folder / "data", folder / "run"
        self._caplog = caplog
        self.said = ""

    def __call__(self, *argv: str, steps: int | None = None) -> int:
        def worker(config: MtmRun, place: Place) -> dict[str, float]:
            stop = place.should_stop if steps is None else stops_after(steps + 1)
            return mtm_worker(config, replace(place, should_stop=stop))

        self._caplog.clear()
        given = (*SMALL, "--out", str(self.out), "--data.root", str(self.root), *argv)
        with self._caplog.at_level(logging.INFO):
            code = run(MtmRun, RECIPES, worker, settle, given)
        self.said = self._caplog.text
        return code

    @property
    def file(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "run.json").read_text())
        return found

    @property
    def flow(self) -> wire.Flow:
        return wire.Flow.from_json((self.out / "streams" / "rank-0.json").read_text())


@pytest.fixture
def runs(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setenv("SEIT_CACHE_DIR", str(tmp_path / "cache"))
    made = Runs(tmp_path, caplog)
    put(made.root, "big", shards=3, rows=16)
    put(made.root, "small", shards=1, rows=9)
    return made


BIG = ("--data.dataset", "big")
MIXED = (*BIG, "--data.mixture", "small", "2", "--loop.grad-accum", "2")


@pytest.mark.parametrize("version", [(), ("--data.version", "1")], ids=["newest", "named"])
def test_a_root_that_is_not_there_is_said_before_anything_starts(
    runs: Runs, tmp_path: Path, version: tuple[str, ...]
) -> None:
    missing = tmp_path / "dta"
    assert runs(*BIG, *version, "--data.root", str(missing)) == 2
    assert f"there is no folder {missing}: give the folder, or the URL, that holds" in runs.said
    assert not runs.out.exists()
    assert not missing.exists()


def test_a_mixture_is_given_by_names_and_weights() -> None:
    argv = ["--data.dataset", "a", "--data.mixture", "b", "2", "c@3", "0.5", "--loop.seed", "4"]
    data = parse(MtmRun, RECIPES, argv).data
    assert data.mixture == {"b": 2.0, "c@3": 0.5}
    assert data.mixed == [("b", ""), ("c", "3")]
    assert parse(MtmRun, RECIPES, []).data.mixture == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["b"], "'b' has no value"),
        (["b", "0"], "data.mixture b is 0.0, it must be above 0"),
        (["b", "nan"], "data.mixture b is nan"),
        (["b", "inf"], "data.mixture b is inf"),
        (["a", "1"], "of another dataset"),
        (["a@2", "1"], "of another dataset"),
        (["b", "1", "b@2", "1"], "of another dataset"),
        (["b@", "1"], "NAME@VERSION with a number"),
        (["b@new", "1"], "NAME@VERSION with a number"),
    ],
)
def test_what_makes_no_mixture_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(MtmRun, RECIPES, ["--data.dataset", "a", "--data.mixture", *words])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert said in " ".join((captured.err + captured.out).replace("│", "").split())


def test_a_run_keeps_the_versions_that_it_began_with(runs: Runs) -> None:
    assert runs(*MIXED, steps=3) == INTERRUPTED
    pinned = runs.file
    assert pinned["data"]["version"] == 1
    assert pinned["data"]["mixture"] == {"small": 2.0}
    assert pinned["data"]["mixture_versions"] == {"small": "1"}
    assert (runs.flow.state, runs.flow.step, runs.flow.stream) == (
        *("stopped", 3, "big/train+small/train"),
    )
    put(runs.root, "big", shards=4, rows=20, seed=1)
    put(runs.root, "small", shards=2, rows=9, seed=1)
    assert runs(*MIXED) == 0
    assert runs.file == pinned
    flow = runs.flow
    assert (flow.state, flow.step, flow.step_target) == ("finished", 12, 12)  # of version 1
    assert flow.steps == 9
    # Finished: the same command finds nothing left to do, and what was said of the stream stands.
    assert runs(*MIXED) == 0
    assert runs.flow == flow

    runs.out = runs.out.with_name("another")
    assert runs(*BIG, "--data.mixture", "small@1", "2", steps=1) == INTERRUPTED
    assert runs.file["data"]["version"] == 2
    assert runs.file["data"]["mixture_versions"] == {"small": "1"}


def test_another_version_is_taken_only_where_that_is_allowed_and_is_noted(runs: Runs) -> None:
    assert runs(*MIXED, steps=3) == INTERRUPTED
    before = (runs.out / "run.json").read_bytes()
    put(runs.root, "big", shards=4, rows=20, seed=1)
    put(runs.root, "small", shards=2, rows=9, seed=1)
    assert runs(*MIXED, "--data.version", "2") == 2
    assert "data.version is 1 there, 2 here" in runs.said
    newer = (*BIG, "--loop.grad-accum", "2", "--data.mixture", "small@2", "2")
    assert runs(*newer) == 2
    assert "data.mixture_versions.small is '1' there, '2' here" in runs.said
    allow = "--resume.allow-dataset-version"
    assert runs(*BIG, "--data.mixture", "small", "3", allow) == 2  # weights make another run
    assert "data.mixture.small is 2.0 there, 3.0 here" in runs.said
    assert runs(*BIG, allow) == 2
    assert "data.mixture.small is 2.0 there, 'not set' here" in runs.said
    assert (runs.out / "run.json").read_bytes() == before

    assert runs(*MIXED, allow) == 0
    for said in ("from step 3 on, big/train is read in version 2", "small/train is read in"):
        assert said in runs.said
    (entry,) = runs.file["history"]
    assert entry["changed"] == {"data.version": [1, 2], "data.mixture_versions.small": ["1", "2"]}
    assert runs.file["data"]["version"] == 2
    assert (runs.flow.state, runs.flow.step_target) == ("finished", 21)  # 80 + 18 rows, 3 epochs


def test_a_new_version_too_small_for_the_step_is_refused_in_words(runs: Runs) -> None:
    assert runs(*BIG, steps=5) == INTERRUPTED
    before = (runs.out / "run.json").read_bytes()
    put(runs.root, "big", shards=1, rows=8, seed=1)
    assert runs(*BIG, "--resume.allow-dataset-version") == 2
    assert "cannot start at step 5: valid are 0 to its end at step 3" in runs.said
    assert (runs.out / "run.json").read_bytes() == before


def test_a_count_of_the_augmentation_takes_whole_numbers_alone(runs: Runs) -> None:
    assert runs(*BIG, "--augment.overrides", "eda.synonym_count", "2.5") == 2
    assert "it is a count, now 5: give a whole number" in runs.said
    assert not runs.out.exists()


def test_a_part_of_the_rows_keeps_the_steps_and_is_part_of_what_the_run_is(runs: Runs) -> None:
    assert runs(*BIG, "--rows", "20", steps=4) == INTERRUPTED
    assert runs.flow.step_target == 9  # as with all 48 rows: three epochs of three steps
    assert (runs.file["data"]["rows"], runs.file["data"]["subset_seed"]) == (20, 0)
    assert runs(*BIG) == 2
    assert "data.rows is 20 there, 'not set' here" in runs.said
    assert runs(*BIG, "--data.rows", "20", "--data.subset-seed", "1") == 2
    assert "data.subset_seed is 0 there, 1 here" in runs.said
    assert runs(*BIG, "--rows", "20") == 0
    assert (runs.flow.state, runs.flow.step, runs.flow.steps) == ("finished", 9, 5)


def test_storage_is_counted_in_rows(runs: Runs) -> None:
    shards = load_manifest(open_store(str(runs.root)), "big").manifest.splits[0].shards
    taken = sum(shard.bytes for shard in shards)
    assert runs(*BIG, "--storage", f"{taken / 2e3}KB", steps=1) == INTERRUPTED
    assert runs.file["data"]["rows"] == 24
    assert runs(*BIG, "--rows", "24") == 0
    runs.out = runs.out.with_name("another")
    assert runs(*BIG, "--storage", "1GB") == 2
    assert f"takes {taken} for 48 rows" in runs.said
    assert runs(*BIG, "--rows", "49") == 2
    assert "49 rows was asked of a split that has 48" in runs.said
    assert not runs.out.exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--storage", "much"), "data.storage is 'much'"),
        (("--storage", "0GB"), "data.storage is '0GB'"),
        (("--rows", "-1"), "data.rows is -1"),
        (("--rows", "5", "--storage", "1KB"), "0 with data.storage"),
        (("--data.subset-seed", "-1"), "data.subset_seed is -1"),
    ],
)
def test_what_is_no_part_of_the_rows_is_refused(
    argv: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(MtmRun, RECIPES, argv)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert said in " ".join((captured.err + captured.out).replace("│", "").split())


def test_data_that_moved_are_the_same_data(runs: Runs) -> None:
    assert runs(*MIXED, steps=2) == INTERRUPTED
    assert "root" not in runs.file["data"]
    kept = (runs.out / "run.json").read_bytes()
    moved = runs.root.with_name("elsewhere")
    shutil.move(runs.root, moved)
    runs.root = moved
    assert runs(*MIXED) == 0
    assert (runs.out / "run.json").read_bytes() == kept


def test_a_run_of_an_earlier_program_goes_on(runs: Runs) -> None:
    """Which noted the root, and knew neither mixtures nor damaged shards."""
    assert runs(*BIG, steps=2) == INTERRUPTED
    stands = runs.file
    for name in ("skip_damaged", "mixture", "mixture_versions"):
        del stands["data"][name]
    stands["data"]["root"] = str(runs.root)
    (runs.out / "run.json").write_text(json.dumps(stands))
    assert runs(*BIG) == 0
    assert "root" not in runs.file["data"]


def test_versions_of_a_run_that_never_got_anywhere_bind_no_other_dataset(runs: Runs) -> None:
    put(runs.root, "big", shards=1, rows=16, seed=1)
    runs.out.mkdir()
    claimed = {"kind": "MtmRun", "data": {"dataset": "big", "version": 2}}
    (runs.out / "run.json").write_text(json.dumps(claimed))
    assert runs("--data.dataset", "small", steps=1) == INTERRUPTED
    assert runs.file["data"]["version"] == 1


def test_a_run_that_a_damaged_shard_ended_goes_on_without_it(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = load_manifest(open_store(str(runs.root)), "big").manifest.splits[0].shards
    file = runs.root / "big" / shards[1].path
    whole = file.read_bytes()
    assert runs(*BIG, steps=1) == INTERRUPTED
    file.write_bytes(whole[:-20] + bytes(20))
    monkeypatch.setenv("SEIT_CACHE_DIR", str(tmp_path / "another node"))
    assert runs(*BIG) == 2
    assert shards[1].path in runs.said
    assert "damaged" in runs.said
    assert runs.flow.state == "failed"
    assert runs(*BIG, "--data.skip-damaged") == 0
    assert runs.flow.quarantined == [f"big/{shards[1].path}"]
    assert runs.flow.state == "finished"
    (entry,) = runs.file["history"]
    assert entry["changed"] == {"data.skip_damaged": [False, True]}


@pytest.mark.parametrize(("end", "state"), [(KeyboardInterrupt, "stopped"), (ValueError, "failed")])
def test_a_stream_does_not_seem_to_run_when_its_trainer_died(
    runs: Runs, end: type[BaseException], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise end("of the test's own making")

    monkeypatch.setattr("trainers.loop._Trainer._validate", die)
    with pytest.raises(end):
        runs(*BIG, "--loop.validate-every", "1")
    assert (runs.flow.state, runs.flow.step) == (state, 3)


def test_the_versions_of_all_datasets_are_those_of_the_start(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit between settling a run and its workers' start changes nothing for them."""
    argv = [*SMALL, "--out", str(runs.out), "--data.root", str(runs.root), *MIXED]
    settled = settle(parse(MtmRun, RECIPES, argv))
    assert (settled.data.version, settled.data.mixture) == (1, {"small@1": 2.0})
    put(runs.root, "big", shards=4, rows=20, seed=1)
    put(runs.root, "small", shards=2, rows=9, seed=1)
    assert settle(settled) == settled
    figures: Callable[..., dict[str, float]] = mtm_worker
    ended = figures(settled, Place(rank=0, world=1, device=torch.device("cpu")))
    assert ended["step"] == 12
