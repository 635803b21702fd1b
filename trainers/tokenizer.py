"""Train a tokenizer on pictures: `python trainers/tokenizer.py --help`, or as a Ray job."""

from __future__ import annotations

from trainers.command import run
from trainers.recipes.tokenizer import RECIPES
from trainers.signals import leave
from trainers.tokenizer_config import TokenizerRun
from trainers.tokenizer_step import prepare_tokenizer, tokenizer_worker

if __name__ == "__main__":
    leave(run(TokenizerRun, RECIPES, tokenizer_worker, prepare_tokenizer))
