"""Pictures to one shard: the work that an actor of an ingest does for each of its rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from pydantic import TypeAdapter

from services.errors import InvalidInputError
from services.masks import MaskClasses, encode_mask, read_mask
from services.pictures import ByteArray, Picture, read_picture, source_bytes
from services.shards.column_file import arrow_type
from services.shards.columns import write_values
from services.shards.store import open_store
from services.shards.writer import write_shard
from services.stream.cluster import Flag
from services.stream.ingest_config import IngestConfig
from services.tokens.tokenizer import load_tokenizer
from services.types import MASK_COLUMN, TokenRows
from services.wire.seit import v1 as wire

SHARD = TypeAdapter(wire.Shard)
"""A shard's entry as it travels from the actor."""


@dataclass(frozen=True)
class Listing:
    """What stands in the folders: pictures of each split in the order in which they are laid down.

    classes: names, of labels or, where there are masks, of the masks' classes. masks: file of each
    picture's mask by key, with mask_classes; none of both where pictures have labels.
    """

    classes: tuple[str, ...]
    splits: dict[str, list[Picture]]
    masks: Mapping[str, Path] = field(default_factory=dict)
    mask_classes: MaskClasses | None = None

    def read(self, picture: Picture, height: int, width: int) -> tuple[ByteArray, bytes]:
        """(3, height, width) pixels, and the mask as it is stored; InvalidInputError for either."""
        pixels = read_picture(picture.path, height, width)
        if self.mask_classes is None:
            return pixels, b""
        place = self.masks[picture.key]
        mask = read_mask(place, picture.path, height, width, self.mask_classes)
        return pixels, encode_mask(mask)


@dataclass
class _Read:
    """What was read of a shard's pictures so far."""

    kept: list[Picture] = field(default_factory=list)
    masks: list[bytes] = field(default_factory=list)
    ids: list[np.ndarray[Any, np.dtype[np.uint16]]] = field(default_factory=list)
    skipped: list[wire.Skipped] = field(default_factory=list)


class TokenizeActor:
    """Tokenizes and writes one shard a call; the tokenizer and the list of pictures stay."""

    def __init__(
        self,
        config: IngestConfig,
        listing: ray.ObjectRef[Listing],
        weights: bytes,
        cancelled: Flag,
    ) -> None:
        self._config = config
        self._cancelled = cancelled
        self._threads = max(1, round(config.cpus))
        torch.set_num_threads(self._threads)
        self._device = torch.device("cuda" if config.gpus and torch.cuda.is_available() else "cpu")
        self._tokenizer = load_tokenizer(weights).to(self._device).eval()
        self._listing: Listing = ray.get(listing)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for name, start, stop in zip(batch["split"], batch["start"], batch["stop"], strict=True):
            yield self._shard(str(name), int(start), int(stop))

    def _shard(self, name: str, start: int, stop: int) -> dict[str, Any]:
        cancelled = self._cancelled.is_set()
        read = self._read([] if cancelled else self._listing.splits[name][start:stop])
        answer: dict[str, Any] = {
            "split": [name],
            "start": [start],
            "skipped": [json.dumps([[s.path, s.reason] for s in read.skipped])],
            "shard": [""],
            "code_counts": [b""],
            "grid_hashes": [b""],
        }
        if read.kept:
            rows = TokenRows(
                ids=np.concatenate(read.ids),
                labels=np.array([p.label for p in read.kept], np.int64),
                keys=[p.key for p in read.kept],
                source_bytes=np.array([source_bytes(p.path) for p in read.kept], np.int64),
            )
            config, store = self._config, open_store(self._config.root)
            spec, level = self._tokenizer.spec, config.compression_level
            result = write_shard(store, config.dataset, name, rows, spec, level)
            shard = result.shard
            if self._listing.mask_classes is not None:
                shard = self._with_masks(shard, read.masks)
            answer["shard"] = [SHARD.dump_json(shard).decode()]
            answer["code_counts"] = [result.code_counts.astype("<i8").tobytes()]
            answer["grid_hashes"] = [result.grid_hashes.astype("<u8").tobytes()]
        return answer

    def _with_masks(self, shard: wire.Shard, masks: list[bytes]) -> wire.Shard:
        """The shard's entry with the files of its masks, which are written here."""

        def take(start: int, stop: int) -> Any:
            return pa.array(masks[start:stop], arrow_type("binary"))

        folder = open_store(self._config.root).child(self._config.dataset)
        sizes = np.array([len(mask) for mask in masks], np.int64)
        return replace(
            shard, columns=write_values(folder, shard, MASK_COLUMN, "binary", sizes, take)
        )

    def _read(self, pictures: list[Picture]) -> _Read:
        """Pictures decoded in threads and encoded a batch at a time."""
        done, spec = _Read(), self._tokenizer.spec

        def read(picture: Picture) -> tuple[ByteArray, bytes] | wire.Skipped:
            try:
                return self._listing.read(picture, spec.image_height, spec.image_width)
            except InvalidInputError as error:
                return wire.Skipped(path=picture.key, reason=str(error))

        with ThreadPoolExecutor(self._threads) as pool, torch.inference_mode():
            for at in range(0, len(pictures), self._config.batch):
                part = pictures[at : at + self._config.batch]
                good: list[torch.Tensor] = []
                for picture, found in zip(part, pool.map(read, part), strict=True):
                    if isinstance(found, wire.Skipped):
                        done.skipped.append(found)
                    else:
                        done.kept.append(picture)
                        done.masks.append(found[1])
                        good.append(torch.from_numpy(found[0]))
                if good:
                    images = torch.stack(good).to(self._device).float() / 255
                    ids = self._tokenizer.encode(images).cpu().numpy().astype(np.uint16)
                    done.ids.append(ids)
        return done
