"""The doors of the stream: what to ask for, in a few words, and where in a run to begin.

    request = token_request("data", "photos", "train", order, recipe="finetune", crop=(28, 28))
    for batch in open_stream(request, epochs=100, saved=position):

docs/own-loop.md has the whole of a training loop around it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import replace
from os import PathLike

from services.augment.recipe import recipe_named
from services.errors import InvalidInputError
from services.plan.epoch import OrderSpec
from services.settings import load_settings
from services.shards.manifest import load_manifest
from services.shards.store import absolute_url, open_store
from services.stream.fetch import opened
from services.stream.loader import Stream, resume_step
from services.stream.pool import Pool, Sharing
from services.stream.request import RowsRequest, StreamRequest
from services.stream.sources import pinned

logger = logging.getLogger(__name__)


def token_request(
    root: str | PathLike[str],
    dataset: str,
    split: str,
    order: OrderSpec,
    *,
    recipe: str | PathLike[str],
    crop: tuple[int, int] | None = None,
    tokenadapt: str | PathLike[str] = "",
    version: int | None = None,
    sequential: bool = False,
) -> StreamRequest:
    """One split of one dataset through a recipe; the same for all ranks, so ask once and send it.

    The cache is the machine's that asks (`SEIT_CACHE_DIR`, `SEIT_CACHE_BYTES`).

    root: path or URL of the folder that holds datasets. recipe: a name of `RECIPES`, or the path of
    a JSON file of one. crop: (height, width) in tokens of what the model reads; None for the whole
    grid. tokenadapt: path or URL of its weights; "" leaves the recipe's TokenAdapt rows out.
    version: None takes the newest, which then stays. sequential: each row once, in stored order.

    Raises: NotFoundError, FormatError; InvalidInputError for a recipe that does not fit.
    """
    if crop is not None and (isinstance(crop, int) or len(crop) != 2):
        raise InvalidInputError(
            f"crop is {crop!r}, expected (height, width) in tokens, such as (28, 28): nothing was"
            " read; give both, or leave it out for the whole grid"
        )
    store, settings = open_store(os.fspath(root)), load_settings()
    source = pinned(store, dataset, split, version)
    spec = load_manifest(store, dataset, source.version).spec
    config = recipe_named(os.fspath(recipe), spec, crop or (spec.grid_height, spec.grid_width))
    if not tokenadapt:
        config = replace(config, adapt=replace(config.adapt, share=0.0))
    rows = RowsRequest(
        sources=(source,),
        order=order,
        cache_dir=str(settings.cache_dir),
        cache_bytes=settings.cache_bytes,
        sequential=sequential,
    )
    return StreamRequest(rows, config, absolute_url(os.fspath(tokenadapt)))


def open_stream(
    request: StreamRequest,
    *,
    epochs: int = 1,
    saved: bytes | None = None,
    allow: Collection[str] = (),
    rank: int = 0,
    world: int = 1,
    pool: Pool | None = None,
    trainer_cpus: float = 0.0,
    sharing: Sharing | None = None,
    augment_on: str | None = None,
) -> Stream:
    """The stream of a whole run, from its start or from a saved position to the end of `epochs`.

    saved: a position from `Stream.cursor`; allow: what may differ from it, by
    `services.plan.cursor.check`. The rest is as for `Stream`.

    Raises: as `Stream`; CursorMismatchError for a position of other data or of another order.
    """
    if not isinstance(epochs, int) or epochs < 0:
        raise InvalidInputError(
            f"epochs is {epochs!r}, expected a whole number of at least 0: no stream was opened;"
            " give the epochs of the whole run, those that are done included"
        )
    start = 0
    if saved is not None:
        if not isinstance(saved, bytes):
            raise InvalidInputError(
                f"saved is a {type(saved).__name__}, expected the bytes that `Stream.cursor` gave:"
                " no stream was opened; give what you saved of it beside the weights, or None to"
                " begin anew"
            )
        start, allowed = resume_step(request.rows, saved, allow)
        for difference in allowed:
            logger.warning("resumed as allowed: %s", difference)
    return Stream(
        request,
        rank=rank,
        world=world,
        start=start,
        stop=epochs * opened(request.fetched).steps_per_epoch,
        pool=pool,
        trainer_cpus=trainer_cpus,
        sharing=sharing,
        augment_on=augment_on,
    )
