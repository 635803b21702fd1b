"""What a stream is asked for: small, frozen, picklable, and the same for every rank.

It travels with each fetch task and actor instead of the data's own state; a process builds the
reader and the plan, or the augmenter, from it once and keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.augment.config import CropConfig, RecipeConfig, check_coefficients, check_geometric
from services.errors import InvalidInputError
from services.plan.epoch import OrderSpec
from services.plan.subset import SubsetSpec


@dataclass(frozen=True)
class SourceRequest:
    """One split of one dataset version.

    root: URL of the folder that holds datasets. version: fixed, so that a commit by someone else
    never changes a running stream. digest: xxh3-128 of the manifest, part of a position's identity.
    subset: the part of its rows that is read; None for all.
    """

    root: str
    dataset: str
    version: int
    digest: str
    split: str
    subset: SubsetSpec | None = None


@dataclass(frozen=True)
class Cut:
    """A crop that fetching makes itself: crop, and size (height, width) in tokens."""

    crop: CropConfig
    size: tuple[int, int]


@dataclass(frozen=True)
class RowsRequest:
    """Rows of one or several sources, in one order. All that a fetch task needs.

    weights: share of each source in the blocks, by `services.plan.mixture`; none for their rows.
    sequential: rows in their stored order, once, without a shuffle: for evaluation.
    cache_dir, cache_bytes: the node's verified shard cache.
    cut: what is left of each grid; None for all of it.
    skip_damaged: rows of a shard whose bytes on storage are wrong come as rows that do not exist,
        where otherwise the stream ends.
    masks: rows come with their masks, from the column `mask` of each source.
    coefficients: rows come with their DCT coefficients, from the column `dct`, in place of ids.
    """

    sources: tuple[SourceRequest, ...]
    order: OrderSpec
    cache_dir: str
    cache_bytes: int
    weights: tuple[float, ...] = ()
    sequential: bool = False
    cut: Cut | None = None
    skip_damaged: bool = False
    masks: bool = False
    coefficients: bool = False

    def __post_init__(self) -> None:
        if self.cache_bytes <= 0 or not self.cache_dir:
            raise InvalidInputError(
                f"a stream needs a cache folder and a size in bytes > 0, got {self.cache_dir!r} and"
                f" {self.cache_bytes}; set SEIT_CACHE_DIR and SEIT_CACHE_BYTES"
            )
        if not self.sources or (self.sequential and len(self.sources) > 1):
            raise InvalidInputError(
                f"a {'sequential ' * self.sequential}stream got {len(self.sources)} sources: valid"
                " are one and, for training, more; evaluate each dataset by itself"
            )

    @property
    def name(self) -> str:
        """What people call it: dataset/split, joined by + where there are several."""
        return "+".join(f"{source.dataset}/{source.split}" for source in self.sources)


@dataclass(frozen=True)
class StreamRequest:
    """Rows, and the recipe that they go through.

    tokenadapt: URL of TokenAdapt's weights, or "" for a recipe that does without.
    whole: rows travel as they are stored, for a consumer that augments them itself.
    """

    rows: RowsRequest
    recipe: RecipeConfig
    tokenadapt: str = ""
    whole: bool = False

    def __post_init__(self) -> None:
        if self.rows.masks:
            check_geometric(self.recipe)
        if self.rows.coefficients and not self.whole:
            check_coefficients(self.recipe)
            if self.rows.masks:
                raise InvalidInputError(
                    f"{self.rows.name}: masks and coefficients at once: masks follow tokens, and"
                    " nothing moves them along with coefficients; ask for one of both"
                )

    @property
    def only_cuts(self) -> bool:
        """Whether the recipe does nothing but cut ids: fetching does that on its way."""
        return self.whole or (self.recipe.only_cuts and not self.rows.coefficients)

    @property
    def fetched(self) -> RowsRequest:
        """What a fetch task is asked for: the rows, cut already where that is all."""
        if not self.only_cuts:
            return self.rows
        return replace(self.rows, cut=Cut(self.recipe.plain_crop, self.recipe.crop))

    def unaugmented(self, grid: tuple[int, int]) -> StreamRequest:
        """The same rows as they are stored: whole grids of `grid` (height, width) tokens."""
        centre = RecipeConfig("whole grids", grid, plain_crop=CropConfig(kind="centre"))
        return StreamRequest(self.rows, centre, whole=True)
