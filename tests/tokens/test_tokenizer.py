from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from services.errors import FormatError, InvalidInputError
from services.tokens.codebook import Codebook, renumber, used_codes
from services.tokens.dct import DCT, DCTConfig
from services.tokens.tokenizer import (
    Tokenizer,
    TokenizerModel,
    load_published,
    load_tokenizer,
    restrict,
    save_tokenizer,
    with_codebook,
)
from services.tokens.vitvqgan import ViTSize, ViTVQGAN, ViTVQGANConfig
from services.tokens.vqgan import VQGAN, VQGANConfig
from services.tokens.weights import read_safetensors


def images_of(tokenizer: Tokenizer, count: int = 3) -> Tensor:
    spec = tokenizer.spec
    generator = torch.Generator().manual_seed(5)
    return torch.rand(count, 3, spec.image_height, spec.image_width, generator=generator)


@pytest.fixture(params=["vitvqgan", "vqgan", "dct"])
def model(request: pytest.FixtureRequest, tiny: ViTVQGAN) -> TokenizerModel:
    torch.manual_seed(1)
    if request.param == "vitvqgan":
        return tiny
    if request.param == "vqgan":
        config = VQGANConfig((16, 24), 8, (1, 2, 2), 1, (2,), 50, channels=4, latent=3, groups=4)
        return VQGAN(config).eval()
    images = torch.rand(4, 3, 16, 24)
    fitted = DCT.fit(DCTConfig((16, 24), 4, 5, codes=30), images, torch.Generator().manual_seed(0))
    return fitted.eval()


def test_a_saved_tokenizer_does_the_same(model: TokenizerModel, tmp_path: Path) -> None:
    data = save_tokenizer(model)
    path = tmp_path / "tokenizer.safetensors"
    path.write_bytes(data)
    images = images_of(model)
    ids = model.encode(images)
    for loaded in (load_tokenizer(data), load_tokenizer(path)):
        assert loaded.kind == model.kind
        assert loaded.config == model.config
        assert loaded.spec == model.spec
        assert not loaded.training
        assert torch.equal(loaded.encode(images), ids)
        assert torch.equal(loaded.decode(ids), model.decode(ids))
    assert save_tokenizer(load_tokenizer(data)) == data


def test_a_restricted_tokenizer_gives_the_renumbered_ids(model: TokenizerModel) -> None:
    images = images_of(model)
    ids = model.encode(images)
    used = used_codes(np.bincount(ids.flatten().numpy(), minlength=model.spec.codes))
    small = restrict(model, used)
    assert small.spec.codes == len(used) < model.spec.codes
    expected = renumber(ids.numpy(), used, model.spec.codes)
    assert np.array_equal(small.encode(images).numpy(), expected)
    assert torch.equal(small.decode(small.encode(images)), model.decode(ids))
    assert small.encode(images_of(model, 9)).max() < len(used)


def test_a_codebook_of_another_tokenizer_is_refused(model: TokenizerModel) -> None:
    book = model.codebook
    with pytest.raises(InvalidInputError, match="channels"):
        with_codebook(model, Codebook(torch.ones(4, book.channels + 1), book.metric))
    other = Codebook(book.weight, "euclidean" if book.metric == "cosine" else "cosine")
    with pytest.raises(InvalidInputError, match="compared by"):
        with_codebook(model, other)


def corrupted(data: bytes, **changes: str) -> bytes:
    _, metadata = read_safetensors(data)
    return save(load(data), {**metadata, **changes})


def test_files_that_are_not_a_tokenizer_of_this_program(tiny: ViTVQGAN) -> None:
    data = save_tokenizer(tiny)
    with pytest.raises(FormatError, match="found format '9', this program reads 1"):
        load_tokenizer(corrupted(data, format="9"))
    with pytest.raises(FormatError, match="expected a tokenizer file"):
        load_tokenizer(tiny.codebook.to_bytes())
    with pytest.raises(InvalidInputError, match="vitvqgan, vqgan, dct"):
        load_tokenizer(corrupted(data, kind="other"))
    with pytest.raises(FormatError, match="config is not valid"):
        load_tokenizer(corrupted(data, config="{"))
    with pytest.raises(FormatError):
        load_tokenizer(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("field", "value"),
    [("codes", 41), ("codes", 10**9), ("channels", 10**12), ("dim_head", 10**18), ("patch", 8)],
)
def test_a_config_that_does_not_fit_allocates_nothing(
    tiny: ViTVQGAN, field: str, value: int
) -> None:
    data = save_tokenizer(tiny)
    _, metadata = read_safetensors(data)
    config = {**json.loads(metadata["config"]), field: value}
    with pytest.raises(FormatError):
        load_tokenizer(corrupted(data, config=json.dumps(config)))


def parameters_of(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[6:]: value for name, value in golden.items() if name.startswith("param.")}


def test_a_published_lightning_checkpoint(
    vitvqgan_golden: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "vitvqgan.ckpt"
    extra = {"loss.discriminator.weight": torch.zeros(3)}
    state = parameters_of(vitvqgan_golden)
    torch.save({"state_dict": state | extra, "epoch": 4}, path)
    model = load_published(path, "vitvqgan")
    size = ViTSize(dim=48, depth=2, heads=2, mlp=192)
    assert model.config == ViTVQGANConfig((64, 64), 8, size, size, codes=96, channels=16)
    ids = model.encode(vitvqgan_golden["in.images"])
    assert torch.equal(ids.flatten(1), vitvqgan_golden["out.codes"].long())
    # The same weights at another size of picture.
    wide = load_published(path, "vitvqgan", (64, 128))
    assert wide.encode(torch.rand(1, 3, 64, 128)).shape == (1, 8, 16)
    assert load_tokenizer(save_tokenizer(wide)).spec == wide.spec


def test_published_vqgan_weights(vqgan_golden: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "vqgan.ckpt"
    torch.save(parameters_of(vqgan_golden), path)
    model = load_published(path, "vqgan", (64, 64))
    ids = model.encode(vqgan_golden["in.images01"])
    assert torch.equal(ids, vqgan_golden["out.codes"].long())


def test_published_files_of_the_wrong_kind(vqgan_golden: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "vqgan.ckpt"
    torch.save(parameters_of(vqgan_golden), path)
    with pytest.raises(FormatError, match="check the kind"):
        load_published(path, "vitvqgan")
    with pytest.raises(InvalidInputError, match="vitvqgan and vqgan"):
        load_published(path, "dct")
    torch.save(VQGAN(VQGANConfig((16, 16), 4, (1,), 1, (), 4, groups=2)), path)
    with pytest.raises(FormatError, match="refused"):
        load_published(path, "vqgan")
    torch.save({**parameters_of(vqgan_golden), "encoder.odd": torch.zeros(1)}, path)
    with pytest.raises(FormatError, match="do not fit"):
        load_published(path, "vqgan", (64, 64))
