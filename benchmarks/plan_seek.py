"""A billion rows: standing at any step takes at most 100 ms and 50 MB, in a mixture too.

Peer: laying a shuffled order of all rows out, as samplers commonly do, then reading one step.
Beside it, how well lanes and windows of several sizes shuffle a split of ImageNet's size.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from itertools import count

import harness
import numpy as np

from services.plan.draws import Draws
from services.plan.epoch import OrderSpec, Plan
from services.plan.mixture import MixturePlan
from services.plan.quality import shuffle_quality

SHARDS = 122_000
ROWS_A_SHARD = 8_197
ORDER = OrderSpec(seed=3, global_batch_rows=4096, block_rows=128, lanes=8, window_shards=16)
MIXED_SHARDS = (61_000, 40_000, 20_000, 1_000)

IMAGENET = np.full(157, 8_160)  # 1.28 million rows
BATCH, BLOCK = 1024, 128
LANES, WINDOWS = (1, 4, 8), (1, 4, 16, 64)


def peak_bytes(run: Callable[[], object]) -> int:
    """Most memory that a run held at once beyond what stood before."""
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def mixture_figures(report: harness.Report, repeats: int) -> None:
    """The same claims for as many rows in several sources."""
    sources = [np.full(shards, ROWS_A_SHARD) for shards in MIXED_SHARDS]
    plan = MixturePlan(sources, ORDER)
    steps = count(1)

    def open_and_seek() -> None:
        MixturePlan(sources, ORDER).step_spans(next(steps) * 104_729_003)

    def next_steps() -> None:
        for step in range(100):
            plan.step_spans(step)

    seconds = harness.median_seconds(open_and_seek, repeats)
    report.add("mixture_open_and_seek_seconds", seconds, "s", at_most=0.1)
    report.add("mixture_open_and_seek_bytes", peak_bytes(open_and_seek), "B", at_most=50e6)
    rows = 100 * ORDER.global_batch_rows / harness.median_seconds(next_steps)
    report.add("mixture_planned_rows_per_second", rows, "rows/s")


def draws_figure(report: harness.Report) -> None:
    """What it costs that the rows of a step stand in several epochs."""
    rows = np.arange(ORDER.global_batch_rows)
    epochs = rows // ORDER.block_rows % 4

    def seconds(epoch: int | np.ndarray) -> float:
        def draw() -> None:
            for step in range(50):
                draws = Draws(step, epoch, rows)
                for op in range(10):
                    draws.uniform(f"op{op}", 8)

        return harness.median_seconds(draw, 5) / 500

    report.add("draws_of_4_epochs_seconds", seconds(epochs), "s", peer=seconds(2))


def shuffle_figures(report: harness.Report) -> None:
    """How much of a full shuffle each choice of lanes and window gives."""
    for lanes in LANES:
        for window in WINDOWS:
            plan = Plan(IMAGENET, OrderSpec(3, BATCH, BLOCK, lanes, window))
            found = shuffle_quality(plan, range(0, plan.steps_per_epoch, 25))
            report.add(
                f"shuffle_lanes_{lanes}_window_{window}",
                found.shards_per_batch,
                "shards",
                peer=found.full_shards_per_batch,
            )
            report.add(f"travel_lanes_{lanes}_window_{window}", found.travel, "ratio")


def main() -> None:
    options = harness.options(__doc__, harness.Options)
    report = harness.Report("plan_seek", options, packages=("numpy",))
    repeats = 3 if options.quick else 15
    shard_rows = np.full(SHARDS, ROWS_A_SHARD)
    plan = Plan(shard_rows, ORDER)
    epochs = count(1)  # a new epoch each time: nothing is left over from the run before

    def open_and_seek() -> None:
        fresh = Plan(shard_rows, ORDER)
        fresh.step_spans(next(epochs) * 104_729_000_003)

    def seek() -> None:
        plan.step_spans(next(epochs) * plan.steps_per_epoch + 7)

    def next_steps() -> None:
        for step in range(100):
            plan.step_spans(step)

    report.add("rows", plan.rows, "rows")
    report.add(
        "open_and_seek_seconds", harness.median_seconds(open_and_seek, repeats), "s", at_most=0.1
    )
    report.add("open_and_seek_bytes", peak_bytes(open_and_seek), "B", at_most=50e6)
    report.add("seek_other_epoch_seconds", harness.median_seconds(seek, repeats), "s", at_most=0.1)
    next_seconds = harness.median_seconds(next_steps)
    report.add("planned_rows_per_second", 100 * ORDER.global_batch_rows / next_seconds, "rows/s")

    mixture_figures(report, repeats)
    draws_figure(report)

    # The peer holds 8 bytes a row, so both are compared on fewer rows.
    peer_shards = SHARDS // (100 if options.quick else 10)
    fewer = np.full(peer_shards, ROWS_A_SHARD)
    peer_rows = int(fewer.sum())

    def seek_fewer() -> None:
        Plan(fewer, ORDER).step_spans(next(epochs))

    def lay_out() -> None:
        order = np.random.default_rng(next(epochs)).permutation(peer_rows)
        order[: ORDER.global_batch_rows].copy()

    report.add("peer_rows", peer_rows, "rows")
    report.add(
        "seek_peer_rows_seconds",
        harness.median_seconds(seek_fewer, repeats),
        "s",
        peer=harness.median_seconds(lay_out),
    )
    report.add("seek_peer_rows_bytes", peak_bytes(seek_fewer), "B", peer=peak_bytes(lay_out))

    quality = shuffle_quality(plan, range(0, plan.steps_per_epoch, plan.steps_per_epoch // 50))
    report.add("travel_of_full_shuffle", quality.travel, "ratio")
    report.add(
        "shards_per_batch", quality.shards_per_batch, "shards", peer=quality.full_shards_per_batch
    )
    shuffle_figures(report)
    report.note(
        f"{SHARDS} shards of {ROWS_A_SHARD} rows, steps of {ORDER.global_batch_rows} rows in blocks"
        f" of {ORDER.block_rows}, {ORDER.lanes} lanes, windows of {ORDER.window_shards} shards."
    )
    report.note(
        "Peer of the seek_peer_rows figures: numpy's permutation of all rows, "
        f"on {peer_rows} rows for both. Peer of shards_per_batch: a full shuffle, calculated."
    )
    report.note(
        f"mixture_ figures: {len(MIXED_SHARDS)} sources of {MIXED_SHARDS} such shards, weights by"
        " rows. Peer of draws_of_4_epochs: the same rows in one epoch."
    )
    report.note(
        f"shuffle_ figures: {len(IMAGENET)} shards of {IMAGENET[0]} rows, steps of {BATCH} rows in"
        f" blocks of {BLOCK}; shards of a batch, with those of a full shuffle as peer."
    )
    report.finish()


if __name__ == "__main__":
    main()
