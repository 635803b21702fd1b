"""Train a classifier on pixels: `python trainers/classify_pixels.py --help`, or as a Ray job."""

from __future__ import annotations

from trainers.command import run
from trainers.picture_config import PixelRun
from trainers.picture_streams import check_pictures
from trainers.pixel_step import pixel_worker
from trainers.recipes.pixels import RECIPES
from trainers.signals import leave

if __name__ == "__main__":
    leave(run(PixelRun, RECIPES, pixel_worker, check_pictures))
