"""What DCT coefficients take in a dataset's shards, against JPEG and plain compression of the same.

Crops of photographs (those of scikit-learn and, where it is installed, scikit-image), 256 x 256
pixels. All arms hold the very same quantised coefficients without loss: JPEG with our table as its
own, no subsampling and optimised Huffman codes. Speeds are of one core, from a file's bytes to maps
(N, D, h, w) in memory.
"""

from __future__ import annotations

import io
import lzma
import os
from dataclasses import dataclass

import harness
import numpy as np
import pyarrow as pa
import torch
import zstandard
from parts.real_tokens import photographs
from PIL import Image

from services.shards.coefficients import dense, from_rows, sparse, to_rows
from services.shards.column_file import Part, part_file, read_part
from services.tokens.dct import DCT, DCTConfig, zigzag

SIDE, BLOCK = 256, 8


@dataclass(frozen=True)
class Options(harness.Options):
    """Flags."""

    crops: int = 360
    """Crops of all photographs together (count)."""


def crops(count: int) -> list[Image.Image]:
    rng, found, photos = np.random.default_rng(0), [], list(photographs().values())
    for number in range(count):
        pixels = photos[number % len(photos)]
        side = int(rng.integers(SIDE, min(pixels.shape[:2]) + 1))
        top, left = (int(rng.integers(0, size - side + 1)) for size in pixels.shape[:2])
        crop = Image.fromarray(pixels[top : top + side, left : left + side]).convert("RGB")
        found.append(crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return found


def jpeg_bytes(picture: Image.Image, table: list[int]) -> int:
    sink = io.BytesIO()
    picture.save(sink, "JPEG", qtables=[table, table], subsampling=0, optimize=True)
    return len(sink.getvalue())


def jpeg_table(dct: DCT) -> list[int]:
    """Our steps of Y as a table of JPEG, row by row, in its units."""
    table = np.zeros((BLOCK, BLOCK), np.int64)
    for (row, column), step in zip(zigzag(BLOCK), dct.steps.flatten().tolist(), strict=False):
        table[row, column] = round(step * 255)
    return table.flatten().tolist()


def main() -> None:
    options = harness.options(__doc__, Options)
    count = 60 if options.quick else options.crops
    torch.set_num_threads(1)
    pictures = crops(count)
    dct = DCT(DCTConfig((SIDE, SIDE), BLOCK, keep=BLOCK**2, codes=1))
    pixels = torch.from_numpy(np.stack([np.asarray(one) for one in pictures]))
    maps = dct.coefficients(pixels.movedim(-1, 1).float() / 255).numpy().astype(np.int16)
    rows = to_rows(sparse(maps, BLOCK**2))
    part = Part("dct", "coefficients", "0" * 32, 0, count)
    values = pa.array(rows, pa.binary())
    file = part_file(values, part)

    def decode() -> np.ndarray:
        offsets, content = read_part(file, part, "file")
        spans = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        return dense(from_rows([content[a:b].tobytes() for a, b in spans]))

    assert np.array_equal(decode(), maps)
    report = harness.Report(
        "dct_storage", options, packages=("numpy", "pyarrow", "pillow", "zstandard")
    )
    ours = len(file) / count
    table = jpeg_table(dct)
    jpeg = sum(jpeg_bytes(one, table) for one in pictures) / count
    report.add("crops", count, "count")
    report.add("nonzeros_per_image", np.count_nonzero(maps) / count, "count")
    report.add("shard_bytes_per_image", ours, "B", peer=jpeg)
    report.add("jpeg_same_table_bytes_per_image", jpeg, "B")
    report.add("shard_to_jpeg_ratio", ours / jpeg, "1", at_most=1.0)
    report.add("order0_entropy_bytes_per_image", order0(maps) / count, "B")
    packer = zstandard.ZstdCompressor(level=9)
    report.add(
        "rows_zstd9_bytes_per_image",
        len(packer.compress(b"".join(rows))) / count,
        "B",
    )
    planes = np.ascontiguousarray(maps.transpose(1, 0, 2, 3))
    report.add(
        "planes_zstd9_bytes_per_image",
        sum(len(packer.compress(plane.tobytes())) for plane in planes) / count,
        "B",
    )
    report.add(
        "planes_lzma_bytes_per_image",
        sum(len(lzma.compress(plane.tobytes())) for plane in planes) / count,
        "B",
    )
    report.add("uncompressed_rows_bytes_per_image", sum(map(len, rows)) / count, "B")
    report.add("raw_pixels_bytes_per_image", 3 * SIDE * SIDE, "B")
    repeats = 1 if options.quick else 3
    report.add(
        "pack_images_per_second",
        count / harness.median_seconds(lambda: part_file(values, part), repeats),
        "1/s",
    )
    report.add("decode_images_per_second", count / harness.median_seconds(decode, repeats), "1/s")
    report.add(
        "row_to_map_images_per_second",
        count / harness.median_seconds(lambda: [dense(from_rows([row])) for row in rows], repeats),
        "1/s",
    )
    report.finish()


def order0(maps: np.ndarray) -> float:
    """Bytes of an ideal code that knows each channel's own distribution."""
    bits = 0.0
    for plane in maps.transpose(1, 0, 2, 3):
        _, counts = np.unique(plane, return_counts=True)
        bits -= float((counts * np.log2(counts / plane.size)).sum())
    return bits / 8


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
