"""The tokenizer's trainer: what it writes, resuming, ranks, and the codebook's upkeep."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from services.errors import InvalidInputError
from services.stream.batch import StreamBatch
from services.tokens.tokenizer import load_tokenizer
from services.tokens.vqgan import VQGANConfig
from tests.trainers.picture_runs import (
    CODES,
    SIDE,
    TRAIN,
    place,
    tokenizer_run,
    train_other_rank,
    train_rank,
    vqgan_run,
    write_pictures,
)
from tests.trainers.runs import recorded
from tests.trainers.test_loop import stops_after
from trainers.figures import read_curve
from trainers.options import parse
from trainers.recipes.tokenizer import RECIPES
from trainers.recipes.tokenizer_vqgan import RECIPES as VQGAN_RECIPES
from trainers.tokenizer_config import TokenizerRun, VQGANRun
from trainers.tokenizer_step import (
    REPORT,
    TOKENIZER,
    TokenizerTask,
    Trainee,
    _candidates,
    _existing,
    tokenizer_worker,
)

CPU = torch.device("cpu")
PARTS = (1, 2, 4)
MAKERS: list[Any] = [tokenizer_run, vqgan_run]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("images"))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_tokenizer(out / TOKENIZER).state_dict()


def make_batch(rows: list[int], step: int = 0) -> StreamBatch:
    there = np.array(rows, np.int64)
    seeds = torch.Generator().manual_seed(4)
    table = torch.randint(256, (64, 3, SIDE, SIDE), generator=seeds, dtype=torch.uint8)
    label = torch.zeros(len(rows), dtype=torch.int64)
    weight = torch.from_numpy((there >= 0).astype(np.float32))
    inputs = table[torch.from_numpy(there)]
    epochs = np.zeros(len(rows), np.int64)
    return StreamBatch(step, 0, there, epochs, inputs, label, label, torch.ones(len(rows)), weight)


@pytest.mark.parametrize("make", MAKERS)
def test_a_run_writes_a_tokenizer_that_others_read(tmp_path: Path, images: Path, make: Any) -> None:
    run = make(tmp_path, images, epochs=4)
    # Without the discriminator, whose own loss would be part of the sum.
    figures = tokenizer_worker(replace(run, model=replace(run.model, adversarial=0.0)), place())
    tokenizer = load_tokenizer(tmp_path / TOKENIZER)
    assert (tokenizer.spec.codes, tokenizer.spec.grid_height) == (CODES, SIDE // 4)
    lengths = tokenizer.codebook.weight.norm(dim=1)
    assert torch.allclose(lengths, torch.ones(CODES), atol=1e-5) == (make is tokenizer_run)
    assert json.loads((tmp_path / REPORT).read_text())["validation_psnr_db"] == pytest.approx(
        figures["validation_psnr_db"]
    )
    assert 0 < figures["validation_code_use"] <= 1
    assert 1 <= figures["validation_perplexity"] <= CODES
    losses = [entry["loss"] for entry in recorded(tmp_path)]
    assert len(losses) == 4 * -(-TRAIN // 8)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("make", MAKERS)
def test_a_discriminator_is_heard_from_its_step_on(tmp_path: Path, images: Path, make: Any) -> None:
    run = make(tmp_path, images)
    run = replace(run, model=replace(run.model, adversarial_from=1))
    task = TokenizerTask(run, CPU)
    torch.manual_seed(0)
    model = task.build_model(fresh=True)
    assert isinstance(model, Trainee)
    assert model.discriminator is not None
    pulls = []
    for step in (0, 1):
        model.zero_grad()
        task.loss(model, make_batch([1, 2, 3], step)).backward()
        grads = [weight.grad for weight in model.discriminator.parameters()]
        assert all(grad is not None for grad in grads)
        assert any(bool(grad.any()) for grad in grads if grad is not None) == (step == 1)
        found = model.tokenizer.decoder.last_weight.grad
        assert found is not None
        pulls.append(found.clone())
    # The reconstruction's gradient, and a tenth as much of the discriminator's on top.
    extra = (pulls[1] - pulls[0]).norm() / pulls[0].norm()
    assert extra.item() == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize(
    ("make", "stop"), [(tokenizer_run, 2), (tokenizer_run, 4), (tokenizer_run, 6), (vqgan_run, 4)]
)
def test_a_stopped_run_goes_on_with_the_same_bits(
    tmp_path: Path, images: Path, make: Any, stop: int
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    tokenizer_worker(make(whole, images), place())
    tokenizer_worker(make(parted, images), place(stop=stops_after(stop)))
    assert not (parted / TOKENIZER).exists()
    tokenizer_worker(make(parted, images), place())
    one, two = weights(whole), weights(parted)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("world", [2, 3])
def test_several_ranks_train_like_one(tmp_path: Path, images: Path, world: int) -> None:
    """Also where one has more of a step's four blocks than the others. Revived codes included:
    candidates come from all ranks, in the order of the rows. Mixup, too: rows are blended inside
    their block, also where some of the step do not exist."""
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    tokenizer_worker(tokenizer_run(alone, images), place())
    threads = torch.get_num_threads()
    args = world, str(pair), str(images)
    other = mp.spawn(train_other_rank, args=args, nprocs=world - 1, join=False)
    train_rank(0, *args)
    assert any(other.join(60) for _ in range(1, world))  # true once all have ended
    torch.set_num_threads(threads)
    for ours, theirs in zip(recorded(pair), recorded(alone), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    one, two = weights(alone), weights(pair)
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)


def test_blocks_are_blended_apart_whatever_rows_do_not_exist(tmp_path: Path, images: Path) -> None:
    run = tokenizer_run(tmp_path, images)
    always = replace(run, views=replace(run.views, mixup_probability=1.0, affine_probability=0.0))
    task = TokenizerTask(always, CPU)
    whole = make_batch([3, -1, 5, 7, -1, 9, 1, 2])
    parts = [whole.part(start, start + 4) for start in (0, 4)]
    together = _existing(whole, task._moved(whole))
    apart = torch.cat([_existing(part, task._moved(part)) for part in parts])
    assert len(together) == 6
    assert torch.allclose(apart, together, atol=1e-6)


def test_rows_that_do_not_exist_teach_nothing(tmp_path: Path, images: Path) -> None:
    run = tokenizer_run(tmp_path, images)
    run = replace(run, views=replace(run.views, mixup_probability=0.0))
    torch.manual_seed(0)
    model = TokenizerTask(run, CPU).build_model(fresh=True)
    found = []
    for rows in ([3, 5, -1, 7], [3, 5, 7]):
        task = TokenizerTask(run, CPU)
        found.append(task.loss(model, make_batch(rows)).item())
        task.updated(model, step=2, total=100, world=1)
        assert int(model.use.sum()) == 3 * (SIDE // 4) ** 2
        model.use.zero_()
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    task = TokenizerTask(run, CPU)
    assert task.loss(model, make_batch([-1, -1])).item() == 0
    assert not task.evaluate(model, make_batch([-1, -1])).any()
    task.updated(model, step=2, total=100, world=1)
    assert int(model.use.sum()) == 0


@pytest.mark.parametrize("make", MAKERS)
def test_unused_codes_come_back_and_used_ones_stay(tmp_path: Path, images: Path, make: Any) -> None:
    run = make(tmp_path, images)
    torch.manual_seed(0)
    task = TokenizerTask(run, CPU)
    model = task.build_model(fresh=True)
    assert isinstance(model, Trainee)
    weight = model.tokenizer.code_vectors
    with torch.no_grad():  # all codes but the first two lie away from every picture
        away = -100 if make is vqgan_run else -1
        weight[2:] = away * weight[:2].repeat(CODES // 2 - 1, 1) + 0.01 * torch.randn(CODES - 2, 6)
    task.loss(model, make_batch([1, 2, 3, 4]))
    before = weight.detach().clone()
    if make is tokenizer_run:
        before = torch.nn.functional.normalize(before, dim=1)
    used = torch.bincount(task._seen[0].ids.flatten(), minlength=CODES) > 0
    task.updated(model, step=1, total=100, world=1)
    assert torch.allclose(weight[used], before[used], atol=1e-6)
    assert (weight[~used] - before[~used]).abs().sum(1).min() > 1e-4
    assert not model.use.any()
    late = weight.detach().clone()
    task.loss(model, make_batch([1]))
    run_end = replace(run, model=replace(run.model, revive_until=0.5))
    TokenizerTask(run_end, CPU).updated(model, step=51, total=100, world=1)
    assert torch.allclose(weight, late, atol=1e-6)


def test_candidates_are_rows_without_repetition() -> None:
    latents = torch.arange(30.0).view(10, 3)
    for most in (4, 25):
        found = _candidates(latents, most, torch.Generator().manual_seed(1), world=1)
        rows = {tuple(row.tolist()) for row in found}
        assert len(found) == len(rows) == min(most, 10)
        assert rows <= {tuple(row.tolist()) for row in latents}


def test_no_pictures_to_validate_on_is_refused(tmp_path: Path, images: Path) -> None:
    run = tokenizer_run(tmp_path, images)
    run = replace(run, pictures=replace(run.pictures, validation_fraction=0.0))
    with pytest.raises(InvalidInputError, match="no validation pictures"):
        tokenizer_worker(run, place())


@pytest.mark.parametrize(
    ("config", "recipes", "name"),
    [(TokenizerRun, RECIPES, name) for name in sorted(RECIPES)]
    + [(VQGANRun, VQGAN_RECIPES, name) for name in sorted(VQGAN_RECIPES)],
)
def test_each_recipe_makes_a_run(config: Any, recipes: Any, name: str) -> None:
    assert parse(config, recipes, [f"--recipe={name}", "--out", "x"]).out == "x"


def test_the_published_vqgan_has_the_published_sizes() -> None:
    network = VQGAN_RECIPES["vqgan-f8"]().model.network()
    assert network == VQGANConfig()


def test_a_tokenizer_is_not_taken_up_as_one_of_another_kind(tmp_path: Path, images: Path) -> None:
    tokenizer_worker(tokenizer_run(tmp_path, images), place(stop=stops_after(2)))
    with pytest.raises(InvalidInputError, match="kind is 'TokenizerRun' there, 'VQGANRun' here"):
        tokenizer_worker(vqgan_run(tmp_path, images), place())


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--model.patch", "7"], "do not fit"),
        (["--optim.smoothing", "0.1"], "it has no effect"),
        (["--pictures.validation-fraction", "1"], "from 0 to below 1"),
        (["--views.flip-probability", "2"], "outside of 0..1"),
        (["--model.encoder.width", "30"], "multiple of 4"),
    ],
)
def test_wrong_options_end_with_code_2(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(TokenizerRun, RECIPES, ["--recipe", "tokenizer-tiny", *argv])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.err + captured.out
    shown = " ".join((captured.err + captured.out).replace("│", "").split())
    assert said in shown or "does not divide" in shown


@pytest.mark.parametrize(("adversarial", "apart"), [(0.0, 1e-5), (0.1, 2e-3)])
def test_parts_of_a_step_change_nothing_but_the_adversarial_weight(
    tmp_path: Path, images: Path, adversarial: float, apart: float
) -> None:
    """That weight is each part's own, a ratio of gradients over its rows."""
    found = []
    for parts in PARTS:
        out = tmp_path / str(parts)
        run = tokenizer_run(out, images, grad_accum=parts, log_every=1)
        model = replace(run.model, adversarial=adversarial, adversarial_from=0)
        tokenizer_worker(replace(run, model=model), place())
        found.append(read_curve(out, "loss")[1])
    for losses in found[1:]:
        assert losses == pytest.approx(found[0], rel=apart)
