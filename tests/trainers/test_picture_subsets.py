"""Parts of the training pictures: shares of classes, nesting, and files that name them."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import InvalidInputError, NotFoundError
from services.pictures import Picture
from services.tokens.tokenizer import load_tokenizer
from tests.trainers.picture_runs import TRAIN, tokenadapt_run, write_pictures, write_tokenizer
from trainers.picture_streams import TRAIN as SPLIT
from trainers.picture_streams import check_pictures, open_pictures, split_pictures
from trainers.picture_subsets import at_random, chosen, read_keys, stratified, write_keys
from trainers.streams import ALONE


def pictures(counts: list[int]) -> list[Picture]:
    return [
        Picture(Path("x"), label, f"{label}/{number}.png")
        for label, count in enumerate(counts)
        for number in range(count)
    ]


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    shares=st.lists(st.floats(0.01, 1), min_size=2, max_size=2),
    seed=st.integers(0, 99),
)
def test_a_share_of_each_class_and_smaller_ones_inside_larger_ones(
    counts: list[int], shares: list[float], seed: int
) -> None:
    whole, (small, large) = pictures(counts), sorted(shares)
    parts = [stratified(whole, share, at_random(seed, "t")) for share in (small, large)]
    assert set(parts[0]) <= set(parts[1]) <= set(whole)
    for part, share in zip(parts, (small, large), strict=True):
        assert [p for p in whole if p in set(part)] == part  # in the order given
        found = Counter(picture.label for picture in part)
        for label, count in enumerate(counts):
            assert found[label] == max(1, int(share * count + 0.5))
    assert stratified(whole, 1.0, at_random(seed, "t")) == whole
    # Where a picture lies, and in which order it was listed, changes nothing.
    moved = [p._replace(path=Path("y")) for p in reversed(whole)]
    again = stratified(moved, small, at_random(seed, "t"))
    assert {p.key for p in again} == {p.key for p in parts[0]}


def test_seeds_and_purposes_draw_different_pictures() -> None:
    whole = pictures([200])
    drawn = {
        frozenset(p.key for p in stratified(whole, 0.5, at_random(seed, purpose)))
        for seed in range(3)
        for purpose in ("a", "b")
    }
    assert len(drawn) == 6
    for share in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(InvalidInputError, match="share of"):
            stratified(whole, share, at_random(0, "a"))


def test_a_file_of_keys_names_what_was_written(tmp_path: Path) -> None:
    odd = Picture(Path("x"), 0, os.fsdecode(b"0/no utf-8 \xff.png"))  # as file systems may have it
    whole = [*pictures([5, 3]), odd]
    file = write_keys(tmp_path / "keys" / "some.txt", [odd, *whole[2:6]])
    before = file.stat().st_mtime_ns
    assert chosen(whole, read_keys(str(file)), str(file)) == [*whole[2:6], odd]
    write_keys(file, [odd, *whole[2:6]])
    assert file.stat().st_mtime_ns == before  # a run that reads it has not changed
    with pytest.raises(InvalidInputError, match="which is no training picture"):
        chosen(whole[3:], read_keys(str(file)), str(file))
    with pytest.raises(InvalidInputError, match="line break"):
        write_keys(file, [odd._replace(key="0/a\nb.png")])
    with pytest.raises(NotFoundError):
        read_keys(str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(InvalidInputError, match="names no picture"):
        read_keys(str(tmp_path / "empty.txt"))


def test_a_run_on_a_part_reads_that_part_for_as_many_steps(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images")
    tokenizer = write_tokenizer(tmp_path / "tokenizer.safetensors")
    run = tokenadapt_run(tmp_path / "out", images, tokenizer)
    some = stratified(split_pictures(run.pictures)[1][SPLIT], 0.3, at_random(0, "t"))
    keys = write_keys(tmp_path / "keys.txt", some)
    part = replace(run, pictures=replace(run.pictures, keys=str(keys)))
    spec = load_tokenizer(tokenizer).spec
    whole, fewer = (open_pictures(each, ALONE, spec) for each in (run, part))
    assert whole.open_train(None).steps_per_epoch == fewer.open_train(None).steps_per_epoch == 3
    batches = list(fewer.open_train(None))
    assert [batch.step for batch in batches] == list(range(3 * run.loop.epochs))
    seen = np.concatenate([batch.rows for batch in batches])
    counts = Counter(seen[seen >= 0].tolist())
    assert sorted(counts) == list(range(len(some)))
    assert len(some) < TRAIN
    assert max(counts.values()) - min(counts.values()) <= 1  # they come round more often
    saved = fewer.open_train(None).cursor(2)
    rest = list(fewer.open_train(saved))
    assert all((a.rows == b.rows).all() for a, b in zip(batches[2:], rest, strict=True))
    assert len(list(fewer.open_validation())) == len(list(whole.open_validation()))
    # A run without keys is noted as before there were any.
    assert "keys" not in run.identity()["pictures"]
    assert part.identity()["pictures"]["keys"] == str(keys)
    (tmp_path / "keys.txt").write_text("class0/none.png\n")
    with pytest.raises(InvalidInputError, match=r"none\.png"):
        check_pictures(part)
