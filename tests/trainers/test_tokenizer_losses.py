"""The perceptual and adversarial terms: parity with torchvision, and who gets gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from services.errors import FormatError, InvalidInputError, NotFoundError
from tests.trainers.picture_runs import tokenizer_run
from trainers.tokenizer_losses import (
    Discriminator,
    Perceptual,
    adaptive_weight,
    hinge_loss,
    least_side,
    load_perceptual,
)

TAPS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 in torchvision's features


@pytest.fixture(scope="module")
def vgg() -> torch.nn.Sequential:
    torch.manual_seed(3)
    return torchvision.models.vgg16(weights=None).features.eval()


@pytest.fixture(scope="module")
def state(vgg: torch.nn.Sequential) -> dict[str, Tensor]:
    return {f"features.{name}": value for name, value in vgg.state_dict().items()}


@pytest.fixture(scope="module")
def perceptual(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Perceptual:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save({**state, "classifier.0.weight": torch.zeros(2, 2)}, path)
    return load_perceptual(str(path))


@torch.no_grad()
def test_the_distance_is_lpips_of_torchvisions_network(
    vgg: torch.nn.Sequential, perceptual: Perceptual
) -> None:
    one, other = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    a, b = (one - mean) / std, (other - mean) / std
    wanted = torch.zeros(2)
    for index, layer in enumerate(vgg):
        a, b = layer(a), layer(b)
        if index in TAPS:
            gap = F.normalize(a, dim=1, eps=1e-5) - F.normalize(b, dim=1, eps=1e-5)
            wanted += gap.square().mean(1).mean((1, 2))
    torch.testing.assert_close(perceptual(one, other), wanted, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(perceptual(one, one), torch.zeros(2))


def test_gradients_reach_pictures_and_no_weight(perceptual: Perceptual) -> None:
    made = torch.rand(1, 3, 16, 16, requires_grad=True)
    perceptual(made, torch.rand(1, 3, 16, 16)).sum().backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in perceptual.parameters())


@torch.no_grad()
def test_names_of_the_lpips_package_give_the_same_network_and_its_channel_weights(
    state: dict[str, Tensor], perceptual: Perceptual, tmp_path: Path
) -> None:
    slices = {0: 1, 2: 1, 5: 2, 7: 2, 10: 3, 12: 3, 14: 3, 17: 4, 19: 4, 21: 4}
    renamed = {}
    for name, value in state.items():
        _, index, kind = name.split(".")
        renamed[f"net.slice{slices.get(int(index), 5)}.{index}.{kind}"] = value
    lins = {
        f"lin{level}.model.1.weight": torch.full((1, width, 1, 1), 3 / width)
        for level, width in enumerate((64, 128, 256, 512, 512))
    }
    save_file({**renamed, **lins}, tmp_path / "lpips.safetensors")
    model = load_perceptual(str(tmp_path / "lpips.safetensors"))
    one, other = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(model(one, other), 3 * perceptual(one, other))


def test_other_files_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        load_perceptual(str(tmp_path / "none.pth"))
    less = {name: value for name, value in state.items() if name != "features.28.bias"}
    torch.save(less, tmp_path / "less.pth")
    with pytest.raises(FormatError, match=r"lacks features\.28\.bias"):
        load_perceptual(str(tmp_path / "less.pth"))
    torch.save({**state, "features.0.weight": torch.zeros(1)}, tmp_path / "odd.pth")
    with pytest.raises(FormatError, match=r"features\.0\.weight is \(1,\)"):
        load_perceptual(str(tmp_path / "odd.pth"))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(FormatError, match="weights_only=False"):
        load_perceptual(str(tmp_path / "module.pth"))


@settings(deadline=None, max_examples=10)
@given(depth=st.integers(1, 3), seed=st.integers(0, 100))
def test_a_score_is_of_its_own_picture(depth: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = Discriminator(4, depth)
    pictures = torch.rand(3, 3, least_side(depth), least_side(depth))
    together = model(pictures)
    assert min(together.shape[2:]) >= 1
    alone = torch.cat([model(picture[None]) for picture in pictures])
    torch.testing.assert_close(together, alone)


def test_frozen_scores_are_the_same_and_teach_the_pictures_alone() -> None:
    model, made = Discriminator(4, 1), torch.rand(2, 3, 16, 16, requires_grad=True)
    torch.testing.assert_close(model.frozen(made), model(made))
    model.frozen(made).sum().backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in model.parameters())


def test_hinge_is_zero_past_the_margins_only() -> None:
    assert hinge_loss(torch.tensor([1.0, 5.0]), torch.tensor([-1.0, -2.0])).item() == 0
    assert hinge_loss(torch.tensor([0.0]), torch.tensor([0.0])).item() == 1
    assert hinge_loss(torch.tensor([-1.0]), torch.tensor([1.0])).item() == 2


@settings(deadline=None, max_examples=20)
@given(scale=st.floats(0.01, 100), seed=st.integers(0, 1000))
def test_both_terms_pull_alike(scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one = torch.randn(50, generator=generator)
    other = scale * torch.randn(50, generator=generator)
    pulled = adaptive_weight(one, other) * other
    assert pulled.norm().item() == pytest.approx(one.norm().item(), rel=1e-2)
    assert adaptive_weight(one, torch.zeros(50)).isfinite()


def test_a_discriminator_learns_to_tell_pictures_apart() -> None:
    torch.manual_seed(0)
    model = Discriminator(8, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    real, made = torch.rand(8, 3, 8, 8), torch.rand(8, 3, 1, 1).expand(8, 3, 8, 8)
    losses = []
    for _ in range(40):
        loss = hinge_loss(model(real), model(made))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 < losses[0]


def test_what_cannot_be_trained_is_refused_at_once(tmp_path: Path) -> None:
    run = tokenizer_run(tmp_path, tmp_path)
    for change, said in (
        ({"perceptual": 0.1}, "perceptual_weights"),
        ({"perceptual_weights": "vgg.pth"}, "perceptual_weights"),
        ({"discriminator_depth": 3}, "32 pixels"),
        ({"adversarial": -0.1}, "at least 0"),
        ({"discriminator_width": 0}, "at least 1"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            replace(run.model, **change)
    with pytest.raises(InvalidInputError, match=r"loop\.compile"):
        replace(run, loop=replace(run.loop, compile=True))
