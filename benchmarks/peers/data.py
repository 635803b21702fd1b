"""The rows that all contenders hold: skewed random draws, the same in every run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

GRID = 32
CODES = 391
CLASSES = 1000
_DRAW_ROWS = 8192
_SHARES = 1 << 16


def draw(rows: int, folder: Path) -> None:
    """FOLDER/ids.npy (rows, 32, 32) uint16 and FOLDER/labels.npy (rows,) int64.

    Shares of the codes are gamma(0.75) draws: an order-0 entropy near that of ImageNet's tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    share = rng.gamma(0.75, size=CODES)
    counts = np.maximum(1, np.floor(share / share.sum() * (_SHARES - CODES))).astype(np.int64)
    counts[counts.argmax()] += _SHARES - counts.sum()
    code = np.repeat(np.arange(CODES, dtype=np.uint16), counts)  # a code stands once a share
    ids = np.lib.format.open_memmap(folder / "ids.npy", "w+", np.uint16, (rows, GRID, GRID))
    for start in range(0, rows, _DRAW_ROWS):
        part = ids[start : start + _DRAW_ROWS]
        part[:] = code[rng.integers(0, _SHARES, part.shape, np.uint16)]
    ids.flush()
    np.save(folder / "labels.npy", rng.integers(0, CLASSES, rows))


def label_sum(folder: Path) -> int:
    """Sum of all labels: an epoch that gave each row once has exactly this."""
    return int(np.load(folder / "labels.npy").sum())


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
