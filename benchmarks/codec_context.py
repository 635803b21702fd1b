"""Context and order beside the shard's order-0 codec: what they save, and what they cost in speed.

Three sets of grids: tokens of real photographs (those that come with scikit-learn, and
scikit-image's where it is installed, cut into overlapping crops of 64 x 64 pixels) and of
scikit-learn's digits, each from a tokenizer that is trained here, and independent draws, on which
nothing can be saved. Sizes are bytes for 1024 tokens; speeds are images of 1024 tokens a second
from bytes in memory to uint16 ids, one core. Figures named `_code_` are lengths of ideal
arithmetic codes, without a decoder.
"""

from __future__ import annotations

import lzma
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import codec as shipped
import harness
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import zstandard
from parts.real_tokens import SIDE, Grids, tokenised, write_crops

from services.pictures import write_digits
from services.shards import codec
from services.types import IdArray, IntArray

MUCH = 32.0  # pseudo-counts of the shorter context, in adaptive codes
PAGE = 1 << 20
Parts = list[bytes]


# --- ideal codes


def order0_bits(ids: IdArray, codes: int) -> float:
    counts = codec.count_codes(ids, codes)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def static_bits(context: IntArray, ids: IntArray, codes: int) -> float:
    """Bits a token that a table made from these very tokens would give, the table for nothing."""
    _, pairs = np.unique(context * codes + ids, return_counts=True)
    _, alone = np.unique(context, return_counts=True)
    total = float((alone * np.log2(alone)).sum() - (pairs * np.log2(pairs)).sum())
    return total / ids.size


def adaptive_bits(grids: Grids, rows_a_step: int = 32) -> tuple[float, float, float]:
    """Bits a token of codes that learn as they go: no context, left, left and up.

    Counts grow after each few rows; a longer context leans on the shorter one by `MUCH` counts.
    """
    codes, ids = grids.codes, grids.ids.astype(np.int64)
    left = np.pad(ids, ((0, 0), (0, 0), (1, 0)), constant_values=codes)[:, :, :-1]
    up = np.pad(ids, ((0, 0), (1, 0), (0, 0)), constant_values=codes)[:, :-1]
    both = left * (codes + 1) + up
    seen0, all0 = np.full(codes, 0.5), codes / 2
    seen1, all1 = (np.zeros(size, np.float32) for size in ((codes + 1) * codes, codes + 1))
    seen2, all2 = (np.zeros((codes + 1) ** 2 * size, np.float32) for size in (codes, 1))
    total = np.zeros(3)
    for start in range(0, len(ids), rows_a_step):
        part = slice(start, start + rows_a_step)
        x, one, two = (array[part].ravel() for array in (ids, left, both))
        share0 = seen0[x] / all0
        share1 = (seen1[one * codes + x] + MUCH * share0) / (all1[one] + MUCH)
        share2 = (seen2[two * codes + x] + MUCH * share1) / (all2[two] + MUCH)
        total -= [float(np.log2(share).sum()) for share in (share0, share1, share2)]
        for counts, index in (
            (seen0, x),
            (seen1, one * codes + x),
            (all1, one),
            (seen2, two * codes + x),
            (all2, two),
        ):
            np.add.at(counts, index, 1)
        all0 += x.size
    bits = total / ids.size
    return float(bits[0]), float(bits[1]), float(bits[2])


# --- real coders: planes of bytes, each packed by its own


def zstd(level: int, **more: int) -> zstandard.ZstdCompressor:
    if not more:
        return zstandard.ZstdCompressor(level=level)
    parameters = zstandard.ZstdCompressionParameters.from_level(level, **more)
    return zstandard.ZstdCompressor(compression_params=parameters)


def to_brotli(data: bytes) -> bytes:
    packed: bytes = pa.Codec("brotli", 11).compress(data, asbytes=True)
    return len(data).to_bytes(4, "little") + packed


def from_brotli(packed: bytes) -> bytes:
    size = int.from_bytes(packed[:4], "little")
    data: bytes = pa.Codec("brotli").decompress(packed[4:], size, asbytes=True)
    return data


def split_pages(plane: bytes) -> Parts:
    return [plane[at : at + PAGE] for at in range(0, len(plane), PAGE)]


def to_planes(values: IdArray, codes: int) -> Parts:
    """Low bytes, and high bytes where there are any, in pages as a shard has them."""
    planes = [values.astype(np.uint8).tobytes()]
    if codes > 256:
        planes.append((values >> 8).astype(np.uint8).tobytes())
    return [page for plane in planes for page in split_pages(plane)]


def from_planes(pages: Parts, shape: tuple[int, ...], codes: int) -> IdArray:
    flat = np.frombuffer(b"".join(pages), np.uint8).reshape(-1, *shape)
    values = flat[0].astype(np.uint16)
    if codes > 256:
        values |= flat[1].astype(np.uint16) << np.uint16(8)
    return values


@dataclass(frozen=True)
class Coder:
    """A form of the tokens: bytes to pack, and the way back; `packer` makes fewer of them."""

    encode: Callable[[], Parts]
    decode: Callable[[Parts], IdArray]
    pack: Callable[[bytes], bytes] = zstd(1).compress
    unpack: Callable[[bytes], bytes] = zstandard.ZstdDecompressor(
        max_window_size=1 << 27
    ).decompress


def ranked(grids: Grids) -> tuple[IdArray, IdArray]:
    """(ids as ranks (N, T), codes by rank)."""
    order = np.argsort(-codec.count_codes(grids.ids, grids.codes), kind="stable")
    inverse = np.empty(grids.codes, np.uint16)
    inverse[order] = np.arange(grids.codes)
    return inverse[grids.flat], order.astype(np.uint16)


def shards_own(grids: Grids, **packer: Callable[[bytes], bytes]) -> Coder:
    """The form that shards have, each byte column in pages."""
    ids_NT = grids.flat
    form = codec.choose(ids_NT, grids.codes, lambda plane: len(zstd(1).compress(plane.tobytes())))
    columns = codec.encode(ids_NT, grids.codes, form)
    names = ("low", "high", "escape_low", "escape_high")
    arrays = [getattr(columns, name) for name in names]
    pages = [split_pages(array.tobytes()) for array in arrays]

    def decode(parts: Parts) -> IdArray:
        found, at = {}, 0
        for name, array, of_it in zip(names, arrays, pages, strict=True):
            joined = b"".join(parts[at : at + len(of_it)])
            found[name] = np.frombuffer(joined, np.uint8).reshape(array.shape)
            at += len(of_it)
        return codec.decode(replace(columns, **found))

    return Coder(lambda: [page for of_it in pages for page in of_it], decode, **packer)


def neighbour(grids: Grids, kind: str) -> Coder:
    """Ranks, each XORed with, or less, the one to its left (or above: `delta_up`)."""
    ranks_NT, order = ranked(grids)
    axis = 1 if kind == "delta_up" else -1
    grid = ranks_NT.reshape(grids.ids.shape)
    before = np.zeros_like(grid)
    ahead = [slice(None)] * 3
    ahead[axis] = slice(1, None)
    behind = [slice(None)] * 3
    behind[axis] = slice(None, -1)
    before[tuple(ahead)] = grid[tuple(behind)]
    if kind == "xor_left":
        values, limit = grid ^ before, 1 << int(grids.codes - 1).bit_length()
        undo = np.bitwise_xor
    else:
        values, limit = (grid + np.uint16(grids.codes) - before) % grids.codes, grids.codes
        undo = np.add

    def decode(parts: Parts) -> IdArray:
        found = from_planes(parts, grid.shape, limit)
        summed = undo.accumulate(found, axis=axis, dtype=np.uint16)
        if undo is np.add:  # the longest sum, 128 x 511, fits 16 bits
            summed %= np.uint16(grids.codes)
        return order[summed.reshape(ranks_NT.shape)]

    return Coder(lambda: to_planes(values.astype(np.uint16), limit), decode)


def high_bits(grids: Grids) -> Coder:
    """Low byte of the rank, and its ninth bit packed eight to a byte in place of escapes."""
    ranks_NT, order = ranked(grids)
    table = pa.array(np.pad(order, (0, 512 - len(order))))
    planes = [ranks_NT.astype(np.uint8), np.packbits(ranks_NT > 255)]
    pages = [split_pages(plane.tobytes()) for plane in planes]

    def decode(parts: Parts) -> IdArray:
        low, high = (np.frombuffer(b"".join(part), np.uint8) for part in (parts[:cut], parts[cut:]))
        ranks = np.unpackbits(high, count=low.size).astype(np.uint16)
        ranks <<= 8
        ranks |= low
        found = pc.take(table, pa.array(ranks), boundscheck=False)
        return np.frombuffer(found.buffers()[1], np.uint16, low.size).reshape(ranks_NT.shape)

    cut = len(pages[0])
    return Coder(lambda: [*pages[0], *pages[1]], decode)


def rank_given_left(grids: Grids) -> Coder:
    """A code's rank among those that follow the code to its left: an order-1 code by tables."""
    ids_NT, codes = grids.flat, grids.codes
    pairs = np.zeros((codes + 1, codes), np.int64)  # the last context: nothing to the left
    left = np.pad(ids_NT, ((0, 0), (1, 0)), constant_values=codes)[:, :-1]
    np.add.at(pairs, (left.ravel(), ids_NT.ravel()), 1)
    orders = np.argsort(-pairs, axis=1, kind="stable").astype(np.uint16)
    inverse = np.empty_like(orders)
    np.put_along_axis(inverse, orders, np.arange(codes, dtype=np.uint16)[None], 1)
    ranks_TN = np.ascontiguousarray(inverse[left, ids_NT].T)
    flat = orders.ravel()

    def encode() -> Parts:
        # Tables cost bytes too: of each context, the codes that occur after it, 2 bytes each.
        used = [row[:count].tobytes() for row, count in zip(orders, (pairs > 0).sum(1))]  # noqa: B905
        return [*to_planes(ranks_TN, codes), b"".join(used)]

    def decode(parts: Parts) -> IdArray:
        ranks = from_planes(parts[:-1], ranks_TN.shape, codes)
        ids_TN = np.empty_like(ranks)
        base = np.full(ranks.shape[1], codes, np.uint32)
        for column, ranks_N in enumerate(ranks):
            base = flat.take(base * np.uint32(codes) + ranks_N).astype(np.uint32)
            ids_TN[column] = base
        return np.ascontiguousarray(ids_TN.T)

    return Coder(encode, decode)


def with_dictionary(grids: Grids, rows_a_frame: int) -> Coder:
    """Frames of a few rows that share a trained dictionary, which stands beside them."""
    ranks_NT, order = ranked(grids)
    rows = [row.astype(np.uint8).tobytes() for row in ranks_NT]
    high = (ranks_NT >> 8).astype(np.uint8).tobytes()
    frames = [b"".join(rows[at : at + rows_a_frame]) for at in range(0, len(rows), rows_a_frame)]
    trained = zstandard.train_dictionary(112_640, frames[:: max(1, len(frames) // 4000)])
    packer = zstandard.ZstdCompressor(level=1, dict_data=trained)
    unpacker = zstandard.ZstdDecompressor(dict_data=trained)
    body = [*frames, *split_pages(high)] if grids.codes > 256 else frames
    return Coder(
        lambda: body,
        lambda parts: order[from_planes(parts, ranks_NT.shape, grids.codes)],
        packer.compress,
        unpacker.decompress,
    )


def by_histogram(grids: Grids) -> IntArray:
    """Rows by similarity: along the main direction of their code counts, then by first tokens."""
    rows, tokens = grids.flat.shape
    counts = np.zeros((rows, grids.codes), np.float32)
    np.add.at(counts, (np.repeat(np.arange(rows), tokens), grids.flat.ravel()), 1)
    main = np.linalg.svd(np.cov(counts.T))[0][:, 0]
    return np.argsort(np.round(counts @ main, 1), kind="stable")


# --- the comparison


def drawn(rows: int) -> Grids:
    block = next(shipped.draw(rows))
    return Grids(block.ids, block.labels, shipped.SPEC.codes)


def measure(report: harness.Report, name: str, grids: Grids, quick: bool) -> None:
    ids = grids.flat.astype(np.int64)
    bits = {"order0": order0_bits(grids.ids, grids.codes)}
    left = np.pad(grids.ids.astype(np.int64), ((0, 0), (0, 0), (1, 0)))[:, :, :-1].reshape(
        ids.shape
    )
    up = np.pad(grids.ids.astype(np.int64), ((0, 0), (1, 0), (0, 0)))[:, :-1].reshape(ids.shape)
    bits["left_static"] = static_bits(left, ids, grids.codes)
    bits["left_up_static"] = static_bits(left * grids.codes + up, ids, grids.codes)
    bits["order0_adaptive"], bits["left_adaptive"], bits["left_up_adaptive"] = adaptive_bits(grids)
    for kind, of_it in bits.items():
        report.add(f"{name}_code_{kind}_bytes", of_it * 128, "B", peer=bits["order0"] * 128)

    own = shards_own(grids)
    peer_bytes, peer_speed = tried(report, name, "shard", own, grids)
    coders: dict[str, tuple[Coder, Grids]] = {"rank_given_left": (rank_given_left(grids), grids)}
    if grids.codes > 256:
        coders["high_bits"] = high_bits(grids), grids
    for kind in ("xor_left", "delta_left", "delta_up"):
        coders[kind] = neighbour(grids, kind), grids
    for rows in (1, 64):
        coders[f"dictionary_frames_of_{rows}"] = with_dictionary(grids, rows), grids
    orders = {
        "first_tokens": np.lexsort(grids.flat[:, 7::-1].T),
        "label": np.argsort(grids.labels, kind="stable"),
        "histogram": by_histogram(grids),
    }
    long = {"enable_ldm": 1, "window_log": 27}
    for order, index in orders.items():
        there = grids.sorted(index)
        coders[f"by_{order}"] = shards_own(there), there
        best = zstd(19, **long).compress
        coders[f"by_{order}_zstd19_long"] = shards_own(there, pack=best), there
    for level in (3, 9, 19):
        coders[f"zstd{level}"] = shards_own(grids, pack=zstd(level).compress), grids
    coders["zstd19_long"] = shards_own(grids, pack=zstd(19, **long).compress), grids
    if not quick:
        coders["lzma9"] = shards_own(grids, pack=lzma.compress, unpack=lzma.decompress), grids
        coders["brotli11"] = shards_own(grids, pack=to_brotli, unpack=from_brotli), grids
    for kind, (coder, of) in coders.items():
        tried(report, name, kind, coder, of, peer_bytes, peer_speed)


def tried(
    report: harness.Report,
    name: str,
    kind: str,
    coder: Coder,
    grids: Grids,
    peer_bytes: float | None = None,
    peer_speed: float | None = None,
) -> tuple[float, float]:
    parts = coder.encode()
    began = time.perf_counter()
    packed = [coder.pack(part) for part in parts]
    pack_seconds = time.perf_counter() - began

    def decode() -> IdArray:
        return coder.decode([coder.unpack(part) for part in packed])

    if not np.array_equal(decode(), grids.flat):
        raise AssertionError(f"{kind} lost tokens")
    size = sum(map(len, packed)) / grids.images
    speed = grids.images / harness.median_seconds(decode, 5)
    report.add(f"{name}_{kind}_bytes", size, "B", peer=peer_bytes)
    report.add(f"{name}_{kind}_images_per_second", speed, "1/s", peer=peer_speed)
    report.add(f"{name}_{kind}_packed_images_per_second", grids.images / pack_seconds, "1/s")
    return size, speed


def main() -> None:
    options = harness.options(__doc__, harness.Options)
    packages = ("numpy", "pyarrow", "scikit-learn", "torch", "zstandard")
    report = harness.Report("codec_context", options, packages=packages)
    quick = options.quick
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        names = write_crops(folder / "photos", 900 if quick else 8_100)
        epochs = 3 if quick else 1
        sizes = {"image_size": SIDE, "patch": 4, "codes": 391, "channels": 32}
        photos = tokenised(folder / "photos", folder / "a", epochs, **sizes)
        digits = tokenised(write_digits(folder / "digits"), folder / "b", 1 if quick else 8)
    for name, grids in {
        "photos": photos,
        "digits": digits,
        "draws": drawn(1024 if quick else 2048),
    }.items():
        measure(report, name, grids, quick)
        rows, height, width = grids.ids.shape
        used = np.count_nonzero(codec.count_codes(grids.ids, grids.codes))
        report.note(
            f"{name}: {rows} grids, {height} x {width} tokens; {used} of {grids.codes} codes used."
        )
    report.note(
        f"photos: crops of {SIDE} x {SIDE} pixels at random places of {names}; they overlap, so "
        "what sorting and long windows find in them is more than pictures that differ would give."
    )
    report.note(
        "Peer of the codes: order 0, whose counts cost nothing. Peer of the coders: the form that "
        "shards have (zstd level 1 over one byte a token and escapes, in pages of 1 MiB). Static "
        "codes learn their tables from the tokens that they code, for nothing, and so promise "
        "gains even on independent draws; adaptive codes pay for what they learn."
    )
    report.finish()


if __name__ == "__main__":
    main()
