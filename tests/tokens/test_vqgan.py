from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from services.errors import InvalidInputError
from services.tokens.codebook import count_codes
from services.tokens.vqgan import VQGAN, VQGANConfig


@pytest.fixture
def published(vqgan_golden: dict[str, Tensor]) -> VQGAN:
    model = VQGAN(VQGANConfig((64, 64), width=32, multipliers=(1, 1, 2, 2), blocks=1))
    prefix = "param."
    model.load_state_dict(
        {name[len(prefix) :]: v for name, v in vqgan_golden.items() if name.startswith(prefix)}
    )
    return model.eval()


def test_codes_equal_the_published(published: VQGAN, vqgan_golden: dict[str, Tensor]) -> None:
    ids = published.encode(vqgan_golden["in.images01"])
    assert torch.equal(ids, vqgan_golden["out.codes"].long())


def test_reconstruction_equals_the_published(
    published: VQGAN, vqgan_golden: dict[str, Tensor]
) -> None:
    expected = vqgan_golden["out.reconstruction_pm1"]
    embedded = published.codebook.embed(vqgan_golden["out.codes"])
    with torch.no_grad():
        raw = published.decoder(published.post_quant_conv(embedded))
    torch.testing.assert_close(raw, expected, rtol=0, atol=1e-4)
    decoded = published.decode(vqgan_golden["out.codes"])
    torch.testing.assert_close(decoded, (expected / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("image", "multipliers", "codes", "grid"),
    [((32, 32), (1, 2), 64, (16, 16)), ((24, 32), (1, 1, 2, 2), 16_384, (3, 4))],
)
def test_any_grid_and_codebook(
    image: tuple[int, int], multipliers: tuple[int, ...], codes: int, grid: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    last = len(multipliers) - 1
    config = VQGANConfig(image, 8, multipliers, 1, (last,), codes, channels=3, latent=5, groups=4)
    model = VQGAN(config).eval()
    ids = model.encode(torch.rand(2, 3, *image))
    assert ids.shape == (2, *grid)
    decoded = model.decode(ids)
    assert decoded.shape == (2, 3, *image)
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    assert (model.spec.grid_height, model.spec.grid_width) == grid
    assert (model.spec.codes, model.spec.channels) == (codes, 3)


@pytest.fixture
def small() -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(VQGANConfig((16, 24), 8, (1, 2), 1, (1,), codes=9, channels=3, latent=5, groups=4))


def test_gradients_pass_straight_through_and_reach_every_weight(small: VQGAN) -> None:
    images = torch.rand(2, 3, 16, 24)
    output = small(images)
    assert torch.equal(output.ids, small.encode(images))
    torch.testing.assert_close(output.reconstruction.clamp(0, 1), small.decode(output.ids))
    assert output.latents.shape == (2 * 8 * 12, 3)
    torch.testing.assert_close(output.commitment_loss, output.codebook_loss)

    F.mse_loss(output.reconstruction, images).backward(retain_graph=True)
    for name, weight in small.named_parameters():
        reached = weight.grad is not None and bool(weight.grad.any())
        assert reached == (weight is not small.code_vectors), name

    small.zero_grad()
    output.commitment_loss.backward(retain_graph=True)
    assert small.code_vectors.grad is None or not small.code_vectors.grad.any()
    assert small.decoder.last_weight.grad is None

    small.zero_grad()
    output.codebook_loss.backward()
    used = count_codes(output.ids, 9) > 0
    assert small.code_vectors.grad is not None
    assert small.code_vectors.grad[used].any()
    assert not small.code_vectors.grad[~used].any()


def test_the_published_size() -> None:
    with torch.device("meta"):
        model = VQGAN(VQGANConfig())
    assert model.config.grid == (32, 32)
    assert model.config.patch == 8
    assert model.quantize.embedding.weight.shape == (256, 4)


def test_wrong_picture_size_is_named(published: VQGAN) -> None:
    with pytest.raises(InvalidInputError, match=r"\(32, 32\).*\(64, 64\)"):
        published.encode(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": (60, 64)},
        {"image_size": (2048, 2048)},
        {"width": 100},
        {"multipliers": ()},
        {"multipliers": (1,) * 9},
        {"blocks": 0},
        {"blocks": 65},
        {"attention": (4,)},
        {"codes": 65_537},
        {"groups": 0},
    ],
)
def test_configs_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        VQGANConfig(**wrong)
