from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from services.errors import InvalidInputError
from trainers.models.classifier import ClassifierConfig, TokenClassifier
from trainers.models.sizes import ViTSize

TINY = ViTSize(dim=16, depth=2, heads=2)
SIZES = [((8, 8), 64, 16, 2), ((8, 8), 64, 16, 1), ((4, 6), 5, 3, 2), ((32, 32), 16_384, 8, 2)]

Kind = Literal["ids", "embeddings"]
KINDS: tuple[Kind, Kind] = ("ids", "embeddings")


def tiny(kind: Kind, grid: tuple[int, int] = (8, 8), **sizes: int) -> ClassifierConfig:
    values = {"codes": 64, "channels": 16, "classes": 7, "patch": 2, **sizes}
    return ClassifierConfig(kind, grid, encoder=TINY, **values)


def batch(config: ClassifierConfig, rows: int) -> Tensor:
    if config.input == "ids":
        return torch.randint(config.codes, (rows, *config.grid))
    return torch.randn(rows, config.channels, *config.grid)


@pytest.mark.parametrize(
    ("file", "kind", "key"),
    [
        ("classifier_tokens", "ids", "in.tokens"),
        ("classifier_embeddings", "embeddings", "in.embeddings"),
    ],
)
def test_equals_the_published_model(golden: Path, file: str, kind: Kind, key: str) -> None:
    tensors = load_file(golden / f"{file}.safetensors")
    state = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    classes, dim = state["head.weight"].shape
    read = tensors[key].long() if kind == "ids" else tensors[key]
    height, width = read.shape[-2:]
    config = ClassifierConfig(kind, (height, width), 391, 32, classes, ViTSize(dim, 2, heads=4))
    model = TokenClassifier(config).eval()
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        logits = model(read)
    torch.testing.assert_close(logits, tensors["out.logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("grid", "codes", "channels", "patch"), SIZES)
def test_every_size_gives_finite_gradients(
    kind: Kind, grid: tuple[int, int], codes: int, channels: int, patch: int
) -> None:
    torch.manual_seed(0)
    config = tiny(kind, grid, codes=codes, channels=channels, patch=patch)
    model = TokenClassifier(config).train()
    logits = model(batch(config, rows=2))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert model.embed(batch(config, rows=1)).shape[1] == 1 + grid[0] * grid[1] // patch**2
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_batch(kind: Kind) -> None:
    torch.manual_seed(0)
    config = tiny(kind)
    model = TokenClassifier(config).eval()
    inputs = batch(config, rows=4)
    together = model(inputs)
    for row in range(4):
        torch.testing.assert_close(model(inputs[row : row + 1])[0], together[row])


def test_drop_path_and_dropout_act_in_training_alone() -> None:
    torch.manual_seed(0)
    model = TokenClassifier(tiny("ids"))
    inputs = batch(model.config, rows=8)
    assert not torch.equal(model.train()(inputs), model(inputs))
    assert torch.equal(model.eval()(inputs), model(inputs))


def test_a_reset_head_says_next_to_nothing() -> None:
    torch.manual_seed(0)
    model = TokenClassifier(tiny("ids", classes=500))
    model.reset_head()
    assert float(model.head.weight.detach().std()) == pytest.approx(2e-5, rel=0.2)
    assert float(model.eval()(batch(model.config, rows=4)).abs().max().detach()) < 1e-3


def test_refuses_what_does_not_fit() -> None:
    ids, maps = TokenClassifier(tiny("ids")), TokenClassifier(tiny("embeddings"))
    with pytest.raises(InvalidInputError, match="embeddings"):
        maps(batch(ids.config, rows=1))
    with pytest.raises(InvalidInputError, match="crop"):
        ids(torch.zeros(1, 6, 6, dtype=torch.int64))
    with pytest.raises(InvalidInputError, match="does not divide"):
        TokenClassifier(tiny("ids", (9, 8)))
    with pytest.raises(InvalidInputError, match="classes"):
        tiny("ids", classes=0)
    with pytest.raises(InvalidInputError, match="drop_path"):
        ClassifierConfig("ids", (8, 8), 64, 16, 7, TINY, drop_path=1.0)
