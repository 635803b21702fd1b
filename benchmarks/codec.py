"""Token shards: within 1 % of the entropy of their ids, and 500,000 images/s to grids on one core.

128,000 grids of 1024 tokens are drawn from a skewed distribution over 391 codes and written as
shards. Compared in the same run: the published escape + gzip, uint16 + zstd, and 9-bit packing.
Bytes count the tokens alone; keys, labels and sizes are the same for every form. Decoding runs on
one core, from files that the system holds in its page cache to grids of uint16 ids in memory: all
128,000 images of the shards and of the release, one shard of the other forms.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import harness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from services.shards import codec, layout
from services.shards.cache import ShardCache
from services.shards.checked import read_checked
from services.shards.release_files import ReleaseSplit, read_split, write_split
from services.shards.store import Store, open_store
from services.shards.writer import DEFAULT_SHARD_ROWS, write_shard
from services.types import IdArray, IntArray, TokenRows
from services.wire.seit import v1 as wire

SPEC = wire.TokenSpec(
    grid_height=32, grid_width=32, codes=391, channels=32, image_height=256, image_width=256
)
TOKENS = SPEC.grid_height * SPEC.grid_width
BITS = 9
GATHER_ROWS = 8192
PAGE = 1 << 20
TOKEN_COLUMNS = ("tokens", "escape")


def draw(rows: int) -> Iterator[TokenRows]:
    """Blocks of rows; code shares are gamma(0.75) draws, the same in each run."""
    rng = np.random.default_rng(1)
    share = rng.gamma(0.75, size=SPEC.codes)
    ladder = np.cumsum(share / share.sum())
    for start in range(0, rows, DEFAULT_SHARD_ROWS):
        count = min(DEFAULT_SHARD_ROWS, rows - start)
        ids = np.searchsorted(ladder, rng.random((count, TOKENS), np.float32))
        ids = np.minimum(ids, SPEC.codes - 1).astype(np.uint16)
        keys = [f"{row:08d}" for row in range(start, start + count)]
        yield TokenRows(
            ids.reshape(count, SPEC.grid_height, SPEC.grid_width),
            rng.integers(0, 1000, count),
            keys,
            rng.integers(20_000, 200_000, count),
        )


def pack_bits(ids_NT: IdArray) -> bytes:
    """9-bit packing, lowest bit first."""
    bits = ids_NT.reshape(-1, 1) >> np.arange(BITS, dtype=np.uint16) & 1
    return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()


def unpack_bits(packed: bytes) -> IdArray:
    """Eight ids from every nine bytes, one pass for each of the eight places."""
    nine = np.frombuffer(packed, np.uint8).reshape(-1, BITS).astype(np.uint16)
    ids = np.empty((len(nine), 8), np.uint16)
    for place in range(8):
        word = nine[:, place] | nine[:, place + 1] << np.uint16(8)
        ids[:, place] = word >> np.uint16(place) & np.uint16((1 << BITS) - 1)
    return ids.reshape(-1, TOKENS)


def random_rows(rows: int, take: Callable[[IntArray], object]) -> float:
    """Images/s of gathers of 8192 random rows, median of seven."""
    index = np.random.default_rng(2).integers(0, rows, GATHER_ROWS)
    take(index)
    return GATHER_ROWS / harness.median_seconds(lambda: take(index), 7)


def main() -> None:
    options = harness.options(__doc__, harness.Options)
    report = harness.Report("codec", options, packages=("numpy", "pyarrow"))
    rows = 16_384 if options.quick else 128_000
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    zstd = pa.Codec("zstd", 1)
    counts = np.zeros(SPEC.codes, np.int64)
    sizes = dict.fromkeys(("ours", "file", "uint16_zstd", "packed9"), 0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store, dataset = open_store(scratch), open_store(str(folder / "ds"))
        shards, blocks = [], []
        for block in draw(rows):
            ids_NT = block.ids.reshape(-1, TOKENS)
            shard = write_shard(store, "ds", "train", block, SPEC).shard
            group = pq.ParquetFile(folder / "ds" / shard.path).metadata.row_group(0)
            for column in map(group.column, range(group.num_columns)):
                if column.path_in_schema in TOKEN_COLUMNS:
                    sizes["ours"] += column.total_compressed_size
            sizes["file"] += shard.bytes
            sizes["uint16_zstd"] += len(zstd.compress(ids_NT.tobytes(), asbytes=True))
            sizes["packed9"] += rows_bits(len(block))
            counts += codec.count_codes(ids_NT, SPEC.codes)
            shards.append(shard)
            blocks.append(block)
        release = ReleaseSplit(folder, "peer-train")
        write_split(release, iter(blocks), rows, SPEC.codes)
        sizes["release"] = release.data.stat().st_size
        speeds = measure(folder, blocks[0], shards, zstd)
        # The files of a whole split, as their reader goes through them.
        seconds = harness.median_seconds(lambda: sum(map(len, read_split(release, SPEC))))
        speeds["release"] = rows / seconds

        def read_all() -> None:
            for shard in shards:
                grids(dataset, shard)

        speeds["shards"] = rows / harness.median_seconds(read_all, 5)

    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * np.log2(share)).sum()) * TOKENS / 8
    each = {name: size / rows for name, size in sizes.items()}
    report.add("entropy_bytes_per_image", entropy, "B")
    report.add("bytes_per_image", each["ours"], "B", peer=each["release"])
    report.add("bytes_over_entropy", each["ours"] / entropy, "1", at_most=1.01)
    report.add("bytes_over_release", each["ours"] / each["release"], "1", at_most=0.93)
    report.add("file_bytes_per_image", each["file"], "B")
    for name in ("release", "uint16_zstd", "packed9"):
        report.add(f"{name}_bytes_per_image", each[name], "B")
    peer = speeds["release"]
    for name in ("shards", "cache_entry"):
        report.add(f"{name}_images_per_second", speeds[name], "1/s", peer=peer, at_least=500_000)
    report.add("unzip_images_per_second", speeds["unzip"], "1/s")
    for name in ("release", "uint16_zstd", "packed9"):
        report.add(f"{name}_images_per_second", speeds[name], "1/s")
    report.add("write_images_per_second", speeds["write"], "1/s")
    report.note(
        "shards is the whole way of a shard file, which a node goes once: xxh3, zstd, checks, ids; "
        "unzip is its zstd alone, which bounds it. cache_entry gathers random rows "
        "from the node's cache, which serves every later use. release is the published escape + "
        "gzip."
    )
    report.finish()


def grids(dataset: Store, shard: wire.Shard) -> IdArray:
    """Ids of a shard file, (N, H * W) uint16, checked as a node checks them: against the xxh3 of
    the manifest, then decoded with every check of their content."""
    return layout.read_rows(
        read_checked(dataset, shard), SPEC, shard.rows, digest_checked=True
    ).ids()


def rows_bits(rows: int) -> int:
    """Bytes of 9-bit packed rows."""
    return -(-rows * TOKENS * BITS // 8)


def measure(
    folder: Path, block: TokenRows, shards: list[wire.Shard], zstd: pa.Codec
) -> dict[str, float]:
    """Images/s of each way on the first shard, one core."""
    shard, ids_NT = shards[0], block.ids.reshape(-1, TOKENS)
    count = len(block)
    low = codec.encode(ids_NT, SPEC.codes).low.reshape(-1)
    cache = ShardCache(folder / "cache", 1 << 30)
    cached = cache.rows(open_store(str(folder)), "ds", shard, SPEC)
    (folder / "zstd").write_bytes(zstd.compress(ids_NT.tobytes(), asbytes=True))
    (folder / "packed9").write_bytes(pack_bits(ids_NT))

    pages = [low[at : at + PAGE] for at in range(0, low.size, PAGE)]
    zipped = [(page.size, zstd.compress(page.tobytes(), asbytes=True)) for page in pages]

    def unzip() -> list[pa.Buffer]:
        return [zstd.decompress(page, size) for size, page in zipped]

    def uint16_zstd() -> IdArray:
        plain = zstd.decompress((folder / "zstd").read_bytes(), 2 * ids_NT.size)
        return np.frombuffer(plain, np.uint16).reshape(-1, TOKENS).copy()

    def packed9() -> IdArray:
        return unpack_bits((folder / "packed9").read_bytes())

    speeds = {"cache_entry": random_rows(count, cached.take)}
    if not np.array_equal(grids(open_store(str(folder / "ds")), shard), ids_NT):
        raise AssertionError("the shard lost tokens")
    speeds["unzip"] = count / harness.median_seconds(unzip, 7)
    for name, way in {"uint16_zstd": uint16_zstd, "packed9": packed9}.items():
        if not np.array_equal(way().reshape(-1, TOKENS), ids_NT):
            raise AssertionError(f"{name} lost tokens")
        speeds[name] = count / harness.median_seconds(way, 7)
    speeds["write"] = count / harness.median_seconds(lambda: layout.to_parquet(block, SPEC))
    return speeds


if __name__ == "__main__":
    main()
