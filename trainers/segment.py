"""Train a segmentation model on tokens and masks: `python trainers/segment.py --help`."""

from __future__ import annotations

from trainers.command import run
from trainers.recipes.segment import RECIPES
from trainers.segment_config import SegmentRun
from trainers.segment_step import segment_worker, settle_segment
from trainers.signals import leave

if __name__ == "__main__":
    leave(run(SegmentRun, RECIPES, segment_worker, settle_segment))
