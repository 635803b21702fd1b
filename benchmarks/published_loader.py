"""The recipe of masked token modelling on the CPU, TokenAdapt off: at least 8 images for each one
that the published loader prepares in the same time of a core, with the same ids.

Peer: what the published loader does for one image, written anew from the paper's description:
decode the escape bytes, lay out a one-hot map of K channels, resize a random box of it (bicubic),
multiply by the codebook, take the nearest code of each token. Both get the same boxes.

Ours is the whole stream in one process: rows out of the node's cache, shuffled, through the recipe.
Times are processor time, all threads counted.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import harness
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from peers import data, seit
from peers.job import Job
from torch import Tensor

from services.augment.boxes import PLAIN_CROP, choose_boxes
from services.augment.recipe import mtm
from services.plan.draws import Draws
from services.shards.manifest import load_manifest
from services.shards.store import open_store
from services.stream.augmentation import codebook_of
from services.stream.batch import StreamBatch
from services.stream.loader import Stream
from services.stream.request import StreamRequest

CROP = 28
ESCAPE = 255
"""Byte that says: the token is this plus the next byte."""


@dataclass(frozen=True)
class Case:
    """The rows, and how both are asked for them. ids: (N, 32, 32) uint16, codebook: (K, D)."""

    ids: npt.NDArray[np.uint16]
    labels: npt.NDArray[np.int64]
    request: StreamRequest
    codebook: Tensor
    steps: int


def prepare(folder: Path, rows: int, steps: int) -> Case:
    """Rows drawn, written as a dataset, and the recipe's request for them."""
    data.draw(rows, folder / "raw")
    ids, labels = np.load(folder / "raw" / "ids.npy"), np.load(folder / "raw" / "labels.npy")
    seit.write(ids, labels, folder / "root")
    job = Job("seit", "stream", str(folder / "root"), "", cache=str(folder / "cache"), crop=CROP)
    root = open_store(job.data)
    loaded = load_manifest(root, seit.DATASET)
    recipe = mtm(loaded.spec, (CROP, CROP))
    recipe = replace(recipe, adapt=replace(recipe.adapt, share=0.0))
    request = replace(seit.request(job), recipe=recipe)
    return Case(ids, labels, request, codebook_of(root.url, loaded).weight, steps)


def ours(case: Case, start: int) -> Iterator[StreamBatch]:
    """Batches of `case.steps` steps."""
    yield from Stream(case.request, start=start, stop=start + case.steps, prefetch=1)


def escape(ids_HW: npt.NDArray[np.uint16]) -> bytes:
    """One image in the published release's bytes."""
    high = ids_HW.ravel() >= ESCAPE
    pair = np.stack([np.where(high, ESCAPE, ids_HW.ravel()), ids_HW.ravel() - ESCAPE], 1)
    keep = np.stack([np.ones_like(high), high], 1)
    return pair[keep].astype(np.uint8).tobytes()


def decode(stored: bytes, grid: tuple[int, int]) -> Tensor:
    """Ids (H, W) int64 of one image's bytes."""
    raw = np.frombuffer(stored, np.uint8).astype(np.int64)
    marks = np.flatnonzero(raw == ESCAPE)
    raw[marks] += raw[marks + 1]
    return torch.from_numpy(np.delete(raw, marks + 1).reshape(grid))


def published(stored: bytes, box: npt.NDArray[np.int64], codebook_KD: Tensor, grid: int) -> Tensor:
    """One image as the published loader prepares it: (28, 28) int64."""
    ids_HW = decode(stored, (grid, grid))
    hot_KHW = F.one_hot(ids_HW, len(codebook_KD)).permute(2, 0, 1).float()
    y, x, height, width = box.tolist()
    part = hot_KHW[None, :, y : y + height, x : x + width]
    cut = F.interpolate(part, (CROP, CROP), mode="bicubic", align_corners=False)[0]
    map_TD = cut.flatten(1).T @ codebook_KD
    scores = F.normalize(map_TD, dim=1) @ F.normalize(codebook_KD, dim=1).T
    return scores.argmax(1).view(CROP, CROP)


def compare(case: Case, batch: StreamBatch, images: int) -> tuple[float, float]:
    """(processor seconds of the published loader for one image, share of ids that agree)."""
    rows, spec = batch.rows[:images], case.ids.shape[1]
    if not np.array_equal(case.labels[rows], batch.label[:images].numpy()):
        raise AssertionError("a batch's rows do not have the labels that were written for them")
    draws = Draws(case.request.rows.order.seed, batch.row_epochs[:images], rows)
    crop = case.request.recipe.plain_crop
    boxes = choose_boxes(crop, draws, PLAIN_CROP, (spec, spec), (CROP, CROP))
    stored = [escape(case.ids[row]) for row in rows]
    began = time.process_time()
    found = [
        published(bytes_, box, case.codebook, spec)
        for bytes_, box in zip(stored, boxes, strict=True)
    ]
    seconds = (time.process_time() - began) / images
    same = torch.stack(found) == batch.inputs[:images].long()
    return seconds, float(same.float().mean())


def main() -> None:
    options = harness.options(__doc__, harness.Options)
    report = harness.Report("published_loader", options, packages=("torch", "numpy"))
    torch.set_num_threads(1)  # an actor with one core has one thread
    rows, steps, images, repeats = (8192, 4, 128, 3) if options.quick else (32_768, 32, 1024, 5)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        case = prepare(Path(scratch), rows, steps)
        first = next(ours(case, 0))
        rates, peers, agree = [], [], []
        for repeat in range(repeats):
            began = time.process_time()
            done = sum(len(batch) for batch in ours(case, repeat * steps))
            rates.append(done / (time.process_time() - began))
            seconds, same = compare(case, first, images)
            peers.append(1 / seconds)
            agree.append(same)
    rate, peer = float(np.median(rates)), float(np.median(peers))
    report.add("images_per_core_second", rate, "1/s", peer=peer)
    report.add("times_published", rate / peer, "x", at_least=8)
    report.add("same_ids", min(agree), "share", at_least=0.9999)
    report.note(
        f"{rows} grids of 32x32 tokens, 391 codes of {case.codebook.shape[1]} channels, crop"
        f" {CROP}x{CROP}; medians of {repeats} runs of {steps} steps of 1024 rows, and of {images}"
        " images for the peer. One thread for torch on either side."
    )
    report.note(
        "The peer starts from one image's bytes in memory. Its decoding is vectorised here; ours"
        " includes planning, fetching from the cache, and handing over whole batches."
    )
    report.note(
        "Ids that differ are near ties: sums of the same numbers in another order, in float32."
    )
    report.finish()


if __name__ == "__main__":
    main()
