"""Train a VQGAN on pictures: `python trainers/tokenizer_vqgan.py --help`, or as a Ray job.

The convolutional tokenizer of the paper's Table 8; published weights need no training
(`seit import-tokenizer`).
"""

from __future__ import annotations

from trainers.command import run
from trainers.recipes.tokenizer_vqgan import RECIPES
from trainers.signals import leave
from trainers.tokenizer_config import VQGANRun
from trainers.tokenizer_step import prepare_tokenizer, tokenizer_worker

if __name__ == "__main__":
    leave(run(VQGANRun, RECIPES, tokenizer_worker, prepare_tokenizer))
