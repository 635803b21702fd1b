"""The command of `seit` that takes over published tokenizers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional

from services.errors import InvalidInputError, NotFoundError
from services.folders import replaced


@dataclass(frozen=True)
class ImportTokenizer:
    """Turn a published checkpoint of a tokenizer into the file that `seit ingest` takes."""

    checkpoint: Annotated[
        Positional[Path],
        tyro.conf.arg(metavar="FILE", help="torch.save'd state (.ckpt, .pt, .pth) or .safetensors"),
    ]
    to: Annotated[
        Positional[Path],
        tyro.conf.arg(metavar="OUT", help="tokenizer's .safetensors file to write"),
    ]
    kind: Annotated[
        Literal["vitvqgan", "vqgan"],
        tyro.conf.arg(help="vitvqgan (SeiT's), or vqgan (CompVis, f=8)"),
    ] = "vitvqgan"
    image_size: Annotated[
        tuple[int, int],
        tyro.conf.arg(metavar="H W", help="pixels that it is used at; 0 0 for those of training"),
    ] = (0, 0)

    def run(self, out: Console) -> int:
        from services.tokens.tokenizer import load_published, save_tokenizer

        if not self.checkpoint.is_file():
            raise NotFoundError(
                f"there is no file {self.checkpoint}: give the published checkpoint"
            )
        if self.to.exists():
            raise InvalidInputError(f"{self.to} stands already: nothing was written; name another")
        size = self.image_size if any(self.image_size) else None
        model = load_published(self.checkpoint, self.kind, size)
        with replaced(self.to) as part:
            part.write_bytes(save_tokenizer(model))
        spec = model.spec
        out.print(
            f"{self.to}: {spec.image_height}x{spec.image_width} pixels to {spec.grid_height}x"
            f"{spec.grid_width} tokens of {spec.codes:,} codes, {spec.channels} channels each",
            markup=False,
            soft_wrap=True,
        )
        return 0
