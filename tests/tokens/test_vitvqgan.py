from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from services.errors import InvalidInputError
from services.tokens.codebook import count_codes, revive_codes
from services.tokens.vitvqgan import (
    SMALL,
    ViTSize,
    ViTVQGAN,
    ViTVQGANConfig,
    psnr,
    resize_positions,
    sincos_positions,
)


@pytest.fixture
def published(vitvqgan_golden: dict[str, Tensor]) -> ViTVQGAN:
    size = ViTSize(dim=48, depth=2, heads=2, mlp=192)
    model = ViTVQGAN(ViTVQGANConfig((64, 64), 8, size, size, codes=96, channels=16))
    prefix = "param."
    model.load_state_dict(
        {name[len(prefix) :]: v for name, v in vitvqgan_golden.items() if name.startswith(prefix)}
    )
    return model.eval()


def test_codes_equal_the_published(published: ViTVQGAN, vitvqgan_golden: dict[str, Tensor]) -> None:
    ids = published.encode(vitvqgan_golden["in.images"])
    assert torch.equal(ids.flatten(1), vitvqgan_golden["out.codes"].long())


def test_reconstruction_equals_the_published(
    published: ViTVQGAN, vitvqgan_golden: dict[str, Tensor]
) -> None:
    expected = vitvqgan_golden["out.reconstruction"]
    output = published(vitvqgan_golden["in.images"])
    torch.testing.assert_close(output.reconstruction, expected, rtol=0, atol=1e-4)
    decoded = published.decode(output.ids)
    torch.testing.assert_close(decoded, expected.clamp(0, 1), rtol=0, atol=1e-4)


def test_positions_equal_the_published(vitvqgan_golden: dict[str, Tensor]) -> None:
    table = vitvqgan_golden["param.encoder.en_pos_embedding"]
    torch.testing.assert_close(sincos_positions((8, 8), table.shape[2]), table, rtol=0, atol=1e-6)


def test_positions_tell_every_cell_apart_on_any_grid() -> None:
    table = sincos_positions((5, 7), 32)[0]
    assert table.shape == (35, 32)
    assert len(table.unique(dim=0)) == 35


def test_resized_positions_keep_their_own_grid_and_its_orientation() -> None:
    table = sincos_positions((4, 6), 16)
    torch.testing.assert_close(resize_positions(table, (4, 6), (4, 6)), table)
    wide = resize_positions(table, (4, 6), (4, 12)).view(4, 12, 16)
    # The half that codes rows does not change along a row.
    torch.testing.assert_close(wide[:, :1, 8:].expand(-1, 12, -1), wide[:, :, 8:])


@pytest.mark.parametrize(
    ("image", "patch", "codes", "grid"),
    [((64, 64), 8, 64, (8, 8)), ((128, 128), 4, 16_384, (32, 32)), ((8, 24), 8, 5, (1, 3))],
)
def test_any_grid_and_codebook(
    image: tuple[int, int], patch: int, codes: int, grid: tuple[int, int]
) -> None:
    size = ViTSize(dim=8, depth=1, heads=1, mlp=8)
    model = ViTVQGAN(ViTVQGANConfig(image, patch, size, size, codes, channels=4, dim_head=4))
    ids = model.encode(torch.rand(2, 3, *image))
    assert ids.shape == (2, *grid)
    assert ids.dtype == torch.int64
    assert model.decode(ids).shape == (2, 3, *image)
    assert (model.spec.grid_height, model.spec.grid_width) == grid
    assert (model.spec.codes, model.spec.channels) == (codes, 4)
    assert (model.codebook.codes, model.codebook.channels) == (codes, 4)


def test_encoding_does_not_depend_on_the_batch(tiny: ViTVQGAN) -> None:
    images = torch.rand(4, 3, 16, 24)
    whole = tiny.encode(images)
    assert torch.equal(torch.cat([tiny.encode(image[None]) for image in images]), whole)


def test_gradients_pass_straight_through_and_reach_every_weight(tiny: ViTVQGAN) -> None:
    images = torch.rand(2, 3, 16, 24)
    output = tiny(images)
    assert torch.equal(output.ids, tiny.encode(images))
    assert output.latents.shape == (2 * 4 * 6, 6)
    torch.testing.assert_close(output.latents.norm(dim=1), torch.ones(48))
    # Equal in value; they differ in where their gradients go.
    torch.testing.assert_close(output.commitment_loss, output.codebook_loss)

    F.mse_loss(output.reconstruction, images).backward(retain_graph=True)
    weight = tiny.quantizer.embedding.weight
    assert weight.grad is None or not weight.grad.any()
    assert tiny.pre_quant.weight.grad is not None
    assert tiny.pre_quant.weight.grad.any()

    tiny.zero_grad()
    output.commitment_loss.backward(retain_graph=True)
    assert weight.grad is None or not weight.grad.any()
    assert tiny.decoder.transformer.norm.weight.grad is None

    tiny.zero_grad()
    output.codebook_loss.backward()
    assert weight.grad is not None
    used = count_codes(output.ids, tiny.config.codes) > 0
    assert not weight.grad[~used].any()
    assert tiny.pre_quant.weight.grad is None or not tiny.pre_quant.weight.grad.any()


def test_it_learns_and_dead_codes_come_back(tiny: ViTVQGAN) -> None:
    images = torch.rand(4, 3, 1, 1).expand(-1, -1, 16, 24) * torch.linspace(0.2, 1, 24)
    optimizer = torch.optim.Adam(tiny.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    before = psnr(tiny.decode(tiny.encode(images)), images).mean()
    for _ in range(60):
        output = tiny(images)
        loss = F.mse_loss(output.reconstruction, images)
        (loss + output.codebook_loss + 0.25 * output.commitment_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        counts = count_codes(output.ids, tiny.config.codes)
        revive_codes(tiny.quantizer.embedding.weight, counts, output.latents, generator)
    assert psnr(tiny.decode(tiny.encode(images)), images).mean() > before + 5


def test_psnr_in_decibels() -> None:
    reference = torch.zeros(3, 3, 4, 4)
    images = torch.tensor([0.1, 1.0, 0.0]).view(3, 1, 1, 1).expand_as(reference)
    assert psnr(images, reference).tolist() == pytest.approx([20, 0, float("inf")], abs=1e-4)


def test_wrong_sizes_are_named(tiny: ViTVQGAN) -> None:
    with pytest.raises(InvalidInputError, match=r"\(16, 16\).*\(16, 24\)"):
        tiny.encode(torch.rand(1, 3, 16, 16))
    with pytest.raises(InvalidInputError, match=r"4 tokens.*4x6"):
        tiny.decode(torch.zeros(1, 2, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": (60, 64)},
        {"image_size": (0, 64)},
        {"image_size": (2048, 2048)},
        {"patch": 0},
        {"codes": 0},
        {"codes": 65_537},
        {"channels": 0},
    ],
)
def test_configs_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        ViTVQGANConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"dim": 6}, {"dim": 0}, {"depth": 0}, {"depth": 10**9}])
def test_transformer_sizes_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError):
        ViTSize(**{"dim": 8, "depth": 1, "heads": 1, "mlp": 8, **wrong})


def test_the_small_model_has_the_published_number_of_weights() -> None:
    with torch.device("meta"):
        model = ViTVQGAN(ViTVQGANConfig(encoder=SMALL, decoder=SMALL))
    # 8 blocks of 12 * 512^2 weights twice, and a little: ViT-VQGAN's paper counts 32 M each way.
    assert 50e6 < sum(p.numel() for p in model.parameters()) < 55e6
