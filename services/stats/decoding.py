"""Rows as pictures: ids through the dataset's own tokenizer, as they are or augmented, as PNG.

torch is imported when the first picture is asked for: a service that shows none needs none.
"""

from __future__ import annotations

import importlib.util
import io
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from services.errors import NotFoundError, SeitError
from services.shards.manifest import read_asset
from services.shards.store import Store, read_url
from services.stats.facts import Facts
from services.types import UNLABELLED, IdArray
from services.wire.seit import v1 as wire

if TYPE_CHECKING:
    from services.augment.augmenter import Augmenter
    from services.augment.config import RecipeConfig
    from services.augment.tokenadapt import TokenAdapt
    from services.tokens.tokenizer import TokenizerModel

PLAIN = "original"
VIEWS = (PLAIN, "crop", "synonyms", "swap", "noise", "coloradapt", "tokenadapt")
"""What a row can be shown as: its own tokens, or these after one operation of the paper."""

ADAPTED = "tokenadapt"

_MODELS = 4  # tokenizers that stay in memory
_PICTURE_BYTES = 32 << 20  # of pictures that stay in memory
_THREADS = 1  # of torch, so that pictures leave processors to the other answers


@dataclass
class _Decoder:
    """One dataset's networks. augmenters: by view, made when they are asked for."""

    tokenizer: TokenizerModel
    augmenters: dict[str, Augmenter]


class Decoder:
    """Pictures of rows of the datasets below `root`; one is made at a time.

    tokenadapt: path or URL of TokenAdapt's weights, "" for none.
    """

    def __init__(self, root: Store, tokenadapt: str = "") -> None:
        self._root, self._tokenadapt_url = root, tokenadapt
        self._making = threading.Lock()
        self._decoders: OrderedDict[str, _Decoder] = OrderedDict()
        self._tokenadapt: TokenAdapt | None = None
        self._pictures: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._bytes = 0

    def views(self, manifest: wire.Manifest) -> tuple[tuple[str, ...], str]:
        """(views that rows of this version can be shown in, why there are not all of them)."""
        kinds = {asset.kind for asset in manifest.assets}
        if importlib.util.find_spec("torch") is None:
            return (), "this service runs without torch: install it to see pictures"
        if "tokenizer" not in kinds:
            reason = "no tokenizer is kept with this dataset: ingest writes one, a release has none"
            return (), reason
        if "codebook" not in kinds:
            return (PLAIN,), "no codebook is kept with this dataset: it cannot be augmented"
        if not self._tokenadapt_url:
            known = tuple(view for view in VIEWS if view != ADAPTED)
            return known, "no TokenAdapt weights were named (SEIT_STATS_TOKENADAPT)"
        return VIEWS, ""

    def picture(
        self, facts: Facts, ids_2HW: IdArray, rows: tuple[int, int], view: str, draw: int
    ) -> bytes:
        """The first of two rows as a PNG file; the second is its partner in ColorAdapt.

        ids_2HW: (2, H, W) uint16. rows: their numbers, which random draws are keyed by. draw: seed.

        Raises: NotFoundError where the version has no such view; FormatError for damaged weights.
        """
        known, reason = self.views(facts.about)
        if view not in known:
            raise NotFoundError(f"rows of {facts.about.dataset!r} have no view {view!r}: {reason}")
        key = (facts.digest, view, draw, *rows, ids_2HW.tobytes())
        with self._making:
            made = self._pictures.pop(key, None)
            if made is None:
                made = self._make(facts, ids_2HW, rows, view, draw)
                self._bytes += len(made)
            self._pictures[key] = made
            while self._bytes > _PICTURE_BYTES:
                self._bytes -= len(self._pictures.popitem(last=False)[1])
            return made

    def _make(
        self, facts: Facts, ids_2HW: IdArray, rows: tuple[int, int], view: str, draw: int
    ) -> bytes:
        import torch

        torch.set_num_threads(_THREADS)
        decoder = self._decoder(facts)
        ids = torch.from_numpy(ids_2HW.astype(np.int64))
        if view != PLAIN:
            from services.plan.draws import Draws

            labels = torch.full((2,), UNLABELLED)
            draws = Draws(draw, 0, np.array(rows, np.int64))
            ids = self._augmenter(decoder, facts, view)(ids, labels, draws, 1).inputs
        with torch.inference_mode():
            pixels = decoder.tokenizer.decode(ids[:1].long())[0]
        return to_png((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())

    def _decoder(self, facts: Facts) -> _Decoder:
        from services.tokens.tokenizer import load_tokenizer

        manifest = facts.about
        asset = next(one for one in manifest.assets if one.kind == "tokenizer")
        key = f"{manifest.dataset}/{asset.xxh3}"
        known = self._decoders.pop(key, None)
        if known is None:
            model = load_tokenizer(read_asset(self._root, manifest.dataset, asset))
            if (model.spec.grid_height, model.spec.grid_width, model.spec.codes) != (
                facts.spec.grid_height,
                facts.spec.grid_width,
                facts.spec.codes,
            ):
                raise NotFoundError(
                    f"the tokenizer kept with {manifest.dataset!r} makes other grids than its rows:"
                    " they cannot be decoded"
                )
            known = _Decoder(model, {})
        self._decoders[key] = known
        if len(self._decoders) > _MODELS:
            self._decoders.popitem(last=False)
        return known

    def _augmenter(self, decoder: _Decoder, facts: Facts, view: str) -> Augmenter:
        if view not in decoder.augmenters:
            from services.augment.augmenter import Augmenter

            spec, codebook = facts.spec, decoder.tokenizer.codebook
            grid = (spec.grid_height, spec.grid_width)
            adapt = self._adapt(grid) if view == ADAPTED else None
            recipe = view_recipes(grid)[view]
            decoder.augmenters[view] = Augmenter(
                recipe, spec, codebook.weight, adapt, metric=codebook.metric
            ).eval()
        return decoder.augmenters[view]

    def _adapt(self, grid: tuple[int, int]) -> TokenAdapt:
        from services.augment.tokenadapt import TokenAdapt

        if self._tokenadapt is None:
            try:
                self._tokenadapt = TokenAdapt.from_bytes(read_url(self._tokenadapt_url)).eval()
            except SeitError as error:
                # The address is the operator's own: whoever asks learns that it failed, no more.
                raise NotFoundError("the TokenAdapt weights cannot be read") from error
        return self._tokenadapt.resized(grid, grid)


def view_recipes(grid: tuple[int, int]) -> Mapping[str, RecipeConfig]:
    """What each view does, on whole grids: one operation, always applied."""
    from services.augment.config import (
        AdaptConfig,
        ColorConfig,
        CropConfig,
        EdaConfig,
        RecipeConfig,
    )

    whole, cut = CropConfig(kind="centre"), CropConfig(area=(0.2, 0.8))
    eda, color = EdaConfig, ColorConfig
    return {
        "crop": RecipeConfig("crop", grid, plain_crop=cut),
        "synonyms": RecipeConfig(
            "synonyms", grid, eda=eda(synonym_probability=1), plain_crop=whole
        ),
        "swap": RecipeConfig("swap", grid, eda=eda(swap_probability=1), plain_crop=whole),
        "noise": RecipeConfig(
            "noise", grid, color=color(noise_probability=1, share=1), plain_crop=whole
        ),
        "coloradapt": RecipeConfig(
            "coloradapt", grid, color=color(coloradapt_probability=1, share=1), plain_crop=whole
        ),
        ADAPTED: RecipeConfig(
            ADAPTED, grid, adapt=AdaptConfig(share=1, affine_probability=1, crop=cut)
        ),
    }


def to_png(pixels_HWC: Any) -> bytes:
    """A PNG file of (H, W, 1 or 3) uint8."""
    from PIL import Image

    file = io.BytesIO()
    grey = pixels_HWC.shape[2] == 1
    Image.fromarray(pixels_HWC[:, :, 0] if grey else pixels_HWC).save(file, "PNG")
    return file.getvalue()
