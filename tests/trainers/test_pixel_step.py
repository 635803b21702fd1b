"""The pixel classifier: its augmentation, what it learns, resuming, and what it leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from services.errors import FormatError, InvalidInputError
from tests.trainers.picture_runs import SIDE, place, tokenizer_run
from trainers.config import ClusterConfig
from trainers.figures import read_curve
from trainers.options import parse
from trainers.picture_config import PixelAugmentConfig, PixelRun
from trainers.pixel_step import PixelTask, centre, load_pixel_classifier, normalised, pixel_worker
from trainers.recipes.pixels import RECIPES, pixels_tiny
from trainers.tokenizer_step import tokenizer_worker

STILL = PixelAugmentConfig(flip_probability=0, crop_area=1, mix_probability=0)
CLASSES = ("above", "below")
EPOCHS = 10


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark pictures, and bright ones."""
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(60):
        low = 100 * (number % 2)
        pixels = draw.integers(low, low + 150, (SIDE, SIDE, 3)).astype(np.uint8)
        path = folder / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def run_of(out: Path, images: Path, epochs: int) -> PixelRun:
    tiny = pixels_tiny()
    return replace(
        tiny,
        out=str(out),
        pictures=replace(tiny.pictures, images=str(images)),
        order=replace(tiny.order, global_batch=16, block=4),
        model=replace(tiny.model, width=16, depth=2, heads=2, image_size=SIDE, crop=SIDE, patch=4),
        augment=STILL,
        optim=replace(tiny.optim, base_batch=16, warmup_epochs=0, base_lr=3e-3, smoothing=0),
        loop=replace(tiny.loop, epochs=epochs, validate_every=epochs, checkpoint_every=2),
        cluster=ClusterConfig(no_ray=True),
    )


def augmented(
    config: PixelAugmentConfig, rows: np.ndarray, **order: int
) -> tuple[torch.Tensor, ...]:
    tiny = pixels_tiny()
    run = replace(
        tiny,
        augment=config,
        model=replace(tiny.model, image_size=12, crop=12, patch=4),
        order=replace(tiny.order, **order) if order else tiny.order,
    )
    pictures = torch.rand(len(rows), 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return pictures, *PixelTask(run, CLASSES).augmented(pictures, rows, 3)


def test_without_augmentation_pictures_stay_and_a_mirror_is_one() -> None:
    rows = np.arange(8)
    pictures, same, partner, share = augmented(STILL, rows)
    assert torch.allclose(same, pictures, atol=1e-5)
    assert partner.tolist() == rows.tolist()
    assert share.tolist() == [1.0] * 8
    pictures, turned, *_ = augmented(replace(STILL, flip_probability=1.0), rows)
    assert torch.allclose(turned, pictures.flip(3), atol=1e-5)


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_pictures_hold_what_their_targets_say(alphas: tuple[float, float]) -> None:
    """Of black and white pictures, the mean brightness is the share of the white one's label."""
    rows, block = np.arange(16), 8
    config = replace(STILL, mix_probability=1.0, mixup_alpha=alphas[0], cutmix_alpha=alphas[1])
    tiny = pixels_tiny()
    run = replace(
        tiny,
        augment=config,
        order=replace(tiny.order, block=block, global_batch=16),
        model=replace(tiny.model, image_size=12, crop=12, patch=4),
    )
    white = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0] * 2)
    pictures = white[:, None, None, None].expand(-1, 3, 12, 12).clone()
    mixed, partner, share = PixelTask(run, CLASSES).augmented(pictures, rows, 0)
    assert (partner // block == torch.arange(16) // block).all()  # inside a block
    wanted = share * white + (1 - share) * white[partner]
    assert torch.allclose(mixed.mean((1, 2, 3)), wanted, atol=1e-4)
    assert (share < 1).any()


def test_a_row_is_augmented_alike_in_every_batch() -> None:
    """Draws belong to the row, so no number of workers changes them."""
    rows = np.array([7, 2, 9, 4, 1, 3, 8, 5])
    whole = augmented(PixelAugmentConfig(), rows, block=4, global_batch=8)
    half = [whole[0][4:], *augmented_part(whole[0][4:], rows[4:])]
    assert torch.allclose(whole[1][4:], half[1], atol=1e-6)
    assert torch.equal(whole[3][4:], half[3])


def augmented_part(pictures: torch.Tensor, rows: np.ndarray) -> tuple[torch.Tensor, ...]:
    tiny = pixels_tiny()
    run = replace(
        tiny,
        augment=PixelAugmentConfig(),
        model=replace(tiny.model, image_size=12, crop=12, patch=4),
        order=replace(tiny.order, block=4, global_batch=8),
    )
    return PixelTask(run, CLASSES).augmented(pictures, rows, 3)


def test_validation_reads_the_centre() -> None:
    pictures = torch.zeros(2, 3, 8, 8)
    pictures[:, :, 2:6, 2:6] = 1
    assert torch.equal(centre(pictures, 4), normalised(torch.ones(2, 3, 4, 4)))


def test_it_learns_and_a_resumed_run_ends_the_same(images: Path, tmp_path: Path) -> None:
    whole = pixel_worker(run_of(tmp_path / "whole", images, EPOCHS), place())
    assert whole["validation_top1"] == 1
    assert whole["loss"] < 0.5  # chance is ln 2
    asked = iter(range(1, 10**6))
    stopped = pixel_worker(
        run_of(tmp_path / "cut", images, EPOCHS), place(stop=lambda: next(asked) >= 7)
    )
    assert not stopped["finished"]
    pixel_worker(run_of(tmp_path / "cut", images, EPOCHS), place())
    for figure in ("loss", "validation_loss"):
        assert read_curve(tmp_path / "cut", figure) == read_curve(tmp_path / "whole", figure)
    model, run, classes = load_pixel_classifier(str(tmp_path / "whole"), torch.device("cpu"))
    assert run == run_of(tmp_path / "whole", images, EPOCHS)
    assert classes == ("class0", "class1")
    assert not model.training


def mixed_run(out: Path, images: Path, parts: int) -> PixelRun:
    run = run_of(out, images, 2)
    return replace(
        run,
        augment=PixelAugmentConfig(),
        model=replace(run.model, drop_path=0.0),
        loop=replace(run.loop, precision="float32", grad_accum=parts),
    )


def test_parts_of_a_step_mix_the_same_pairs(images: Path, tmp_path: Path) -> None:
    """A run may be resumed with another number of parts, so they change nothing that is learned."""
    losses = {}
    for parts in (1, 2, 4):
        pixel_worker(mixed_run(tmp_path / str(parts), images, parts), place())
        losses[parts] = read_curve(tmp_path / str(parts), "loss")[1]
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)
    assert losses[4] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("parts", [3, 8])
def test_parts_that_would_cut_blocks_are_refused_where_pictures_are_mixed(parts: int) -> None:
    run, empty = pixels_tiny(), Path()
    with pytest.raises(InvalidInputError, match=r"loop\.grad_accum is .* divisor of the 4 blocks"):
        mixed_run(empty, empty, parts)
    still = replace(run, augment=STILL, loop=replace(run.loop, grad_accum=parts))
    assert still.loop.grad_accum == parts
    moved = tokenizer_run(empty, empty)  # of 4 blocks, with Mixup
    with pytest.raises(InvalidInputError, match=r"divisor of the 4 blocks"):
        replace(moved, loop=replace(moved.loop, grad_accum=parts))


def test_a_model_of_another_kind_is_refused(images: Path, tmp_path: Path) -> None:
    tokenizer_worker(tokenizer_run(tmp_path / "t", images, epochs=1), place())
    with pytest.raises(FormatError, match="holds the model of TokenizerRun"):
        load_pixel_classifier(str(tmp_path / "t"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model.crop 300", "model.crop is 300"),
        ("--model.patch 15", "divisor of model.crop"),
        ("--model.drop-path 1", "model.drop_path"),
        ("--augment.crop-area 0", "crop area"),
        ("--augment.flip-probability 2", "augment.flip_probability"),
        ("--cluster.share-lag 4", "no stream of tokens"),
        ("--cluster.head-start 4", "no stream of tokens"),
        ("--cluster.fetch-tasks 4", "no stream of tokens"),
        ("--pictures.images ''", "pictures.images"),
    ],
)
def test_options_that_make_no_run_are_refused(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [word.strip("'") for word in words.split()]
    with pytest.raises((SystemExit, InvalidInputError)) as ended:
        parse(PixelRun, RECIPES, ["--recipe", "pixels-base", *argv])
    captured = capsys.readouterr()
    text = " ".join((str(ended.value) + captured.err + captured.out).replace("│", " ").split())
    assert said in text


def test_recipes_share_the_budget_of_the_token_classifiers() -> None:
    from trainers.recipes.classify import RECIPES as TOKENS

    for pixels, tokens in (("pixels-base", "scratch-base"), ("pixels-tiny", "scratch-tiny")):
        mine, theirs = RECIPES[pixels](), TOKENS[tokens]()
        assert mine.optim == theirs.optim
        assert mine.loop == theirs.loop
        assert mine.model.encoder == theirs.model.encoder
        assert mine.order.global_batch == theirs.order.global_batch
        assert json.loads(mine.to_json())["kind"] == "PixelRun"
