"""On a GPU, TokenAdapt on half of each batch adds at most 4 % to an MTM step of a ViT-B (paper:
8 %), the whole recipe at most 6 %; f, A, g alone in images a second and as a share of the peak.

Draws its own ids and weights, and needs no Ray: torch, timm, and of this project's dependencies
pydantic, betterproto2, safetensors, tyro and rich. Where they are not installed:

    pip install --target gpu-packages --python-version 3.12 --only-binary :all: \
        pydantic 'betterproto2[pydantic]' tyro safetensors
    PYTHONPATH=.:gpu-packages python benchmarks/tokenadapt_gpu.py --json tokenadapt_gpu.json

Peer of each step: the same step on ids that lie ready on the device. Without a GPU it runs the same
code on sizes that a CPU bears, which shows that it works and no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import harness
import numpy as np
import torch
from torch import Tensor

from services.augment.augmenter import Augmenter
from services.augment.config import RecipeConfig
from services.augment.recipe import mtm
from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig
from services.plan.draws import Draws
from services.tokens.devices import on_device
from services.tokens.vitvqgan import ViTVQGAN, ViTVQGANConfig
from services.wire.seit import v1 as wire
from trainers.models.mtm import MTM, MTMConfig, sample_masks
from trainers.models.sizes import SIZES, ViTSize

BLOCK = 128
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bfloat16 operations a second, of the makers' data sheets, by a part of the name."""


@dataclass(frozen=True)
class Sizes:
    """What is measured: of the paper on a GPU, of a toy on a CPU."""

    batch: int
    grid: int
    crop: int
    encoder: ViTSize
    decoder: ViTSize
    adapt: dict[str, int]
    tokenizer: ViTVQGANConfig
    rounds: int
    steps: int


@dataclass(frozen=True)
class Options(harness.Options):
    """What this benchmark is asked besides."""

    batch: int = 512
    """Rows of a step on the GPU."""


def sizes(options: Options, cuda: bool) -> Sizes:
    if cuda:
        return Sizes(
            batch=options.batch,
            grid=32,
            crop=28,
            encoder=SIZES["base"],
            decoder=ViTSize(512, 4, 16),
            adapt={"dim": 384, "heads": 6, "mlp": 1536},
            tokenizer=ViTVQGANConfig(),
            rounds=3 if options.quick else 7,
            steps=5 if options.quick else 20,
        )
    from services.tokens.vitvqgan import ViTSize as TokenizerSize

    small = TokenizerSize(32, 1, 1, 32)
    return Sizes(
        batch=BLOCK,
        grid=8,
        crop=6,
        encoder=ViTSize(64, 1, 2),
        decoder=ViTSize(64, 1, 2),
        adapt={"dim": 64, "heads": 1, "mlp": 128},
        tokenizer=ViTVQGANConfig((64, 64), 8, small, small, codes=64),
        rounds=3,
        steps=1,
    )


class Bench:
    """Models, ids and recipes on one device."""

    def __init__(self, size: Sizes, device: torch.device) -> None:
        torch.manual_seed(0)
        self.size, self.device = size, device
        self.spec = wire.TokenSpec(
            grid_height=size.grid, grid_width=size.grid, codes=391, channels=32,
            image_height=8 * size.grid, image_width=8 * size.grid,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        shape = (size.batch, size.grid, size.grid)
        self.ids = torch.randint(391, shape, generator=generator, dtype=torch.int32)
        self.codebook = torch.randn(391, 32, generator=generator)
        self.labels = torch.zeros(size.batch, dtype=torch.int64)
        self.rows = np.arange(size.batch, dtype=np.int64)
        crop = (size.crop, size.crop)
        self.adapt_config = TokenAdaptConfig(
            (size.grid, size.grid), crop, channels=32, codes=391, **size.adapt
        )
        self.adapt_state = TokenAdapt(self.adapt_config).state_dict()
        self.recipe = mtm(self.spec, crop)
        config = MTMConfig(crop, 391, 32, size.encoder, size.decoder)
        self.config, self.model = config, MTM(config).to(device).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), 1e-4, betas=(0.9, 0.95), fused=True
        )

    def augmenter(self, recipe: RecipeConfig, device: torch.device) -> Augmenter:
        """A recipe with networks of its own, all of the same weights."""
        model = TokenAdapt(self.adapt_config)
        model.load_state_dict(self.adapt_state)
        return Augmenter(recipe, self.spec, self.codebook, model).eval().to(device)

    def augmented(self, augment: Augmenter, epoch: int) -> Tensor:
        """The ids of a batch from the host through a recipe, as in the trainer's own process."""
        ids = on_device(self.ids, self.device)
        draws = Draws(0, epoch, self.rows)
        return augment(ids, self.labels, draws, blocks=max(1, len(ids) // BLOCK)).inputs

    def step(self, ids: Tensor, epoch: int) -> None:
        """Forward, backward and update, in bfloat16 as the trainer does."""
        noise = torch.from_numpy(Draws(0, epoch, self.rows).uniform("m", self.config.patch_count))
        masks = sample_masks(on_device(noise, self.device), 0.5, self.config)
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.model(ids, *masks).loss.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 3.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, works: dict[str, Callable[[int], Any]]) -> dict[str, list[float]]:
        """Seconds of one call of each work, in turns, `rounds` times: means over `steps` calls."""
        found: dict[str, list[float]] = {name: [] for name in works}
        for work in works.values():
            for call in range(3):  # compiled, tuned and allocated
                work(call)
        for turn in range(self.size.rounds):
            for name, work in works.items():
                self.settle()
                began = time.perf_counter()
                for call in range(self.size.steps):
                    work(turn * self.size.steps + call)
                self.settle()
                found[name].append((time.perf_counter() - began) / self.size.steps)
        return found


def flops(config: TokenAdaptConfig) -> float:
    """Multiplications and additions, each counted, of f and g for one image; A's are few."""
    d, e, h = config.channels, config.dim, config.mlp
    inner = config.heads * config.dim_head

    def block(tokens: int) -> float:
        return tokens * (4 * e * inner + 2 * e * h) + 2 * tokens * tokens * inner

    read, scored = np.prod(config.grid), np.prod(config.out_grid)
    patch = config.scale**2 * d * e
    f = read * (d * e + patch) + block(int(read))
    g = scored * (patch + e * config.codes) + block(int(scored))
    return 2.0 * float(f + g)


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Any call that waits for the GPU is an error inside."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def overhead(times: dict[str, list[float]], name: str, base: str) -> float:
    """Median of the ratios of neighbours in time, less 1."""
    return float(np.median(np.array(times[name]) / np.array(times[base]))) - 1


def measure_steps(bench: Bench, report: harness.Report, compiled: bool) -> None:
    """The step by itself, with the plain crop, and with the whole recipe."""
    low = replace(bench.recipe.adapt, precision="bfloat16", compiled=compiled)
    plain = bench.augmenter(replace(bench.recipe, adapt=replace(low, share=0.0)), bench.device)
    half = bench.augmenter(replace(bench.recipe, adapt=low), bench.device)
    ready = bench.augmented(plain, 0)
    for augment in (plain, half):
        bench.augmented(augment, 0)  # compiled and tuned, which may wait
    with no_waiting(bench.device):
        bench.augmented(plain, 1)
        bench.augmented(half, 1)
    times = bench.seconds(
        {
            "ready": lambda epoch: bench.step(ready, epoch),
            "plain": lambda epoch: bench.step(bench.augmented(plain, epoch), epoch),
            "half": lambda epoch: bench.step(bench.augmented(half, epoch), epoch),
        }
    )
    began = time.perf_counter()
    for epoch in range(bench.size.steps):
        bench.augmented(half, epoch)
    host = (time.perf_counter() - began) / bench.size.steps
    bench.settle()
    step = float(np.median(times["ready"]))
    report.add("step", bench.size.batch / step, "images/s")
    for key, base, target in (
        ("tokenadapt_on_half", "plain", 0.04),
        ("whole_recipe", "ready", 0.06),
    ):
        at_most = target if bench.device.type == "cuda" else None  # a claim about GPUs
        report.add(key, overhead(times, "half", base), "of a step", at_most=at_most)
    report.add("host_time_of_augmenting", host / step, "of a step")


def measure_alone(bench: Bench, report: harness.Report, peak: float | None) -> None:
    """f, A and g on whole batches, in each arithmetic."""
    adapt = replace(bench.recipe.adapt, share=1.0)
    forms = {"float32": adapt, "bfloat16": replace(adapt, precision="bfloat16")}
    if bench.device.type == "cuda":
        forms["bfloat16_compiled"] = replace(adapt, precision="bfloat16", compiled=True)
    for name, form in forms.items():
        augment = bench.augmenter(replace(bench.recipe, adapt=form), bench.device)
        found = bench.seconds({name: lambda epoch, a=augment: bench.augmented(a, epoch)})[name]
        rate = bench.size.batch / float(np.median(found))
        report.add(f"fAg_{name}", rate, "images/s")
        if peak:
            report.add(f"fAg_{name}_of_peak", rate * flops(bench.adapt_config) / peak, "share")


def measure_agreement(bench: Bench, report: harness.Report) -> None:
    """Ids on the device that equal those of the CPU, in float32, for the same draws."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rows = slice(0, min(BLOCK, bench.size.batch))
    draws, cpu = Draws(0, 1, bench.rows[rows]), torch.device("cpu")
    ids, labels = bench.ids[rows], bench.labels[rows]
    here = bench.augmenter(bench.recipe, cpu)(ids, labels, draws, blocks=1).inputs
    there = bench.augmenter(bench.recipe, bench.device)(
        ids.to(bench.device), labels, draws, blocks=1
    ).inputs.cpu()
    plain = len(here) - round(bench.recipe.adapt.share * len(here))
    same = (here == there).float()
    report.add("same_ids_plain_rows", float(same[:plain].mean()), "share", at_least=0.999)
    report.add("same_ids_tokenadapt_rows", float(same[plain:].mean()), "share", at_least=0.999)


def measure_tokenizer(bench: Bench, report: harness.Report) -> None:
    """Encoding and decoding pictures, in float32 and in bfloat16."""
    torch.manual_seed(0)
    model = ViTVQGAN(bench.size.tokenizer).to(bench.device).eval()
    images = torch.rand(min(64, bench.size.batch), 3, *bench.size.tokenizer.image_size)
    images = images.to(bench.device)
    ids = model.encode(images)
    for name, low in (("float32", False), ("bfloat16", True)):

        def encode(_: int, low: bool = low) -> Tensor:
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=low):
                return model.encode(images)

        def decode(_: int, low: bool = low) -> Tensor:
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=low):
                return model.decode(ids)

        for what, work in (("encode", encode), ("decode", decode)):
            spent = float(np.median(bench.seconds({what: work})[what]))
            report.add(f"{what}_{name}", len(images) / spent, "images/s")
    with torch.autocast(bench.device.type, torch.bfloat16):
        low_ids = model.encode(images)
    report.add("encode_bfloat16_same_ids", float((low_ids == ids).float().mean()), "share")


def main() -> None:
    options = harness.options(__doc__, Options)
    report = harness.Report("tokenadapt_gpu", options, packages=("torch", "timm", "numpy"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    size = sizes(options, cuda)
    bench = Bench(size, device)
    name = torch.cuda.get_device_name() if cuda else ""
    peak = next((value for part, value in PEAKS.items() if part in name), None)
    try:
        measure_steps(bench, report, compiled=cuda)
        with torch.inference_mode():
            measure_alone(bench, report, peak)
            measure_agreement(bench, report)
            measure_tokenizer(bench, report)
    finally:  # a GPU may be lent once: what was measured before an error is kept
        finish(report, size, cuda)


def finish(report: harness.Report, size: Sizes, cuda: bool) -> None:
    """Say how it was measured, and write it."""
    report.note(
        f"{size.batch} rows a step, {size.grid}x{size.grid} tokens cut to {size.crop}x{size.crop},"
        f" 391 codes; medians of {size.rounds} rounds of {size.steps} steps, in turns. Times"
        " include the copy from the host and the draws; the plain crop and the whole recipe ran"
        " with every wait for the GPU made an error. Weights are drawn, not trained."
    )
    if not cuda:
        report.note("No GPU: toy sizes on a CPU, and the targets mean nothing.")
    report.finish()


if __name__ == "__main__":
    main()
