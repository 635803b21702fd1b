"""UperNet on a ViT: shapes, where its encoder comes from, and that rows leave each other alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from services.errors import FormatError, InvalidInputError
from trainers.models.classifier import ClassifierConfig, TokenClassifier
from trainers.models.embed import resize_positions
from trainers.models.mtm import MTM, MTMConfig
from trainers.models.segmenter import SegmenterConfig, TokenSegmenter, enlarged, even_depths
from trainers.models.sizes import ViTSize
from trainers.models.weights import read_state

HEADS = ("decode_head", "auxiliary_head")
ENCODER = ViTSize(16, 4, 2)
CONFIG = SegmenterConfig(
    encoder=ClassifierConfig("ids", (8, 12), 11, 6, 5, ENCODER, token_dropout=0.0, drop_path=0.0),
    depths=(1, 2, 3, 4),
    pixels=(4, 2),
    decoder=12,
    auxiliary=8,
    dropout=0.0,
)


def ids(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(11, (rows, 8, 12), generator=torch.Generator().manual_seed(seed))


def made(config: SegmenterConfig = CONFIG, seed: int = 0) -> TokenSegmenter:
    torch.manual_seed(seed)
    return TokenSegmenter(config).eval()


def test_every_pixel_gets_a_score_for_every_class() -> None:
    found = made()(ids(3))
    assert CONFIG.size == (32, 24)
    assert found.logits.shape == (3, 5, 16, 24)  # four times the 4 x 6 patches
    assert found.auxiliary.shape == (3, 5, 2, 3)
    assert enlarged(found.logits, CONFIG.size).shape == (3, 5, 32, 24)


def test_embeddings_are_read_as_well() -> None:
    config = replace(CONFIG, encoder=replace(CONFIG.encoder, input="embeddings"))
    assert made(config)(torch.randn(2, 6, 8, 12)).logits.shape == (2, 5, 16, 24)


def test_a_row_comes_out_the_same_in_any_batch_while_training_too() -> None:
    model = made().train()
    whole = model(ids(6)).logits
    for rows in ([0], [4, 1], [5, 5, 2]):
        torch.testing.assert_close(model(ids(6)[rows]).logits, whole[rows], rtol=1e-4, atol=1e-5)
    kinds = {type(module) for module in model.modules()}
    assert not any(issubclass(kind, nn.modules.batchnorm._BatchNorm) for kind in kinds)


def test_every_parameter_learns() -> None:
    model = made().train()
    found = model(ids(2))
    (found.logits.square().sum() + found.auxiliary.square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_prediction_depends_on_the_place_it_is_made_for() -> None:
    """The gradient of a pixel's score is larger on the tokens around it than far from it."""
    config = replace(CONFIG, encoder=replace(CONFIG.encoder, input="embeddings"))
    near, far = 0.0, 0.0
    for seed in range(4):
        model = made(config, seed)
        inputs = torch.randn(1, 6, 8, 12, requires_grad=True)  # drawn after the model's seed
        model(inputs).logits[0, 2, 2, 4].backward()
        assert inputs.grad is not None
        size = inputs.grad.abs().sum(1)[0]  # (8, 12); the pixel lies over the tokens 1, 2
        near, far = near + float(size[:3, :5].mean()), far + float(size[5:, 8:].mean())
    assert near > 1.8 * far


def pretrained(kind: str) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """A state of another grid, and its patches."""
    torch.manual_seed(3)
    grid = (8, 8)
    if kind == "mtm":
        model: nn.Module = MTM(MTMConfig(grid, 11, 6, ENCODER, decoder=ViTSize(8, 1, 2)))
    elif kind == "classifier":
        model = TokenClassifier(ClassifierConfig("ids", grid, 11, 6, 7, ENCODER))
    else:
        encoder = replace(CONFIG.encoder, grid=grid, classes=9)
        model = TokenSegmenter(replace(CONFIG, encoder=encoder))
    return dict(model.state_dict()), (4, 4)


@pytest.mark.parametrize("kind", ["mtm", "classifier", "segmenter"])
def test_the_encoder_starts_from_other_models(kind: str) -> None:
    state, patches = pretrained(kind)
    model, before = made(), made().state_dict()
    model.start_from(state)
    prefix = "encoder." if kind == "segmenter" else ""
    for name, value in model.state_dict().items():
        inner = name.removeprefix("encoder.")
        if not name.startswith("encoder."):
            assert torch.equal(value, before[name]), name  # neck, decoder and heads are new
        elif inner == "pos_embed":
            wanted = resize_positions(state[prefix + inner], patches, (4, 6))
            torch.testing.assert_close(value, wanted)
        else:
            assert torch.equal(value, state[prefix + inner]), name


def test_weights_that_do_not_fit_are_named_and_leave_the_model_as_it_was() -> None:
    model, before = made(), made().state_dict()
    state, _ = pretrained("mtm")
    wrong: dict[str, Any] = {**state, "blocks.1.attn.qkv.weight": torch.zeros(2, 2)}
    for spoiled in (wrong, {k: v for k, v in state.items() if not k.startswith("token_emb")}, {}):
        with pytest.raises(FormatError):
            model.start_from(spoiled)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_of_mmsegmentation_is_called_one(tmp_path: Path) -> None:
    """Its names and its file's form, with an encoder of this very shape."""
    state, _ = pretrained("classifier")
    theirs = {f"backbone.{name}": value for name, value in state.items()}
    heads = {f"{part}.conv_seg.weight": torch.zeros(9, 8, 1, 1) for part in HEADS}
    file = tmp_path / "iter_160000.pth"
    torch.save({"meta": {"iter": 160_000}, "state_dict": theirs | heads}, file)
    model, before = made(), made().state_dict()
    with pytest.raises(FormatError, match=r"by mmsegmentation .*Give the model that it started"):
        model.start_from(read_state(file))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("blocks", "depths"), [(12, (3, 6, 9, 12)), (24, (6, 12, 18, 24)), (4, (1, 2, 3, 4))]
)
def test_maps_are_taken_at_even_depths(blocks: int, depths: tuple[int, ...]) -> None:
    assert even_depths(blocks) == depths


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"depths": (1, 1, 2, 4)}, "four, rising"),
        ({"depths": (0, 1, 2, 4)}, "four, rising"),
        ({"depths": (1, 2, 3, 3)}, "up to the last"),
        ({"decoder": 0}, "must be at least 1"),
        ({"pixels": (0, 4)}, "must be at least 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"encoder": replace(CONFIG.encoder, grid=(2, 2))}, "would be empty"),
    ],
)
def test_sizes_that_make_no_model_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        replace(CONFIG, **changes)
