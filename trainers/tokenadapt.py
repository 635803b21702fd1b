"""Train TokenAdapt on pictures: `python trainers/tokenadapt.py --help`, or as a Ray job."""

from __future__ import annotations

from trainers.command import run
from trainers.picture_config import TokenAdaptRun
from trainers.recipes.tokenadapt import RECIPES
from trainers.signals import leave
from trainers.tokenadapt_step import prepare_tokenadapt, tokenadapt_worker

if __name__ == "__main__":
    leave(run(TokenAdaptRun, RECIPES, tokenadapt_worker, prepare_tokenadapt))
