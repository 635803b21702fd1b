from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.stats import truncnorm
from torch import Tensor
from torch.fx import GraphModule

from services.errors import InvalidInputError
from trainers.models.mtm import MTM, MaskRatio, Masks, MTMConfig, sample_masks
from trainers.models.sizes import SIZES, ViTSize, vit_size

TINY = ViTSize(dim=16, depth=2, heads=2)
GRIDS = [((8, 8), 64, 16, 2), ((8, 8), 64, 16, 1), ((4, 6), 5, 3, 2), ((32, 32), 16_384, 8, 2)]


def tiny(
    grid: tuple[int, int] = (8, 8), codes: int = 64, channels: int = 16, patch: int = 2
) -> MTMConfig:
    return MTMConfig(grid, codes, channels, TINY, TINY, patch=patch)


def inputs(config: MTMConfig, rows: int, ratio_draw: float = 0.5) -> tuple[Tensor, Masks]:
    ids = torch.randint(config.codes, (rows, *config.grid))
    return ids, sample_masks(torch.rand(rows, config.patch_count), ratio_draw, config)


def golden_model(tensors: dict[str, Tensor]) -> MTM:
    dim, depth, heads, *decoder = tensors["meta.dim_depth_heads_ddim_ddepth_dheads"].tolist()
    codes, channels = tensors["param.token_emb.word_embeddings.weight"].shape
    _, height, width = tensors["in.tokens"].shape
    # The vectors were made with the published class's default smoothing, not the recipe's 0.
    config = MTMConfig(
        (height, width),
        codes,
        channels,
        ViTSize(dim, depth, heads),
        ViTSize(*decoder),
        smoothing=0.1,
    )
    return MTM(config).eval()


def test_equals_the_published_model(golden: Path) -> None:
    tensors = load_file(golden / "mtm.safetensors")
    model = golden_model(tensors)
    fixed = {name: getattr(model, name).clone() for name in ("pos_embed", "decoder_pos_embed")}
    for name, table in fixed.items():
        torch.testing.assert_close(table, tensors[f"param.{name}"], atol=1e-6, rtol=0)
    state = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        loss, logits, latent = model(
            tensors["in.tokens"].long(), tensors["in.drop_mask"].bool(), tensors["in.mask"].bool()
        )
    torch.testing.assert_close(latent, tensors["out.latent"], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, tensors["out.logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(loss.mean()[None], tensors["out.loss"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("grid", "codes", "channels", "patch"), GRIDS)
def test_every_size_gives_finite_losses_and_gradients(
    grid: tuple[int, int], codes: int, channels: int, patch: int
) -> None:
    torch.manual_seed(0)
    config = tiny(grid, codes, channels, patch)
    model = MTM(config).train()
    ids, masks = inputs(config, rows=2)
    loss, logits, latent = model(ids, *masks)
    assert logits.shape == (2, grid[0] * grid[1], codes)
    assert latent.shape == (2, 1 + config.patch_count - config.dropped, TINY.dim)
    loss.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_published_model_has_its_size() -> None:
    with torch.device("meta"):
        model = MTM(MTMConfig((28, 28), 391, 32, vit_size("base")))
    encoder = sum(p.numel() for p in model.blocks.parameters())
    assert encoder == 12 * (12 * 768**2 + 13 * 768)
    assert model.config.dropped == 79
    assert len(model.decoder_blocks) == 4


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 5),
    side=st.integers(2, 9),
    draw=st.floats(0, 1, exclude_max=True),
    levels=st.integers(1, 1000),
    seed=st.integers(0, 2**31),
)
def test_masks_have_the_same_counts_in_each_row_whatever_the_noise(
    rows: int, side: int, draw: float, levels: int, seed: int
) -> None:
    config = tiny((side, side), patch=1)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(levels, (rows, side * side), generator=generator) / levels  # many ties
    drop, mask = sample_masks(noise, draw, config)
    assert (drop.sum(dim=1) == config.dropped).all()
    assert len(set(mask.sum(dim=1).tolist())) == 1
    assert not (drop & ~mask).any()
    for row in range(rows):
        unmasked = noise[row][~mask[row]]
        assert not len(unmasked) or noise[row][mask[row]].max() <= unmasked.min()
        alone = sample_masks(noise[row : row + 1], draw, config)
        assert torch.equal(alone.drop[0], drop[row])
        assert torch.equal(alone.mask[0], mask[row])


@settings(deadline=None, max_examples=60)
@given(uniform=st.floats(0, 1), mean=st.floats(0, 1), std=st.floats(0.05, 1))
def test_the_ratio_is_a_truncated_normal(uniform: float, mean: float, std: float) -> None:
    ratio = MaskRatio(mean=mean, std=std)
    ends = (ratio.low - mean) / std, (ratio.high - mean) / std
    expected = truncnorm(*ends, loc=mean, scale=std).ppf(uniform)
    assert ratio.quantile(uniform) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("mean", "end"), [(-100.0, 0.4), (100.0, 1.0)])
def test_a_mean_far_outside_gives_the_nearest_end(mean: float, end: float) -> None:
    assert MaskRatio(mean=mean, std=1.0).quantile(0.5) == pytest.approx(end, abs=0.01)


def test_a_step_never_masks_fewer_than_it_drops() -> None:
    config = tiny((28, 28), patch=2)
    noise = torch.rand(1, config.patch_count)
    counts = [int(sample_masks(noise, u / 50, config).mask.sum()) for u in range(51)]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (config.dropped, config.patch_count)


def test_hidden_tokens_do_not_reach_the_encoder() -> None:
    torch.manual_seed(0)
    config = tiny()
    model = MTM(config).eval()
    ids, masks = inputs(config, rows=3)
    hidden = masks.mask.view(-1, *config.patches).repeat_interleave(2, 1).repeat_interleave(2, 2)
    other = torch.where(hidden, (ids + 1) % config.codes, ids)
    changed = torch.where(hidden, ids, (ids + 1) % config.codes)
    latent = model(ids, *masks).latent
    torch.testing.assert_close(model(other, *masks).latent, latent)
    assert not torch.allclose(model(changed, *masks).latent, latent)


def test_a_row_has_its_own_loss() -> None:
    torch.manual_seed(0)
    config = tiny()
    model = MTM(config).eval()
    ids, masks = inputs(config, rows=4)
    together = model(ids, *masks).loss
    for row in range(4):
        one = slice(row, row + 1)
        alone = model(ids[one], masks.drop[one], masks.mask[one]).loss
        torch.testing.assert_close(alone, together[one])


def test_only_masked_patches_are_scored() -> None:
    torch.manual_seed(0)
    config = tiny(patch=1)
    model = MTM(config).eval()
    ids, masks = inputs(config, rows=2)
    loss, logits, _ = model(ids, *masks)
    each = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), ids.flatten(1), reduction="none"
    )
    expected = torch.stack([row[mask].mean() for row, mask in zip(each, masks.mask, strict=True)])
    torch.testing.assert_close(loss, expected)


def test_compiles_to_one_graph_for_all_ratios() -> None:
    torch.manual_seed(0)
    config = tiny()
    model = MTM(config).eval()
    graphs = []

    def keep(graph: GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=keep, fullgraph=True)
    for draw in (0.1, 0.5, 0.9):
        ids, masks = inputs(config, rows=2, ratio_draw=draw)
        torch.testing.assert_close(compiled(ids, *masks).loss, model(ids, *masks).loss)
    assert len(graphs) == 1


def test_learns_a_constant_picture() -> None:
    torch.manual_seed(0)
    config = tiny((4, 4), codes=8, channels=8, patch=1)
    model = MTM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    ids = torch.arange(16).view(1, 4, 4).remainder(8).expand(16, 4, 4)
    losses = []
    for _ in range(80):
        masks = sample_masks(torch.rand(16, config.patch_count), 0.3, config)
        loss = model(ids, *masks).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_refuses_what_does_not_fit() -> None:
    config = tiny()
    model = MTM(config)
    ids, (drop, mask) = inputs(config, rows=2)
    with pytest.raises(InvalidInputError, match="grid"):
        model(ids[:, :4], drop, mask)
    with pytest.raises(InvalidInputError, match="patches"):
        model(ids, drop[:, :3], mask)
    with pytest.raises(InvalidInputError, match=f"exactly {config.dropped}"):
        model(ids, torch.zeros_like(drop), mask)
    with pytest.raises(InvalidInputError, match="does not divide"):
        tiny((7, 8))
    with pytest.raises(InvalidInputError, match="see nothing"):
        tiny((2, 2), patch=2)
    with pytest.raises(InvalidInputError, match="low"):
        MaskRatio(low=0.0)
    with pytest.raises(InvalidInputError, match="smoothing"):
        MTMConfig((8, 8), 64, 16, TINY, TINY, smoothing=1.0)


def test_sizes_say_what_is_wrong() -> None:
    assert vit_size("tiny") == SIZES["tiny"]
    with pytest.raises(InvalidInputError, match="tiny, small, base, large"):
        vit_size("huge")
    with pytest.raises(InvalidInputError, match="divide"):
        ViTSize(dim=16, depth=1, heads=3)
    with pytest.raises(InvalidInputError, match="multiple of 4"):
        ViTSize(dim=6, depth=1, heads=2)
    with pytest.raises(InvalidInputError, match="mlp_ratio"):
        ViTSize(dim=16, depth=1, heads=2, mlp_ratio=0.0)
