"""Recipes on a GPU that is not there: no tensor lies on the wrong device, and nothing waits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from services.augment.augmenter import Augmenter, Batch
from services.augment.coefficients import CoefficientAugmenter
from services.augment.color import _normal_levels
from services.augment.config import ColorConfig, EdaConfig, RecipeConfig
from services.augment.masks import augment_masks
from services.augment.recipe import RECIPES
from services.augment.tokenadapt import TokenAdapt
from services.plan.draws import Draws
from services.tokens.dct import DCT, DCTConfig
from services.wire.seit import v1 as wire
from tests.fake_gpu import GPU, FakeGpu, WaitsError, fake_gpu

ROWS, BLOCKS = 8, 2


def draws() -> Draws:
    rows = np.arange(ROWS, dtype=np.int64)
    rows[-1] = -1
    return Draws(seed=3, epoch=0, rows=rows)


def augmenter(
    config: RecipeConfig, spec: wire.TokenSpec, codebook: Tensor, networks: TokenAdapt
) -> Augmenter:
    """On the host, with networks of its own."""
    own = TokenAdapt(networks.config)
    return Augmenter(config, spec, codebook, own if config.adapt.share else None).eval()


def colours(config: RecipeConfig) -> list[RecipeConfig]:
    """The recipe with each of its changes of colour alone, so that each of them surely happens."""
    color = config.color
    alone = [
        replace(color, noise_probability=1.0, coloradapt_probability=0.0),
        replace(color, noise_probability=0.0, coloradapt_probability=1.0),
    ]
    return [replace(config, color=one) for one in alone] if color.active else [config]


def check(gpu: FakeGpu, model: Augmenter, inputs: Tensor, config: RecipeConfig) -> None:
    """A batch through the recipe, its labels on the host as in the trainer's own process."""
    gpu.move(model)
    with gpu.fake:
        _normal_levels(GPU)  # made once a process
        on_gpu, labels = inputs.to(GPU), torch.zeros(ROWS, dtype=torch.int64)
    with gpu.without_waiting():
        done: Batch = model(on_gpu, labels, draws(), blocks=BLOCKS)
    crop, channels = config.crop, model.codebook.shape[1]
    ids = config.output == "ids"
    assert done.inputs.device == GPU
    assert done.inputs.is_floating_point() == (not ids)
    assert done.inputs.shape == ((ROWS, *crop) if ids else (ROWS, channels, *crop))
    for column, dtype in (
        (done.label, torch.int64),
        (done.label_b, torch.int64),
        (done.mix, torch.float32),
    ):
        assert (column.device.type, column.dtype, len(column)) == ("cpu", dtype, ROWS)


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_waits_for_the_gpu(
    name: str,
    spec: wire.TokenSpec,
    crop: tuple[int, int],
    codebook: Tensor,
    tokenadapt: TokenAdapt,
) -> None:
    made = RECIPES[name](spec, crop)
    made = replace(made, adapt=replace(made.adapt, precision="bfloat16"))
    for config in colours(made):
        for output in ("ids", "embeddings"):
            whole = replace(config, output=output)
            inputs = torch.zeros(ROWS, spec.grid_height, spec.grid_width, dtype=torch.int64)
            with fake_gpu() as gpu:
                check(gpu, augmenter(whole, spec, codebook, tokenadapt), inputs, whole)


def test_token_eda_does_not_wait(
    spec: wire.TokenSpec, crop: tuple[int, int], codebook: Tensor, tokenadapt: TokenAdapt
) -> None:
    eda = EdaConfig(synonym_probability=0.5, swap_probability=0.5)
    config = replace(RECIPES["scratch"](spec, crop), eda=eda, color=ColorConfig())
    inputs = torch.zeros(ROWS, spec.grid_height, spec.grid_width, dtype=torch.int64)
    with fake_gpu() as gpu:
        check(gpu, augmenter(config, spec, codebook, tokenadapt), inputs, config)


def test_recipes_on_coefficients_do_not_wait() -> None:
    transform = DCT(DCTConfig((16, 16), block=4, keep=4, codes=16))
    torch.nn.init.normal_(transform.quantizer.embedding.weight)
    made = RECIPES["scratch"](transform.spec, (3, 3))
    made = replace(made, eda=EdaConfig(swap_probability=0.5))
    for config in colours(made):
        inputs = torch.zeros(ROWS, transform.spec.channels, 4, 4)
        with fake_gpu() as gpu:
            model = CoefficientAugmenter(config, transform.spec, DCT(transform.config))
            check(gpu, model.eval(), inputs, config)


def test_masks_are_moved_without_a_wait(spec: wire.TokenSpec, crop: tuple[int, int]) -> None:
    config = RECIPES["segment"](spec, crop)
    grid = (spec.grid_height, spec.grid_width)
    with fake_gpu() as gpu:
        with gpu.fake:
            masks = torch.zeros(
                ROWS, spec.image_height, spec.image_width, dtype=torch.uint8, device=GPU
            )
        with gpu.without_waiting():
            moved = augment_masks(
                config, masks, draws(), BLOCKS, grid=grid, map_grid=(2 * grid[0], 2 * grid[1])
            )
    assert (moved.device, moved.dtype) == (GPU, torch.uint8)
    assert moved.shape == (ROWS, crop[0] * 8, crop[1] * 8)


def test_the_fake_gpu_knows_what_waits() -> None:
    with fake_gpu() as gpu, gpu.without_waiting():
        x = torch.zeros(4, device=GPU)
        waits = (
            lambda: float(x.sum()),
            lambda: x[x > 1],
            lambda: x.__setitem__(x > 1, torch.zeros(2, device=GPU)),
            lambda: x[torch.tensor([1, 2])],
            lambda: torch.zeros(4).to(GPU),
            lambda: torch.zeros(4).to(GPU, non_blocking=True),  # of pageable memory
            lambda: x.new_tensor(2.0),
            x.cpu,
        )
        for call in waits:
            with pytest.raises(WaitsError):
                call()
        with pytest.raises(RuntimeError, match="device"):
            x + torch.zeros(4)
        assert torch.zeros(4).pin_memory().to(GPU, non_blocking=True).device == GPU
        assert torch.where(x > 1, x, 2.0).device == GPU
        with torch.autocast("cuda", torch.bfloat16):
            assert (x[None] @ x[:, None]).dtype == torch.bfloat16
