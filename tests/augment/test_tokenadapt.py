"""TokenAdapt: parity with the published networks, and files that say what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig, codebook_digest
from services.errors import FormatError, InvalidInputError
from services.tokens.weights import read_safetensors


@pytest.fixture(scope="module")
def published(tokenadapt_golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix("param."): value
        for name, value in tokenadapt_golden.items()
        if name.startswith("param.")
    }


@torch.no_grad()
def test_both_networks_equal_the_published(
    published: dict[str, Tensor], tokenadapt_golden: dict[str, Tensor]
) -> None:
    model = TokenAdapt.from_state(published)
    heads, dim_head, dim = tokenadapt_golden["meta.heads_dimhead_dim"].tolist()
    config = model.config
    assert (config.heads, config.dim_head, config.dim) == (heads, dim_head, dim)
    spread = model.convert(tokenadapt_golden["in.embeddings"])
    torch.testing.assert_close(spread, tokenadapt_golden["out.conversion"], atol=1e-4, rtol=0)
    (height, width), (h, w) = model.map_grid, model.out_map
    top, left = (height - h) // 2, (width - w) // 2
    centre = spread[:, :, top : top + h, left : left + w]
    logits = model.revert(centre)
    torch.testing.assert_close(logits, tokenadapt_golden["out.logits_center56"], atol=1e-4, rtol=0)
    flipped = model.revert(centre[:1].flip(3))
    torch.testing.assert_close(
        flipped, tokenadapt_golden["out.logits_center56_hflip"], atol=1e-4, rtol=0
    )


def test_published_file(published: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(published, tmp_path / "tokenadapt.ckpt")
    model = TokenAdapt.from_published(tmp_path / "tokenadapt.ckpt")
    assert model.state_dict().keys() == published.keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in published.items())


def test_published_size() -> None:
    model = TokenAdapt(TokenAdaptConfig(grid=(32, 32), out_grid=(28, 28), channels=32, codes=391))
    trained = sum(p.numel() for p in model.parameters())
    assert 3.7e6 < trained < 3.9e6
    assert 4.4e6 < sum(value.numel() for value in model.state_dict().values()) < 4.6e6


@torch.no_grad()
def test_shapes_and_other_grids(tokenadapt: TokenAdapt) -> None:
    config = tokenadapt.config
    (height, width), (h, w) = config.grid, config.out_grid
    spread = tokenadapt.convert(torch.randn(2, config.channels, height, width))
    assert spread.shape == (2, config.channels, 2 * height, 2 * width)
    scores = tokenadapt.revert(spread[..., : 2 * h, : 2 * w])
    assert scores.shape == (2, h * w, config.codes)
    other = tokenadapt.resized((5, 4), (3, 4))
    assert other.convert(torch.randn(1, config.channels, 5, 4)).shape[-2:] == (10, 8)
    for name, value in tokenadapt.named_parameters():
        assert torch.equal(other.get_parameter(name), value)


def test_file_keeps_weights_config_and_codebook(tokenadapt: TokenAdapt, codebook: Tensor) -> None:
    digest = codebook_digest(codebook)
    tokenadapt = tokenadapt.resized(tokenadapt.config.grid, tokenadapt.config.out_grid)
    tokenadapt.codebook = digest
    read = TokenAdapt.from_bytes(tokenadapt.to_bytes())
    assert read.config == tokenadapt.config
    assert read.codebook == digest
    assert all(torch.equal(read.state_dict()[n], v) for n, v in tokenadapt.state_dict().items())
    assert codebook_digest(codebook + 1e-3) != digest


def test_files_of_other_kinds_are_refused(tokenadapt: TokenAdapt) -> None:
    with pytest.raises(FormatError, match="tokenadapt"):
        TokenAdapt.from_bytes(save({"weight": torch.ones(1)}))
    tensors, metadata = read_safetensors(tokenadapt.to_bytes())
    with pytest.raises(FormatError, match="upgrade"):
        TokenAdapt.from_bytes(save(tensors, metadata | {"format": "2"}))
    with pytest.raises(FormatError, match="config"):
        TokenAdapt.from_bytes(save(tensors, metadata | {"config": "{}"}))
    tensors.pop("reverse_transform.1.bias")
    with pytest.raises(FormatError, match="do not fit"):
        TokenAdapt.from_bytes(save(tensors, metadata))
    with pytest.raises(FormatError, match="not a state dict"):
        TokenAdapt.from_state({"weight": torch.ones(1)})


@torch.no_grad()
@pytest.mark.parametrize("length", [1e-3, 1.0, 30.0])
def test_fresh_weights_hear_codes_of_any_length(codebook: Tensor, length: float) -> None:
    """f starts out alike for all: its tokens differ by what they stand for, not by place alone."""
    torch.manual_seed(0)
    codes, channels = codebook.shape
    model = TokenAdapt(TokenAdaptConfig((4, 4), (4, 4), channels, codes, dim=32, heads=1, mlp=32))
    unit = torch.nn.functional.normalize(codebook, dim=1) * length
    model.start_for(unit)
    first, decoder = model.conversion_function
    heard = first(unit)
    positions = decoder.de_pos_embedding
    torch.testing.assert_close(heard.square().mean(), 16 * positions.square().mean())
    model.start_for(torch.zeros_like(unit))
    assert model.convert(torch.zeros(1, channels, 4, 4)).isfinite().all()


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="grid"):
        TokenAdaptConfig(grid=(0, 4), out_grid=(2, 2), channels=4, codes=8)
    with pytest.raises(InvalidInputError, match="codes=0"):
        TokenAdaptConfig(grid=(4, 4), out_grid=(2, 2), channels=4, codes=0)
    with pytest.raises(InvalidInputError, match="scale=0"):
        TokenAdaptConfig(grid=(4, 4), out_grid=(2, 2), channels=4, codes=8, scale=0)
