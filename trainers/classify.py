"""Train a classifier on tokens: `python trainers/classify.py --help`, or as a Ray job."""

from __future__ import annotations

from trainers.command import run
from trainers.config import ClassifyRun
from trainers.recipes.classify import RECIPES
from trainers.signals import leave
from trainers.step import classify_worker, prepare_classify

if __name__ == "__main__":
    leave(run(ClassifyRun, RECIPES, classify_worker, prepare_classify))
