"""Small pictures, and tars and Parquet files that hold them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(number: int, size: int = 12) -> bytes:
    """A JPEG file; another number is another picture."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def write_tar(
    path: Path,
    members: Iterable[tuple[str, bytes]],
    mode: str = "w",
    form: int = tarfile.PAX_FORMAT,
) -> Path:
    """A tar with these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(numbers: Iterable[int]) -> list[tuple[str, bytes]]:
    """Members as img2dataset writes them: picture, caption and description of each number."""
    found = []
    for number in numbers:
        name = f"{number:09d}"
        found.append((f"{name}.jpg", picture(number)))
        found.append((f"{name}.json", f'{{"caption": "json {number}", "key": "x"}}'.encode()))
        found.append((f"{name}.txt", f"words {number}".encode()))
    return found


def write_parquet(path: Path, numbers: Iterable[int | None], rows: int = 5) -> Path:
    """A Parquet file as img2dataset writes it, in row groups of `rows`; None was not fetched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = list(numbers)
    table = pa.table(
        {
            "url": [f"http://x/{number}" for number in listed],
            "key": [f"{at:09d}" for at in range(len(listed))],
            "caption": [None if number is None else f"words {number}" for number in listed],
            "jpg": pa.array([None if n is None else picture(n) for n in listed], pa.binary()),
        }
    )
    pq.write_table(table, path, row_group_size=rows, write_page_checksum=True)
    return path
