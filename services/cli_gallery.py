"""`seit gallery`: what a recipe does to given samples, as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from services.cli_store import Dataset, Root, Version, standing
from services.errors import InvalidInputError


@dataclass(frozen=True)
class Gallery:
    """Draw what a recipe does to samples of a dataset, decoded: before, each operation, all."""

    root: Root
    dataset: Dataset
    out: Annotated[
        Path, tyro.conf.arg(aliases=["-o"], metavar="FILE", help="PNG file to write")
    ] = Path("gallery.png")
    recipe: Annotated[
        str,
        tyro.conf.arg(help="mtm, finetune, scratch, segment, eval, or a JSON file of a recipe"),
    ] = "mtm"
    crop: Annotated[
        int | None,
        tyro.conf.arg(help="side of the training grid, tokens; None for the stored grid"),
    ] = None
    tokenadapt: Annotated[
        str,
        tyro.conf.arg(
            metavar="FILE",
            help="TokenAdapt's weights (.safetensors, path or URL); empty leaves its path out",
        ),
    ] = ""
    tokenizer: Annotated[
        str,
        tyro.conf.arg(
            metavar="FILE",
            help="tokenizer that decodes (.safetensors, or a published checkpoint); empty for the "
            "one that stands with the dataset",
        ),
    ] = ""
    split: Annotated[str, tyro.conf.arg(help="split of the samples")] = "train"
    version: Version = None
    rows: Annotated[
        tuple[str, ...],  # tyro does not say which of several words is no number
        tyro.conf.arg(metavar="ROW ...", help="numbers of the samples in the split, from 0"),
    ] = ()
    count: Annotated[
        int, tyro.conf.arg(help="samples where none are named, spread over the split (count)")
    ] = 6
    seed: Annotated[int, tyro.conf.arg(help="seed of the random draws")] = 0

    def run(self, out: Console) -> int:
        from services.augment.recipe import describe
        from services.gallery.recipe import GalleryRequest, draw_recipe

        if not self.out.name or self.out.is_dir():
            raise InvalidInputError(
                f"out is {str(self.out)!r}, a folder: nothing was drawn; name the PNG file to write"
                " there, such as gallery.png"
            )
        request = GalleryRequest(
            root=standing(self.root).url,
            dataset=self.dataset,
            recipe=self.recipe,
            split=self.split,
            version=self.version,
            crop=self.crop,
            tokenizer=self.tokenizer,
            tokenadapt=self.tokenadapt,
            rows=[_row(text) for text in self.rows],
            count=self.count,
            seed=self.seed,
        )
        config = draw_recipe(request, self.out)
        for line in describe(config):
            out.print(line, markup=False, highlight=False, soft_wrap=True)
        out.print(f"drawn in {self.out}", markup=False, highlight=False, soft_wrap=True)
        return 0


def _row(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InvalidInputError(
            f"rows holds {text!r}, expected numbers of samples in the split, counted from 0, such"
            " as --rows 0 17 42: nothing was drawn; correct it, or leave --rows out for some of all"
        ) from error
