"""Whole recipes on small grids: same rows whatever the batch, and each operation in its place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.augment.augmenter import Augmenter, Batch
from services.augment.config import (
    AdaptConfig,
    ColorConfig,
    CropConfig,
    EdaConfig,
    MixConfig,
    RecipeConfig,
)
from services.augment.recipe import RECIPES, finetune, mtm, scratch
from services.augment.recipe import eval as evaluation
from services.augment.tokenadapt import TokenAdapt, codebook_digest
from services.errors import InvalidInputError
from services.plan.draws import Draws
from services.tokens.codebook import Codebook
from services.wire.seit import v1 as wire

PLAIN = AdaptConfig(share=0.0)
KEEP = CropConfig(kind="centre")


def _rows(spec: wire.TokenSpec, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, spec.grid_height, spec.grid_width)
    ids = torch.randint(0, spec.codes, shape, generator=generator)
    return ids, torch.arange(rows) % 7


def _same(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_batch_equals_its_blocks_one_by_one(
    name: str, spec: wire.TokenSpec, codebook: Tensor, tokenadapt: TokenAdapt, crop: tuple[int, int]
) -> None:
    config = RECIPES[name](spec, crop)
    augment = Augmenter(config, spec, codebook, tokenadapt)
    ids, labels = _rows(spec, 24)
    rows = np.arange(24) * 3 + 5
    whole = augment(ids, labels, Draws(1, 2, rows), blocks=3)
    assert _same(whole, augment(ids, labels, Draws(1, 2, rows), blocks=3))
    expected = (24, *crop) if config.output == "ids" else (24, spec.channels, *crop)
    assert whole.inputs.shape == expected
    assert whole.inputs.dtype == (torch.int64 if config.output == "ids" else torch.float32)
    for start in range(0, 24, 8):
        block = slice(start, start + 8)
        alone = augment(ids[block], labels[block], Draws(1, 2, rows[block]), blocks=1)
        parts = Batch(*(value[block] for value in vars(whole).values()))
        assert _same(parts, alone)


@pytest.mark.parametrize("name", ["mtm", "finetune", "scratch", "segment"])
def test_draws_decide(
    name: str, spec: wire.TokenSpec, codebook: Tensor, tokenadapt: TokenAdapt, crop: tuple[int, int]
) -> None:
    augment = Augmenter(RECIPES[name](spec, crop), spec, codebook, tokenadapt)
    ids, labels = _rows(spec, 8)
    first = augment(ids, labels, Draws(1, 0, np.arange(8)), blocks=1)
    assert not _same(first, augment(ids, labels, Draws(1, 1, np.arange(8)), blocks=1))
    assert not _same(first, augment(ids, labels, Draws(2, 0, np.arange(8)), blocks=1))


def test_evaluation_takes_the_centre(
    spec: wire.TokenSpec, codebook: Tensor, crop: tuple[int, int]
) -> None:
    config = evaluation(spec, crop)
    ids, labels = _rows(spec, 5)
    batch = Augmenter(config, spec, codebook)(ids, labels, Draws(0, 0, np.arange(5)), blocks=1)
    centre = ids[:, 1 : 1 + crop[0], 1 : 1 + crop[1]]
    assert torch.equal(batch.inputs, centre)
    assert torch.equal(batch.label, labels)
    assert torch.equal(batch.label_b, labels)
    assert batch.mix.eq(1).all()
    config = replace(config, output="embeddings")
    batch = Augmenter(config, spec, codebook)(ids, labels, Draws(0, 0, np.arange(5)), blocks=1)
    assert torch.equal(batch.inputs, codebook[centre].permute(0, 3, 1, 2))


@settings(deadline=None, max_examples=10)
@given(missing=st.integers(1, 7), seed=st.integers(0, 1000))
def test_missing_rows_change_no_other(
    missing: int,
    seed: int,
    spec: wire.TokenSpec,
    codebook: Tensor,
    tokenadapt: TokenAdapt,
    crop: tuple[int, int],
) -> None:
    """What stands in a row that does not exist reaches nobody."""
    augment = Augmenter(finetune(spec, crop), spec, codebook, tokenadapt)
    ids, labels = _rows(spec, 8)
    rows = np.arange(8)
    rows[8 - missing :] = -1
    one = augment(ids, labels, Draws(seed, 0, rows), blocks=1)
    ids[8 - missing :], labels[8 - missing :] = 0, 99
    other = augment(ids, labels, Draws(seed, 0, rows), blocks=1)
    kept = slice(0, 8 - missing)
    assert torch.equal(one.inputs[kept], other.inputs[kept])
    assert torch.equal(one.label_b[kept], other.label_b[kept])


def test_cutmix_of_ids_is_exact_and_labels_follow(
    spec: wire.TokenSpec, codebook: Tensor, crop: tuple[int, int]
) -> None:
    config = RecipeConfig("cut", crop, plain_crop=KEEP, plain_mix=MixConfig(cutmix_alpha=1.0))
    marked = torch.arange(8).view(8, 1, 1).expand(8, spec.grid_height, spec.grid_width)
    batch = Augmenter(config, spec, codebook)(
        marked, torch.arange(8), Draws(0, 0, np.arange(8)), blocks=1
    )
    own = (batch.inputs == torch.arange(8).view(8, 1, 1)).float().mean((1, 2))
    torch.testing.assert_close(batch.mix, own)
    assert torch.equal(batch.label_b, torch.arange(8).flip(0))
    assert set(torch.unique(batch.inputs[0]).tolist()) <= {0, 7}
    assert batch.mix.lt(1).any()


def test_mixing_stays_inside_a_path(
    spec: wire.TokenSpec, codebook: Tensor, tokenadapt: TokenAdapt, crop: tuple[int, int]
) -> None:
    augment = Augmenter(finetune(spec, crop), spec, codebook, tokenadapt)
    ids, _ = _rows(spec, 16)
    batch = augment(ids, torch.arange(16), Draws(0, 0, np.arange(16)), blocks=2)
    mirror = torch.tensor([3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12])
    mixed = batch.mix < 1
    assert mixed.float().mean() > 0.7
    assert torch.equal(batch.label_b[mixed], mirror[mixed])


def test_noise_and_coloradapt_touch_half_of_a_block(
    spec: wire.TokenSpec, codebook: Tensor, crop: tuple[int, int]
) -> None:
    ids, labels = _rows(spec, 12)
    base = RecipeConfig("color", crop, output="embeddings", plain_crop=KEEP)
    draws = Draws(0, 0, np.arange(12))
    still = Augmenter(base, spec, codebook)(ids, labels, draws, blocks=1).inputs
    changed = []
    for color in (ColorConfig(noise_probability=1.0), ColorConfig(coloradapt_probability=1.0)):
        config = replace(base, color=color)
        moved = Augmenter(config, spec, codebook)(ids, labels, draws, blocks=1).inputs
        changed.append((moved - still).abs().amax((1, 2, 3)) > 1e-3)
        assert changed[-1].sum() == 6
    assert torch.equal(*changed)
    noise = Augmenter(
        replace(base, color=ColorConfig(noise_probability=1.0, noise_scale=0.5, noise_std=0.1)),
        spec,
        codebook,
    )(ids, labels, draws, blocks=1).inputs
    difference = (noise - still)[changed[0]]
    assert abs(difference.std((2, 3)).mean() - 0.1) < 0.02
    assert abs(difference.mean((2, 3)).std() - 0.5) < 0.2


def test_coloradapt_reads_the_mirror_image(spec: wire.TokenSpec, codebook: Tensor) -> None:
    ids, labels = _rows(spec, 6)
    crop = (spec.grid_height, spec.grid_width)
    config = RecipeConfig(
        "color",
        crop,
        output="embeddings",
        plain_crop=KEEP,
        color=ColorConfig(coloradapt_probability=1.0, share=1.0),
    )
    augment = Augmenter(config, spec, codebook)
    out = augment(ids, labels, Draws(0, 0, np.arange(6)), blocks=1).inputs
    partner = Codebook(codebook).embed(ids).flip(0)
    torch.testing.assert_close(out.mean((2, 3)), partner.mean((2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.std((2, 3)), partner.std((2, 3)), atol=1e-4, rtol=1e-4)


def test_synonyms_are_near_and_swaps_permute(spec: wire.TokenSpec, codebook: Tensor) -> None:
    ids, labels = _rows(spec, 20)
    crop = (spec.grid_height, spec.grid_width)
    base = RecipeConfig("eda", crop, plain_crop=KEEP)
    eda = EdaConfig(synonym_probability=1.0, synonym_rate=0.5, synonym_count=2)
    draws = Draws(0, 0, np.arange(20))
    out = Augmenter(replace(base, eda=eda), spec, codebook)(ids, labels, draws, blocks=1).inputs
    moved = out != ids
    assert abs(moved.float().mean() - 0.5) < 0.05
    near = Codebook(codebook).synonyms(2)[ids]
    assert (near == out[..., None]).any(-1)[moved].all()
    eda = EdaConfig(swap_probability=1.0)
    out = Augmenter(replace(base, eda=eda), spec, codebook)(ids, labels, draws, blocks=1).inputs
    assert not torch.equal(out, ids)
    assert torch.equal(out.flatten(1).sort().values, ids.flatten(1).sort().values)


def test_tokenadapt_rows_equal_the_steps_by_hand(
    spec: wire.TokenSpec, codebook: Tensor, tokenadapt: TokenAdapt, crop: tuple[int, int]
) -> None:
    config = RecipeConfig(
        "adapt",
        crop,
        plain_crop=KEEP,
        adapt=AdaptConfig(share=0.5, flip_probability=1.0, affine_probability=0.0, crop=KEEP),
    )
    ids, labels = _rows(spec, 6)
    out = Augmenter(config, spec, codebook, tokenadapt)(
        ids, labels, Draws(0, 0, np.arange(6)), blocks=1
    ).inputs
    with torch.no_grad():
        spread = tokenadapt.convert(Codebook(codebook).embed(ids[3:])).flip(3)
        (height, width), (h, w) = tokenadapt.map_grid, tokenadapt.out_map
        top, left = (height - h) // 2, (width - w) // 2
        scores = tokenadapt.revert(spread[:, :, top : top + h, left : left + w])
    assert torch.equal(out[3:], scores.argmax(-1).view(3, *crop))
    assert torch.equal(out[:3], ids[:3, 1 : 1 + crop[0], 1 : 1 + crop[1]])


def test_embeddings_of_tokenadapt_rows_are_codes(
    spec: wire.TokenSpec, codebook: Tensor, tokenadapt: TokenAdapt, crop: tuple[int, int]
) -> None:
    config = replace(scratch(spec, crop), color=ColorConfig(), plain_mix=MixConfig())
    ids, labels = _rows(spec, 8)
    draws = Draws(0, 0, np.arange(8))
    out = Augmenter(config, spec, codebook, tokenadapt)(ids, labels, draws, blocks=1).inputs
    chosen = Codebook(codebook).embed(Codebook(codebook).quantise(out[4:]))
    torch.testing.assert_close(out[4:], chosen)
    as_ids = replace(config, output="ids")
    rounded = Augmenter(as_ids, spec, codebook, tokenadapt)(ids, labels, draws, blocks=1).inputs
    assert torch.equal(Codebook(codebook).quantise(out), rounded)


def test_bfloat16_networks_agree_for_most_tokens(
    spec: wire.TokenSpec, codebook: Tensor, tokenadapt: TokenAdapt, crop: tuple[int, int]
) -> None:
    config = mtm(spec, crop)
    low = replace(config, adapt=replace(config.adapt, precision="bfloat16"))
    ids, labels = _rows(spec, 8)
    draws = Draws(0, 0, np.arange(8))
    exact = Augmenter(config, spec, codebook, tokenadapt)(ids, labels, draws, blocks=1).inputs
    rough = Augmenter(low, spec, codebook, tokenadapt)(ids, labels, draws, blocks=1).inputs
    assert (exact == rough).float().mean() > 0.9


def test_an_outer_autocast_changes_nothing(
    spec: wire.TokenSpec, codebook: Tensor, crop: tuple[int, int]
) -> None:
    config = replace(mtm(spec, crop), adapt=PLAIN)
    augment = Augmenter(config, spec, codebook)
    ids, labels = _rows(spec, 4)
    exact = augment(ids, labels, Draws(0, 0, np.arange(4)), blocks=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert _same(exact, augment(ids, labels, Draws(0, 0, np.arange(4)), blocks=1))


def test_golden_crops_through_the_recipe(augment_golden: dict[str, Tensor]) -> None:
    """One-hot resize and the recipe's look-up agree on real tokens, for boxes of the recipe."""
    codebook, ids = augment_golden["codebook"], augment_golden["tokens"].long()
    codes, channels = codebook.shape
    spec = wire.TokenSpec(
        grid_height=32, grid_width=32, codes=codes, channels=channels, image_height=256,
        image_width=256,
    )  # fmt: skip
    config = replace(mtm(spec, (28, 28)), plain_crop=CropConfig(area=(1, 1), aspect=(1, 1)))
    config = replace(config, adapt=PLAIN)
    augment = Augmenter(config, spec, codebook)
    out = augment(ids, torch.zeros(8, dtype=torch.int64), Draws(0, 0, np.arange(8)), blocks=1)
    one_hot = F.one_hot(ids, codes).float().permute(0, 3, 1, 2)
    small = F.interpolate(one_hot, (28, 28), mode="bicubic", align_corners=False)
    expected = Codebook(codebook).quantise(torch.einsum("nkhw,kd->ndhw", small, codebook))
    assert (out.inputs == expected).float().mean() >= 0.999


def test_what_does_not_belong_together_is_refused(
    spec: wire.TokenSpec, codebook: Tensor, tokenadapt: TokenAdapt, crop: tuple[int, int]
) -> None:
    config = mtm(spec, crop)
    with pytest.raises(InvalidInputError, match=r"adapt\.share to 0"):
        Augmenter(config, spec, codebook)
    with pytest.raises(InvalidInputError, match="other tokens"):
        Augmenter(config, spec, codebook[:-1], tokenadapt)
    with pytest.raises(InvalidInputError, match=r"TokenAdapt\.resized"):
        Augmenter(replace(config, crop=(5, 5)), spec, codebook, tokenadapt)
    with pytest.raises(InvalidInputError, match="does not fit"):
        Augmenter(replace(config, crop=(9, 5)), spec, codebook, tokenadapt)
    other = replace(tokenadapt.config, codes=spec.codes + 1)
    with pytest.raises(InvalidInputError, match="weights are for a codebook"):
        Augmenter(config, spec, codebook, TokenAdapt(other))
    with pytest.raises(InvalidInputError, match="trained with codebook"):
        Augmenter(config, spec, codebook, TokenAdapt(tokenadapt.config, "0" * 32))
    own = TokenAdapt(tokenadapt.config, codebook_digest(codebook))
    augment = Augmenter(config, spec, codebook, own)
    ids, labels = _rows(spec, 8)
    with pytest.raises(InvalidInputError, match="equal blocks"):
        augment(ids, labels, Draws(0, 0, np.arange(8)), blocks=3)
    with pytest.raises(InvalidInputError, match="built for"):
        augment(ids[:, 1:], labels, Draws(0, 0, np.arange(8)), blocks=1)
    few = EdaConfig(synonym_probability=0.5, synonym_count=spec.codes)
    with pytest.raises(InvalidInputError, match="synonyms"):
        Augmenter(replace(config, eda=few), spec, codebook, own)
