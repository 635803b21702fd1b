from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import FormatError, InvalidInputError
from services.tokens import codebook as module
from services.tokens.codebook import (
    Codebook,
    Metric,
    count_codes,
    nearest_codes,
    perplexity,
    renumber,
    revive_codes,
    used_codes,
)

METRICS: list[Metric] = ["cosine", "euclidean"]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_published_codebook_and_its_synonyms(golden: Path) -> None:
    codebook = Codebook.from_published(golden / "release/codebook.ckpt")
    published = json.loads((golden / "release/synonyms.json").read_text())
    count = len(published["0"])
    expected = [published[str(code)] for code in range(codebook.codes)]
    assert codebook.synonyms(count).tolist() == expected


@pytest.mark.parametrize("metric", METRICS)
@given(st.integers(1, 50), st.integers(1, 9), st.integers(0, 20), st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_nearest_is_the_smallest_distance(
    metric: Metric, codes: int, channels: int, count: int, seed: int
) -> None:
    weight, vectors = random(codes, channels, seed=seed), random(count, channels, seed=seed + 1)
    ids = nearest_codes(vectors, weight, metric)
    if metric == "cosine":
        weight, vectors = F.normalize(weight, dim=1), F.normalize(vectors, dim=1)
    distance = (vectors.double()[:, None] - weight.double()).square().sum(2)
    assert ids.shape == (count,)
    chosen = distance[torch.arange(count), ids]
    torch.testing.assert_close(chosen, distance.amin(1), rtol=0, atol=1e-5)


def test_pieces_do_not_change_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, vectors = random(30, 5), random(7, 11, 5, seed=1)
    whole = nearest_codes(vectors, weight)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 64)
    assert torch.equal(nearest_codes(vectors, weight), whole)
    assert torch.equal(Codebook(weight).synonyms(3), Codebook(weight).synonyms(5)[:, :3])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("codes", "grid"), [(64, (8, 8)), (16_384, (32, 32)), (391, (3, 5))])
def test_ids_come_back_from_their_vectors(
    metric: Metric, codes: int, grid: tuple[int, int]
) -> None:
    codebook = Codebook(random(codes, 16), metric)
    ids = torch.randint(codes, (2, *grid), generator=torch.Generator().manual_seed(2))
    embedded = codebook.embed(ids)
    assert embedded.shape == (2, 16, *grid)
    assert torch.equal(codebook.quantise(embedded), ids)


@pytest.mark.parametrize("metric", METRICS)
def test_file_round_trip(metric: Metric, tmp_path: Path) -> None:
    codebook = Codebook(random(9, 4), metric)
    path = tmp_path / "codebook.safetensors"
    path.write_bytes(codebook.to_bytes())
    for loaded in (Codebook.from_bytes(path), Codebook.from_bytes(codebook.to_bytes())):
        assert torch.equal(loaded.weight, codebook.weight)
        assert loaded.metric == metric


def test_files_of_another_kind_or_a_newer_format_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FormatError, match="not a safetensors file"):
        Codebook.from_bytes(b"something else")
    monkeypatch.setattr(module, "CODEBOOK_FORMAT", 2)
    newer = Codebook(random(9, 4)).to_bytes()
    monkeypatch.undo()
    with pytest.raises(FormatError, match=r"found format '2', this program reads 1"):
        Codebook.from_bytes(newer)
    torch.save({"not": "a tensor"}, tmp_path / "codebook.ckpt")
    with pytest.raises(FormatError, match=r"codebook\.ckpt"):
        Codebook.from_published(tmp_path / "codebook.ckpt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_codes_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    weight = torch.randn(9, 4)
    weight[5, 2] = value
    torch.save(weight, tmp_path / "codebook.ckpt")
    for load in (
        lambda: Codebook.from_bytes(Codebook(weight).to_bytes()),
        lambda: Codebook.from_published(tmp_path / "codebook.ckpt"),
    ):
        with pytest.raises(FormatError, match="1 of the codebook's 9 codes, 5 first"):
            load()


@pytest.mark.parametrize(
    "weight", [torch.zeros(3), torch.zeros(0, 4), torch.zeros(4, 0), torch.zeros(3, 4).long()]
)
def test_shapes_that_are_no_codebook(weight: torch.Tensor) -> None:
    with pytest.raises(InvalidInputError):
        Codebook(weight)


@pytest.mark.parametrize("count", [0, 9, 100])
def test_synonym_count_outside_the_codebook(count: int) -> None:
    with pytest.raises(InvalidInputError, match=r"1\.\.8"):
        Codebook(random(9, 4)).synonyms(count)


def test_a_code_is_never_its_own_synonym_even_among_equals() -> None:
    synonyms = Codebook(torch.ones(6, 3)).synonyms(5)
    assert all(sorted([code, *row]) == list(range(6)) for code, row in enumerate(synonyms.tolist()))


@given(st.lists(st.integers(0, 99), min_size=1, max_size=60))
@settings(deadline=None, max_examples=40)
def test_renumbering_is_dense_and_undone_by_the_used_codes(ids: list[int]) -> None:
    array = np.array(ids)
    used = used_codes(np.bincount(array, minlength=100))
    narrow = renumber(array, used, 100)
    assert set(narrow.tolist()) == set(range(len(used)))
    assert np.array_equal(used[narrow], array)
    book = Codebook(random(100, 4))
    assert torch.equal(
        book.restrict(used).lookup(torch.from_numpy(narrow)), book.lookup(torch.from_numpy(array))
    )


def test_renumbering_never_drops_a_code_quietly() -> None:
    with pytest.raises(InvalidInputError, match="code 7"):
        renumber(np.array([1, 7]), np.array([1, 2]), 10)


@settings(deadline=None, max_examples=50)
@given(ids=st.lists(st.integers(0, 8)), narrow=st.booleans())
def test_codes_are_counted(ids: list[int], narrow: bool) -> None:
    counts = count_codes(torch.tensor(ids, dtype=torch.uint8 if narrow else torch.int64), 9)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [ids.count(code) for code in range(9)]


def test_code_use() -> None:
    counts = count_codes(torch.tensor([[0, 0], [2, 2]]), 4)
    assert counts.tolist() == [2, 0, 2, 0]
    assert perplexity(counts) == pytest.approx(2)
    assert perplexity(torch.tensor([5, 0, 0])) == pytest.approx(1)


def test_unused_codes_take_the_place_of_encoder_outputs() -> None:
    weight, latents = random(6, 3), random(10, 3, seed=1)
    counts = torch.tensor([1, 0, 2, 0, 0, 9])
    results = []
    for _ in range(2):
        revived = weight.clone()
        generator = torch.Generator().manual_seed(3)
        assert revive_codes(revived, counts, latents, generator) == 3
        results.append(revived)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0][counts > 0], weight[counts > 0])
    new = results[0][counts == 0]
    assert all((latents == row).all(1).any() for row in new)
    assert len(new.unique(dim=0)) == 3


def test_reviving_with_fewer_outputs_than_dead_codes() -> None:
    weight = torch.zeros(6, 3)
    dead = torch.zeros(6, dtype=torch.int64)
    assert revive_codes(weight, dead, torch.ones(2, 3), torch.Generator()) == 2
    assert weight.sum() == 6


@pytest.mark.parametrize("latents", [0, 1, 3, 40])
def test_revived_codes_take_the_draws_in_their_order(latents: int) -> None:
    counts = torch.tensor([1, 0, 2, 0, 0, 9, 0, 0])
    weight, found = random(8, 5), random(latents, 5, seed=1)
    dead = torch.nonzero(counts == 0).flatten()[:latents]
    drawn = torch.randperm(latents, generator=torch.Generator().manual_seed(3))[: len(dead)]
    wanted = weight.clone()
    wanted[dead] = found[drawn]
    assert revive_codes(weight, counts, found, torch.Generator().manual_seed(3)) == len(dead)
    assert torch.equal(weight, wanted)
