"""Pictures without labels to shards on a real Ray: tars, Parquet files, plain folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.errors import InvalidInputError
from services.pictures import decode_picture
from services.shards.cache import ShardCache
from services.shards.grid_hashes import count_duplicates, hash_picture
from services.shards.manifest import list_versions, load_manifest
from services.shards.reader import DatasetReader
from services.shards.store import Store, open_store
from services.shards.verify import verify_dataset
from services.stream.ingest import IngestConfig, ingest
from services.stream.ingest_duplicates import repeated
from services.tokens.tokenizer import load_tokenizer
from services.types import UNLABELLED
from services.wire.seit import v1 as wire
from tests.sources.archived import picture, samples, write_parquet, write_tar

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("local_ray")]


def config(tmp_path: Path, weights: Path, **changes: object) -> IngestConfig:
    made = IngestConfig(
        images=str(tmp_path / "in"),
        root=str(tmp_path / "data"),
        dataset="web",
        tokenizer=str(weights),
        rows_per_shard=10,
        batch=4,
        actors=2,
        cpus=0.5,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def stored(root: Store, tmp_path: Path, column: str = "") -> dict[str, dict[str, object]]:
    """By split, each row's key and what stands of it: its ids, and a column's value."""
    found: dict[str, dict[str, object]] = {}
    for split in load_manifest(root, "web").manifest.splits:
        cache = ShardCache(tmp_path / "cache", 10**8)
        reader = DatasetReader(root, "web", split=split.name, cache=cache)
        rows: dict[str, object] = {}
        for number, count in enumerate(reader.shard_rows.tolist()):
            shard, inside = np.full(count, number), np.arange(count)
            ids, labels = reader.take(shard, inside)
            assert (labels == UNLABELLED).all()
            values = reader.column(column, shard, inside) if column else ids
            rows |= dict(zip(reader.keys(shard, inside), values, strict=True))
        assert len(rows) == len(reader)
        found[split.name] = rows
    return found


def test_tars_become_rows_with_captions_and_duplicates_are_counted(
    tmp_path: Path, tokenizer: Path
) -> None:
    for number in range(4):
        write_tar(tmp_path / f"in/{number:05d}.tar", samples(range(number * 10, number * 10 + 13)))
    made = config(tmp_path, tokenizer, captions="txt")
    seen: list[tuple[int, int, str]] = []
    report = ingest(made, lambda _, done, total, unit: seen.append((done, total, unit)))
    assert report.rows == 52
    size = sum(path.stat().st_size for path in (tmp_path / "in").iterdir())
    assert seen[-1] == (size, size, "bytes")
    root, model = open_store(made.root), load_tokenizer(tokenizer)
    grids, captions = stored(root, tmp_path), stored(root, tmp_path, "caption")
    where = {key: split for split, rows in grids.items() for key in rows}
    assert len(where) == 52
    for tar in range(4):
        for number in range(tar * 10, tar * 10 + 13):
            key = f"{tar:05d}/{number:09d}"
            split = where[key]
            assert captions[split][key] == f"words {number}"
            pixels = torch.from_numpy(decode_picture(picture(number), "", 16, 16)).float() / 255
            assert (model.encode(pixels[None])[0].numpy() == grids[split][key]).all()
    # Pictures 10, 11, 12 (and so on) stand in two tars each: nine rows repeat one.
    splits = {split.name: split for split in report.committed.manifest.splits}
    assert sum(split.duplicate_pictures or 0 for split in splits.values()) == 9
    for split, rows in grids.items():
        hashes = [hash_picture(picture(int(key.rpartition("/")[2]))) for key in rows]
        assert count_duplicates(np.sort(np.array(hashes, np.uint64))) == (
            splits[split].duplicate_pictures
        )
    assert report.committed.manifest.intakes == [
        wire.Intake(source="webdataset", files=4, pictures=52, rows=52)
    ]
    assert all(check.failure is None for check in verify_dataset(root, "web"))
    again = ingest(replace(made, mode="append", captions=""))
    doubled = again.committed.manifest.splits
    assert sum(split.duplicate_pictures or 0 for split in doubled) == 9 + 52
    assert all(check.failure is None for check in verify_dataset(root, "web"))


@pytest.mark.slow
def test_dropped_duplicates_leave_the_first_of_each_on_any_cluster(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "in/0.tar", [*samples([0, 1]), ("copy.jpg", picture(1)), *samples([2])])
    write_tar(tmp_path / "in/1.tar", [("again.jpg", picture(0)), *samples([3])])
    write_parquet(tmp_path / "more/1.parquet", [3, 4, None, 4, 5])
    made = config(tmp_path, tokenizer, duplicates="drop", validation_fraction=0.0, captions="txt")
    report = ingest(made)
    root = open_store(made.root)
    keys = ["0/000000000", "0/000000001", "0/000000002", "1/000000003"]
    assert list(stored(root, tmp_path)["train"]) == keys
    assert (report.met.dropped, report.met.pictures, report.met.rows) == (2, 6, 4)
    more = replace(made, mode="append", images=str(tmp_path / "more"), captions="caption")
    report = ingest(more)  # 3 stands already, 4 is there twice
    assert list(stored(root, tmp_path)["train"]) == [*keys, "1/000000001", "1/000000004"]
    assert report.met == wire.Intake(
        source="parquet", files=1, pictures=4, rows=2, dropped=2, absent=1
    )
    assert report.committed.manifest.splits[0].duplicate_pictures == 0


@pytest.mark.slow
def test_equal_pictures_share_a_split(tmp_path: Path, tokenizer: Path) -> None:
    for number in range(40):
        for place in ("a", "b/c"):
            path = tmp_path / "in" / place / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number))
    made = config(tmp_path, tokenizer, source="plain", validation_fraction=0.3)
    report = ingest(made)
    splits = stored(open_store(made.root), tmp_path)
    assert report.rows == 80
    assert 6 <= len(splits["validation"]) <= 40
    for rows in splits.values():
        assert {key for key in rows if key.startswith("a/")} == {
            key.replace("b/c/", "a/") for key in rows if key.startswith("b/")
        }


@pytest.mark.slow
def test_damage_is_named_up_to_the_share_allowed(tmp_path: Path, tokenizer: Path) -> None:
    write_tar(tmp_path / "in/0.tar", [*samples(range(30)), ("bad.jpg", b"no picture")])
    cut = write_tar(tmp_path / "in/1.tar", samples(range(100, 110)))
    data = cut.read_bytes()
    cut.write_bytes(data[: data.index(b"000000105.jpg")])
    made = config(tmp_path, tokenizer)
    with pytest.raises(
        InvalidInputError, match=r"1 of 2 archives cannot be read, more than 1%.*1\.tar"
    ):
        ingest(made)
    assert list_versions(open_store(made.root), made.dataset) == []
    report = ingest(replace(made, max_unreadable=0.5))
    assert report.rows == 35
    assert {skip.path for skip in report.skipped} == {"0/bad", "1.tar"}
    assert report.met.unreadable == 2
    cut.unlink()
    with pytest.raises(InvalidInputError, match=r"1 of 31 pictures cannot be read.*0/bad"):
        ingest(replace(made, mode="replace"))


@pytest.mark.slow
def test_the_same_files_become_the_same_shards_on_any_number_of_actors(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.sources import archives

    monkeypatch.setattr(archives.ArchiveSource.__init__, "__defaults__", (1,))
    for number in range(5):
        write_tar(tmp_path / f"in/{number}.tar", samples(range(number * 20, number * 20 + 17)))
    made = config(tmp_path, tokenizer)
    first = ingest(replace(made, actors=1)).committed.manifest
    second = ingest(replace(made, actors=3, mode="replace")).committed.manifest
    assert first.splits == second.splits


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"captions": "txt", "source": "classes"}, "with class folders, which have neither"),
        ({"images": "memory://nowhere"}, "pack them into tars"),
        ({"source": "parquet"}, r"no file \.parquet"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, tokenizer: Path, changes: dict[str, str], says: str
) -> None:
    write_tar(tmp_path / "in/a/0.tar", samples([1]))
    with pytest.raises(InvalidInputError, match=says):
        ingest(config(tmp_path, tokenizer, **changes))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_unreadable": 1.0}, "max_unreadable"),
        ({"picture": "jpg", "source": "plain"}, "names a column"),
        ({"masks": "m", "captions": "txt"}, "masks go with pictures in folders"),
    ],
)
def test_options_that_contradict_each_other(changes: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        IngestConfig("a", "b", "c", "d", **changes)  # type: ignore[arg-type]


def test_repeated_hashes_by_job() -> None:
    def hashes(*values: int) -> np.ndarray:
        return np.array(values, np.uint64)

    jobs = {0: hashes(5, 7, 7), 2: hashes(7, 9, 1), 1: hashes(5, 9), 3: hashes()}
    found = repeated(jobs, hashes(1, 4))
    assert {job: one.tolist() for job, one in found.items()} == {0: [], 1: [5], 2: [1, 7, 9], 3: []}
    assert repeated({}) == {}
