from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import InvalidInputError
from trainers.models.classifier import ClassifierConfig, TokenClassifier
from trainers.models.mtm import MTM, MTMConfig
from trainers.models.segmenter import SegmenterConfig, TokenSegmenter, even_depths
from trainers.models.sizes import ViTSize
from trainers.optim import build_adamw, cosine_factor, decays, parameter_groups, peak_rate

TINY = ViTSize(dim=16, depth=3, heads=2)


def mtm() -> MTM:
    return MTM(MTMConfig((8, 8), 64, 16, TINY, TINY))


def classifier() -> TokenClassifier:
    return TokenClassifier(ClassifierConfig("ids", (8, 8), 64, 16, 5, TINY))


@pytest.mark.parametrize(
    ("base", "batch", "base_batch", "power", "rate"),
    [
        (1.5e-4, 4096, 256, 1.0, 2.4e-3),  # MTM
        (7.5e-4, 1024, 512, 1.0, 1.5e-3),  # from scratch, as the paper says
        (1e-3, 1024, 64, 0.5, 1e-3 * 1024**0.5 / 8),  # fine-tuning
        (6e-5, 16, 16, 0.0, 6e-5),  # segmentation
        (1e-3, 128, 128, 0.0, 1e-3),  # TokenAdapt
    ],
)
def test_one_rule_gives_every_published_rate(
    base: float, batch: int, base_batch: int, power: float, rate: float
) -> None:
    assert peak_rate(base, batch, base_batch, power) == pytest.approx(rate, rel=1e-12)


@settings(deadline=None, max_examples=100)
@given(warmup=st.integers(0, 200), rest=st.integers(1, 1000), floor=st.floats(0, 1), step=st.data())
def test_the_rate_rises_then_falls_to_the_floor(
    warmup: int, rest: int, floor: float, step: st.DataObject
) -> None:
    total = warmup + rest
    at = step.draw(st.integers(0, total))
    factor = cosine_factor(at, total, warmup, floor)
    following = cosine_factor(at + 1, total, warmup, floor)
    assert 0.0 <= factor <= 1.0
    assert (following > factor) if at < warmup else (following <= factor)
    assert cosine_factor(warmup, total, warmup, floor) == pytest.approx(1.0)
    assert cosine_factor(total, total, warmup, floor) == pytest.approx(floor)
    assert cosine_factor(0, total, warmup, floor) > 0.0


def test_half_way_is_half_way() -> None:
    assert cosine_factor(60, 100, 20) == pytest.approx(0.5)
    assert cosine_factor(60, 100, 20, floor=0.2) == pytest.approx(0.6)
    assert cosine_factor(3, 4, 8) == pytest.approx(4 / 9)  # a run that ends in its warm-up


@pytest.mark.parametrize("model", [mtm(), classifier()])
def test_only_matrices_decay(model: torch.nn.Module) -> None:
    added = ("bias", "norm", "ln", "cls_token", "mask_token", "pos_embed")
    for name, parameter in model.named_parameters():
        assert decays(name, parameter) != any(part in name.lower() for part in added), name


@pytest.mark.parametrize("model", [mtm(), classifier()])
@pytest.mark.parametrize("layer_decay", [1.0, 0.65])
def test_groups_hold_each_parameter_once(model: torch.nn.Module, layer_decay: float) -> None:
    groups = parameter_groups(model, 0.1, layer_decay)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    keys = [(group["lr_scale"], group["weight_decay"]) for group in groups]
    assert len(set(keys)) == len(keys)
    if layer_decay == 1.0:
        assert sorted(keys) == [(1.0, 0.0), (1.0, 0.1)]


def test_rates_fall_towards_the_input() -> None:
    model = classifier()
    groups = parameter_groups(model, 0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    scales = {name: scale[id(p)] for name, p in model.named_parameters()}
    assert scales["head.weight"] == scales["norm.bias"] == 1.0
    assert scales["blocks.2.norm1.weight"] == 0.5
    assert scales["blocks.0.mlp.fc1.weight"] == 0.125
    assert scales["token_emb.word_embeddings.weight"] == scales["pos_embed"] == 0.0625
    assert scales["patch_embed.proj.weight"] == scales["cls_token"] == 0.0625


@pytest.mark.parametrize("depth", [4, 6])
def test_a_segmenters_heads_learn_at_the_full_rate(depth: int) -> None:
    size = ViTSize(dim=16, depth=depth, heads=2)
    encoder = ClassifierConfig("ids", (8, 8), 64, 16, 5, size)
    model = TokenSegmenter(
        SegmenterConfig(encoder, even_depths(depth), pixels=(2, 2), decoder=8, auxiliary=8)
    )
    groups = parameter_groups(model, 0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        part, *rest = name.split(".")
        if part != "encoder":
            expected = 1.0
        else:
            expected = 0.5 ** (depth - int(rest[1]) if rest[0] == "blocks" else depth + 1)
        assert scale[id(parameter)] == expected, name


def test_a_wrapped_model_has_the_same_layers() -> None:
    wrapped = torch.nn.ModuleDict({"encoder": classifier(), "decode": torch.nn.Linear(4, 4)})
    alone = {g["lr_scale"] for g in parameter_groups(classifier(), 0.1, layer_decay=0.5)}
    assert {g["lr_scale"] for g in parameter_groups(wrapped, 0.1, layer_decay=0.5)} == alone


def test_adamw_trains_what_is_not_frozen_and_comes_back_from_its_state() -> None:
    model = classifier()
    model.token_emb.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_adamw(model, 0.01, (0.9, 0.95), weight_decay=0.1, layer_decay=0.5)
    assert {g["lr"] for g in optimizer.param_groups} == {0.01 * 0.5**i for i in range(5)}
    assert all(g["betas"] == (0.9, 0.95) for g in optimizer.param_groups)
    model(torch.randint(64, (2, 8, 8))).square().sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("token_emb"), name
    other = build_adamw(model, 1.0, (0.9, 0.999), weight_decay=0.1, layer_decay=0.5)
    other.load_state_dict(optimizer.state_dict())
    for mine, theirs in zip(other.param_groups, optimizer.param_groups, strict=True):
        assert {k: v for k, v in mine.items() if k != "params"} == {
            k: v for k, v in theirs.items() if k != "params"
        }


def test_refuses_what_would_not_train() -> None:
    for layer_decay, weight_decay in ((0.0, 0.1), (1.5, 0.1), (0.65, -1.0)):
        with pytest.raises(InvalidInputError, match="layer_decay"):
            parameter_groups(classifier(), weight_decay, layer_decay)
    with pytest.raises(InvalidInputError, match="batch"):
        peak_rate(1e-3, 0, 64, 0.5)
