"""The work that actors of an ingest do for each job: pictures to shards, and pictures to hashes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import ray
import torch
import xxhash
from pydantic import TypeAdapter

from services.errors import InvalidInputError
from services.masks import encode_mask, read_mask
from services.pictures import ByteArray, decode_picture
from services.shards.grid_hashes import HashArray, hash_picture
from services.shards.writer import ShardResult
from services.sources.sample import Fault, Found, PictureSource, Sample
from services.stream.cluster import Flag
from services.stream.ingest_config import IngestConfig
from services.stream.ingest_rows import Encoded, Loaded, Pending
from services.tokens.dct import DCT
from services.tokens.tokenizer import load_tokenizer
from services.wire.seit import v1 as wire

SHARD = TypeAdapter(wire.Shard)
STATS = TypeAdapter(wire.CoefficientStats | None)
"""A shard's entry, and counts of its coefficients, as they travel from the actor."""

BATCH_BYTES = 1 << 26
"""Files of pictures that are in memory at once, together; one alone may be larger."""

Answer: TypeAlias = dict[str, Any]


@dataclass
class Counts:
    """What was met since the last answer. done: of the job's size, in the source's unit."""

    pictures: int = 0
    dropped: int = 0
    absent: int = 0
    uncaptioned: int = 0
    done: int = 0
    faults: list[Fault] = field(default_factory=list)

    def taken(self) -> Counts:
        """What was counted so far; from here on it is counted anew."""
        counted = replace(self)
        self.pictures = self.dropped = self.absent = self.uncaptioned = self.done = 0
        self.faults = []
        return counted


class Gone:
    """A picture that becomes no row because an earlier one has the same bytes."""


class TokenizeActor:
    """Tokenizes a job's pictures and writes them as shards; the tokenizer and the source stay."""

    def __init__(
        self,
        config: IngestConfig,
        source: ray.ObjectRef[PictureSource],
        weights: bytes,
        cancelled: Flag,
    ) -> None:
        self._config = config
        self._cancelled = cancelled
        self._threads = max(1, round(config.cpus))
        torch.set_num_threads(self._threads)
        self._device = torch.device("cuda" if config.gpus and torch.cuda.is_available() else "cpu")
        self._tokenizer = load_tokenizer(weights).to(self._device).eval()
        self._source: PictureSource = ray.get(source)

    def __call__(self, batch: dict[str, Any]) -> Iterator[Answer]:
        for job, drop in zip(batch["job"].tolist(), batch["drop"], strict=True):
            yield from self._job(int(job), np.frombuffer(drop, "<u8"))

    def _job(self, job: int, drop: HashArray) -> Iterator[Answer]:
        """An answer for each shard, and one for what is left.

        drop: hashes of pictures that stand in an earlier job already.
        """
        counts, pending, number = Counts(), dict[str, Pending](), 0
        spec, config, left = self._tokenizer.spec, self._config, self._source.sizes[job]
        gone = set(drop.tolist()) if config.duplicates == "drop" else None

        def shard(split: str) -> Answer:
            nonlocal number, left
            result = pending.pop(split).write(config, self._source, split, spec)
            met = counts.taken()
            left -= met.done
            number += 1
            return _answer(job, number, met, split, result)

        if not self._cancelled.is_set():
            with ThreadPoolExecutor(self._threads) as pool:
                for sample, loaded, encoded in self._encoded(
                    self._source.read(job), counts, pool, gone
                ):
                    own = pending.setdefault(loaded.split, Pending())
                    own.add(sample, loaded, encoded)
                    counts.uncaptioned += self._source.captions and not sample.caption
                    if len(own) == config.rows_per_shard:
                        yield shard(loaded.split)
                        if self._cancelled.is_set():
                            break
            for split in list(pending):
                yield shard(split)
        yield _answer(job, number + 1, replace(counts, done=left))

    def _encoded(
        self,
        found: Iterable[Found],
        counts: Counts,
        pool: ThreadPoolExecutor,
        gone: set[int] | None,
    ) -> Iterator[tuple[Sample, Loaded, Encoded]]:
        """Pictures decoded in threads and encoded a batch at a time.

        gone: hashes of pictures that become no row, to which each new one is added; None to keep
        all of them.
        """
        with torch.inference_mode():
            for part in _batches(found, self._config.batch, counts, self._source.unit):
                good: list[tuple[Sample, Loaded]] = []
                pixels: list[torch.Tensor] = []
                reading = pool.map(partial(self._read, gone=gone), part)
                for sample, read in zip(part, reading, strict=True):
                    if isinstance(read, Fault):
                        counts.faults.append(read)
                    elif isinstance(read, Gone) or (gone is not None and read[0].digest in gone):
                        counts.dropped += 1
                    else:
                        loaded, picture = read
                        if gone is not None:
                            gone.add(loaded.digest)
                        good.append((sample, loaded))
                        pixels.append(torch.from_numpy(picture))
                if good:
                    images = torch.stack(pixels).to(self._device).float() / 255
                    for (sample, loaded), encoded in zip(good, self._encode(images), strict=True):
                        yield sample, loaded, encoded

    def _encode(self, images_N3HW: torch.Tensor) -> list[Encoded]:
        """Tokens of pictures in [0, 1], with the coefficients that they were chosen by."""
        if isinstance(self._tokenizer, DCT):
            maps = self._tokenizer.coefficients(images_N3HW)
            ids = self._tokenizer.codebook.quantise(maps)
            grids = ids.cpu().numpy().astype(np.uint16)
            return [Encoded(*pair) for pair in zip(grids, maps.cpu().numpy(), strict=True)]
        ids = self._tokenizer.encode(images_N3HW)
        return [Encoded(grid) for grid in ids.cpu().numpy().astype(np.uint16)]

    def _read(
        self, sample: Sample, gone: set[int] | None
    ) -> tuple[Loaded, ByteArray] | Fault | Gone:
        """A picture's pixels, (3, H, W), and what is kept of its file."""
        spec = self._tokenizer.spec
        height, width = spec.image_height, spec.image_width
        try:
            data = sample.load()
            found = hash_picture(data)
            if gone is not None and found in gone:
                return Gone()  # not even decoded
            pixels = decode_picture(data, _name(sample), height, width)
            mask = b""
            if self._source.mask_classes is not None and sample.mask is not None:
                assert not isinstance(sample.picture, bytes)  # masks go with folders
                classes = self._source.mask_classes
                mask = encode_mask(read_mask(sample.mask, sample.picture, height, width, classes))
        except InvalidInputError as error:
            return Fault(sample.key, str(error))
        return Loaded(len(data), found, split_of(sample, found, self._config), mask), pixels


class SurveyActor:
    """Hashes of a job's pictures, by which duplicates are known before anything is tokenized."""

    def __init__(
        self, config: IngestConfig, source: ray.ObjectRef[PictureSource], cancelled: Flag
    ) -> None:
        self._config, self._cancelled = config, cancelled
        self._source: PictureSource = ray.get(source)

    def __call__(self, batch: dict[str, Any]) -> Iterator[Answer]:
        for job in batch["job"].tolist():
            hashes: dict[str, list[int]] = {}
            for found in () if self._cancelled.is_set() else self._source.read(int(job)):
                if not isinstance(found, Sample):
                    continue
                try:
                    value = hash_picture(found.load())
                except InvalidInputError:
                    continue  # a fault, which is counted when it is tokenized
                hashes.setdefault(split_of(found, value, self._config), []).append(value)
            for split, values in hashes.items() or {"": []}.items():
                yield {
                    "job": [job],
                    "split": [split],
                    "hashes": [np.array(values, "<u8").tobytes()],
                }


def split_of(sample: Sample, picture_hash: int, config: IngestConfig) -> str:
    """The split that a sample names, else one by its content: equal pictures share a split."""
    if sample.split:
        return sample.split
    drawn = xxhash.xxh3_64_intdigest(f"{config.seed}/{picture_hash}".encode())
    return "validation" if drawn < config.validation_fraction * 2**64 else "train"


def _name(sample: Sample) -> str:
    return sample.key if isinstance(sample.picture, bytes) else str(sample.picture)


def _batches(
    found: Iterable[Found], rows: int, counts: Counts, unit: str
) -> Iterator[list[Sample]]:
    """Samples in batches; all else is counted."""
    part, size = list[Sample](), 0
    for one in found:
        if isinstance(one, Fault):
            counts.faults.append(one)
            counts.pictures += not one.file
        elif not isinstance(one, Sample):
            counts.absent += 1
        else:
            held = len(one.picture) if isinstance(one.picture, bytes) else 0
            counts.pictures += 1
            counts.done += 1 if unit == "pictures" else held
            part.append(one)
            size += held
            if len(part) == rows or size >= BATCH_BYTES:
                yield part
                part, size = [], 0
    if part:
        yield part


def _answer(
    job: int, number: int, counts: Counts, split: str = "", result: ShardResult | None = None
) -> Answer:
    """What travels back: what was met since the last answer, and the shard it led to."""
    faults = [[one.path, one.reason, one.file] for one in counts.faults]
    met = [counts.pictures, counts.dropped, counts.absent, counts.uncaptioned, counts.done]
    hashes = result.picture_hashes if result is not None else None
    return {
        "job": [job],
        "number": [number],
        "split": [split],
        "met": [json.dumps(met)],
        "faults": [json.dumps(faults)],
        "shard": [SHARD.dump_json(result.shard).decode() if result else ""],
        "code_counts": [result.code_counts.astype("<i8").tobytes() if result else b""],
        "grid_hashes": [result.grid_hashes.astype("<u8").tobytes() if result else b""],
        "coefficients": [STATS.dump_json(result.coefficients if result else None).decode()],
        "picture_hashes": [hashes.astype("<u8").tobytes() if hashes is not None else b""],
    }
