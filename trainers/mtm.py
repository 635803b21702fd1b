"""Pre-train by masked token modelling: `python trainers/mtm.py --help`, or as a Ray job."""

from __future__ import annotations

from trainers.command import run
from trainers.config import MtmRun
from trainers.recipes.mtm import RECIPES
from trainers.signals import leave
from trainers.step import mtm_worker, prepare_mtm

if __name__ == "__main__":
    leave(run(MtmRun, RECIPES, mtm_worker, prepare_mtm))
