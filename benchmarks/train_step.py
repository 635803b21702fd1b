"""A training step at the speed of the chip, with random tokens of ImageNet's sizes.

On a GPU: images/s, memory, the time of each part, and the share of the bf16 peak counted on useful
operations (the model's products, forward and backward, none twice), for `mtm-base`, `scratch-base`
and `finetune-base` at 1024 rows: at least half of the peak for MTM, and no step may wait for the
device. On a CPU: MTM against the same model written plainly on timm's blocks, with the same weights
and batch: no slower, and no more memory.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import harness
import torch
from parts.step_cases import (
    CONTENDERS,
    RECIPES,
    Case,
    build,
    cpu_memory,
    cpu_seconds,
    stages,
    useful_operations,
)

T = TypeVar("T")

SPEC_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}
"""Dense bf16 peaks that the makers state, in 10^12 operations a second, by part of the name."""

_MATMUL = 8192  # side of the product whose speed is the measured peak
_WARM_STEPS = 5


@dataclass(frozen=True)
class Options(harness.Options):
    """Flags."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to measure; auto takes a GPU if there is one."""
    batch: int = 0
    """Rows of a step; 0 takes 1024 on a GPU, and 16 on a CPU (4 in a quick run)."""
    steps: int = 0
    """Timed steps; 0 takes 20 on a GPU, 9 on a CPU; fewer in a quick run."""
    compile: bool = True
    """Measure on a GPU with torch.compile as well."""
    peak_tflops: float = 0.0
    """The GPU's stated bf16 peak, 10^12 operations a second; 0 takes the one of its name."""
    threads: int = 0
    """Threads on a CPU; 0 takes the cores that this process may use."""


def main() -> None:
    options = harness.options(__doc__, Options)
    report = harness.Report("train_step", options, packages=("torch", "timm"))
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if device == "cuda":
            on_gpu(options, report)
        else:
            on_cpu(options, report)
    finally:  # a GPU may be lent once: what was measured before an error is kept
        report.finish()


# -- GPU ------------------------------------------------------------------------------------------


def on_gpu(options: Options, report: harness.Report) -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    peak = measured_peak()
    report.add("measured_peak_tflops", peak / 1e12, "10^12/s")
    stated = stated_peak(options)
    if stated:
        report.add("stated_peak_tflops", stated / 1e12, "10^12/s")
    steps = options.steps or (5 if options.quick else 20)
    rows = options.batch or 1024
    for recipe in RECIPES:
        operations = useful_operations(recipe) * rows
        key = recipe.replace("-", "_")
        best = 0.0
        for compiled in (False, True) if options.compile else (False,):
            # A compiled model refers to itself: what the one before held would count as this one's.
            torch._dynamo.reset()
            gc.collect()
            torch.cuda.empty_cache()
            seconds, memory, times = gpu_step(recipe, rows, steps, compiled)
            name = f"{key}_compiled" if compiled else f"{key}_eager"
            best = max(best, operations / seconds)
            report.add(f"{name}_images_per_second", rows / seconds, "1/s")
            report.add(f"{name}_memory_bytes", memory, "B")
            report.add(f"{name}_share_of_measured_peak", operations / seconds / peak, "1")
            for part, spent in times.items():
                report.add(f"{name}_{part}_seconds", spent, "s")
        target = 0.5 if recipe == "mtm-base" else None
        report.add(
            f"{key}_share_of_peak", best / (stated or peak), "1", peer=best / peak, at_least=target
        )
    report.note(
        f"{rows} rows a step, bf16 autocast, weights and AdamW in float32. Useful operations: "
        "matrix products, convolutions and attention of a step, forward and backward, none counted "
        "twice. share_of_peak is of the stated peak where that is known, its peer column of a "
        f"product of {_MATMUL} x {_MATMUL}. Parts are measured one by one, forward and backward. "
        "A step that made the host wait for the device would have ended the run."
    )


def stated_peak(options: Options) -> float:
    """Operations a second, 0 if the GPU's name is not known."""
    name = torch.cuda.get_device_name()
    known = next((peak for part, peak in SPEC_TFLOPS.items() if part in name), 0.0)
    return (options.peak_tflops or known) * 1e12


def measured_peak() -> float:
    """Operations a second of a large product in bf16."""
    a, b = (torch.randn(_MATMUL, _MATMUL, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * _MATMUL**3 / min(gpu_seconds(lambda: torch.mm(a, b), 20) for _ in range(3))


def gpu_seconds(call: Callable[[], object], times: int) -> float:
    """Seconds of one of `times` calls in a row, after a few to warm up."""
    for _ in range(_WARM_STEPS):
        call()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def gpu_step(
    recipe: str, rows: int, steps: int, compiled: bool
) -> tuple[float, int, dict[str, float]]:
    """(seconds of a step, most bytes held at once, seconds of each part)."""
    device = torch.device("cuda")
    run, model = build(recipe, device)  # type: ignore[arg-type]
    case = Case(recipe, run, model.train(), device, bf16=True, rows=rows)
    if compiled:
        model.compile()
    case.step()  # compiles, and makes the optimizer's state
    torch.cuda.reset_peak_memory_stats()

    def unwaited() -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            case.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    seconds = gpu_seconds(unwaited, steps)
    memory = torch.cuda.max_memory_allocated()
    times = {}
    if not compiled:
        for name, part in stages(case).items():
            times[name] = gpu_seconds(part, steps)
        case.loss().backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in case.parameters]

        def finish() -> None:
            for parameter, gradient in zip(case.parameters, gradients, strict=True):
                parameter.grad = gradient
            case.finish()

        times["optimizer"] = gpu_seconds(finish, steps)
    return seconds, memory, times


# -- CPU ------------------------------------------------------------------------------------------


def on_cpu(options: Options, report: harness.Report) -> None:
    size = "tiny" if options.quick else "base"
    rows = options.batch or (4 if options.quick else 16)
    steps = options.steps or (3 if options.quick else 9)
    threads = options.threads or len(os.sched_getaffinity(0))
    pairs = alone(cpu_seconds, size, rows, steps, threads)
    ours, plain = (statistics.median(pair[at].clock for pair in pairs) for at in (0, 1))
    memory = {name: alone(cpu_memory, name, size, rows, threads) for name in CONTENDERS}
    report.add("mtm_step_seconds", ours, "s", peer=plain)
    report.add("mtm_images_per_second", rows / ours, "1/s", peer=rows / plain)
    report.add("mtm_memory_bytes", memory["ours"], "B", peer=memory["plain"])
    clock = statistics.median(a.clock / b.clock for a, b in pairs)
    processor = statistics.median(a.processor / b.processor for a, b in pairs)
    report.add("mtm_step_over_plain", clock, "1", at_most=1.0)
    report.add("mtm_processor_time_over_plain", processor, "1", at_most=1.0)
    report.add("mtm_memory_over_plain", memory["ours"] / memory["plain"], "1", at_most=1.0)
    report.note(
        f"ViT-{size}, {rows} rows a step, float32, {threads} threads. Steps of the two are timed in"
        f" pairs, one after the other: ratios are medians of {steps} pairs, and that of"
        " processor time is less disturbed by others at work. Memory is the most"
        " that a process of its own held. The peer is the same model on timm's blocks, with the"
        " same weights, batch, masks and optimizer."
    )


def alone(measure: Callable[..., T], *arguments: object) -> T:
    """What `measure` finds in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


if __name__ == "__main__":
    main()
