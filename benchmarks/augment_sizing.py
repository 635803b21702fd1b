"""Images/s of one core through each whole recipe, TokenAdapt of the paper's size included: from it
docs/operations.md says how many augmentation cores a trainer's GPU takes.

K = 391 codes of 32 channels, 32x32 tokens cut to 28x28. One thread, as an augmentation actor with
one core has; times are processor time, draws included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import harness
import numpy as np
import torch
from augment_cpu import BLOCK, CROP, SPEC, drawn

from services.augment.augmenter import Augmenter
from services.augment.config import AdaptConfig
from services.augment.recipe import finetune, mtm, scratch
from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig
from services.plan.draws import Draws

RECIPES = {"mtm": mtm, "finetune": finetune, "scratch": scratch}


def works(rows: int) -> dict[str, Callable[[int], object]]:
    """By name: what takes `rows` through a recipe, of an epoch's draws."""
    ids, codebook = drawn(rows)
    torch.manual_seed(0)
    model = TokenAdapt(TokenAdaptConfig((32, 32), CROP, SPEC.channels, SPEC.codes)).eval()
    labels, numbers = torch.zeros(rows, dtype=torch.int64), np.arange(rows, dtype=np.int64)

    def work(augment: Augmenter) -> Callable[[int], object]:
        return lambda epoch: augment(ids, labels, Draws(0, epoch, numbers), rows // BLOCK)

    made = {}
    for name, recipe in RECIPES.items():
        config = recipe(SPEC, CROP)
        plain = replace(config, adapt=AdaptConfig(share=0.0))
        made[f"{name}_plain"] = work(Augmenter(plain, SPEC, codebook).eval())
        made[f"{name}_tokenadapt"] = work(Augmenter(config, SPEC, codebook, model).eval())
    return made


def main() -> None:
    options = harness.options(__doc__, harness.Options)
    report = harness.Report("augment_sizing", options, packages=("torch", "numpy"))
    torch.set_num_threads(1)
    rows, repeats = (128, 2) if options.quick else (512, 5)
    with torch.inference_mode():
        asked = works(rows)
        seconds: dict[str, list[float]] = {name: [] for name in asked}
        for epoch in range(repeats + 1):  # the first one is not counted
            for name, work in asked.items():
                began = time.process_time()
                work(epoch)
                seconds[name].append(time.process_time() - began)
    for name, found in seconds.items():
        report.add(f"{name}_rate", rows / float(np.median(found[1:])), "images/s of a core")
    report.note(
        f"{rows} grids in blocks of {BLOCK}, medians of {repeats} rounds, each recipe in turn;"
        " TokenAdapt with random weights of the paper's size, on half of each block."
    )
    report.finish()


if __name__ == "__main__":
    main()
