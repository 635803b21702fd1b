from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from services.errors import FormatError, NotFoundError
from trainers.models.classifier import ClassifierConfig, TokenClassifier
from trainers.models.embed import resize_positions, sincos_positions
from trainers.models.mtm import MTM, MTMConfig
from trainers.models.sizes import ViTSize
from trainers.models.weights import (
    dump_published,
    load_published,
    published_state,
    read_state,
    transfer,
)

TINY = ViTSize(dim=16, depth=2, heads=2)


def mtm(grid: tuple[int, int] = (8, 8), codes: int = 64) -> MTM:
    model = MTM(MTMConfig(grid, codes, 16, TINY, TINY))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def classifier(
    grid: tuple[int, int] = (8, 8), classes: int = 5, codes: int = 64
) -> TokenClassifier:
    return TokenClassifier(ClassifierConfig("ids", grid, codes, 16, classes, TINY))


def same(model: nn.Module, state: dict[str, Tensor], *skipped: str) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[k], v) for k, v in state.items() if not k.startswith(skipped))


@pytest.mark.parametrize("make", [mtm, classifier])
def test_a_checkpoint_comes_back_as_it_went(
    tmp_path: Path, make: Callable[[], MTM | TokenClassifier]
) -> None:
    model, other = make(), make()
    path = tmp_path / "model.pth"
    path.write_bytes(dump_published(model))
    load_published(other, read_state(path))
    assert same(other, model.state_dict())


def test_reads_what_the_published_scripts_save(tmp_path: Path, golden: Path) -> None:
    tensors = load_file(golden / "mtm.safetensors")
    state = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    carried = {"conversion_function.0.weight": torch.zeros(2, 2), "epoch": torch.tensor(3)}
    wrapped = {f"module.{name}": value for name, value in (state | carried).items()}
    averaged = {name: value + 1 for name, value in state.items()}
    path = tmp_path / "checkpoint.pth"
    torch.save(
        {"model": wrapped, "model_ema": averaged, "epoch": 3, "args": Namespace(lr=0.1)}, path
    )
    model = MTM(MTMConfig((28, 28), 391, 32, ViTSize(48, 2, 4), ViTSize(32, 2, 4)))
    read = read_state(path)
    with pytest.raises(FormatError, match="epoch has no place"):
        load_published(model, read)
    del read["epoch"]
    load_published(model, read)
    assert same(model, state)
    assert set(published_state(model)) == set(state)
    load_published(model, read_state(path, ema=True))
    assert torch.equal(model.cls_token, state["cls_token"] + 1)


def test_reads_safetensors_and_plain_state_dicts(tmp_path: Path) -> None:
    state = published_state(classifier())
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "flat.ckpt")
    torch.save({"state_dict": state}, tmp_path / "lightning.ckpt")
    for name in ("model.safetensors", "flat.ckpt", "lightning.ckpt"):
        read = read_state(tmp_path / name)
        assert set(read) == set(state)
        assert all(torch.equal(read[k], v) for k, v in state.items())


class Payload:
    """What a hostile file would hold: an object whose loading runs a function."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_never_runs_code_from_a_file(tmp_path: Path) -> None:
    path, trace = tmp_path / "model.pth", tmp_path / "ran"
    torch.save({"model": {"head.weight": torch.zeros(1)}, "args": Payload(trace)}, path)
    with pytest.raises(FormatError, match="refused"):
        read_state(path)
    assert not trace.exists()


def test_says_what_a_file_lacks(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": published_state(classifier())}, path)
    with pytest.raises(FormatError, match="model_ema"):
        read_state(path, ema=True)
    torch.save([1, 2], path)
    with pytest.raises(FormatError, match="no tensors"):
        read_state(path)
    with pytest.raises(NotFoundError):
        read_state(tmp_path / "none.pth")


def test_a_misfit_is_named_and_changes_nothing() -> None:
    model = classifier()
    before = published_state(model)
    state = published_state(classifier(codes=32))
    del state["norm.bias"]
    state["extra"] = torch.zeros(1)
    with pytest.raises(FormatError) as caught:
        load_published(model, state)
    message = str(caught.value)
    for part in ("norm.bias is missing", "extra has no place", "is (32, 16), the model's is (64,"):
        assert part in message
    assert same(model, before)


def test_transfer_takes_the_encoder_and_starts_the_head_anew() -> None:
    torch.manual_seed(0)
    source, target = mtm(), classifier(classes=50)
    target.head.bias.data.fill_(1.0)
    transfer(target, published_state(source))
    shared = {k: v for k, v in source.state_dict().items() if k in target.state_dict()}
    assert {k.partition(".")[0] for k in shared} == {
        *("token_emb", "patch_embed", "cls_token", "pos_embed", "blocks", "norm")
    }
    assert same(target, shared)
    assert float(target.head.weight.detach().abs().max()) <= 4e-5
    assert not target.head.bias.any()
    assert target.pos_embed.requires_grad


def test_transfer_moves_a_classifier_to_other_classes_and_grids() -> None:
    source, target = classifier((8, 8), classes=5), classifier((12, 16), classes=9)
    transfer(target, published_state(source))
    assert same(target, published_state(source), "head.", "pos_embed")
    expected = resize_positions(source.pos_embed.detach(), (4, 4), (6, 8))
    torch.testing.assert_close(target.pos_embed.detach(), expected)
    back = classifier((8, 8))
    transfer(back, published_state(target), source_grid=(6, 8))
    assert back.pos_embed.shape == source.pos_embed.shape
    with pytest.raises(FormatError, match="source_grid"):
        transfer(back, published_state(target))
    with pytest.raises(FormatError, match=r"cls_token is missing"):
        transfer(back, {"norm.bias": torch.zeros(16)})


def test_an_mtm_on_another_grid_keeps_exact_fixed_positions() -> None:
    source, target = mtm((8, 8)), mtm((16, 8))
    load_published(target, published_state(source))
    assert torch.equal(target.pos_embed, sincos_positions((8, 4), TINY.dim))
    expected = resize_positions(source.decoder_pos_embed_learned.detach(), (4, 4), (8, 4))
    torch.testing.assert_close(target.decoder_pos_embed_learned.detach(), expected)
    turned, state = mtm((8, 16)), published_state(target)
    load_published(turned, state, source_grid=(8, 4))
    assert torch.equal(turned.pos_embed, sincos_positions((4, 8), TINY.dim))
    for name in ("pos_embed", "decoder_pos_embed"):
        del state[name]
    load_published(target, state)


def test_resized_positions_keep_the_class_token_and_a_flat_table() -> None:
    table = torch.cat([torch.full((1, 1, 4), 7.0), torch.full((1, 6, 4), 3.0)], dim=1)
    resized = resize_positions(table, (2, 3), (5, 4))
    assert resized.shape == (1, 21, 4)
    torch.testing.assert_close(resized[:, 0], table[:, 0])
    torch.testing.assert_close(resized[:, 1:], torch.full((1, 20, 4), 3.0))


def test_fixed_positions_tell_columns_and_rows_apart() -> None:
    table = sincos_positions((3, 5), 8)[0]
    assert table.shape == (16, 8)
    assert not table[0].any()
    grid = table[1:].view(3, 5, 8)
    assert torch.equal(grid[0, :, :4], grid[2, :, :4])  # the first half is the column's
    assert torch.equal(grid[:, 0, 4:], grid[:, 4, 4:])
    assert len(table[1:].unique(dim=0)) == 15
