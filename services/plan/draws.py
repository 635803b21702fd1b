"""Random numbers as hashes of what they are for, so nothing else can change them.

A number depends on (seed, epoch, row, operation, index) alone: not on the worker that draws it,
nor on its neighbours in a batch, nor on how often a task was retried. Only integer arithmetic,
exact float operations and one table are used, so every machine gets the same bits.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from services.errors import InvalidInputError
from services.types import FloatArray, IntArray

KeyArray = npt.NDArray[np.uint64]
LevelArray = npt.NDArray[np.uint16]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: the counter's stride of splitmix64
_ROUNDS = 8  # of the Feistel network; an even number mixes both halves equally
_CHUNK_WORDS = 1 << 16  # words hashed at a time, so that the passes run in the processor's cache
_MAX_INTEGER = 1 << 32
SEED_BITS = 64
"""Size of a seed: positions and keys hold 64 bits."""


def check_seed(name: str, seed: int, bits: int = SEED_BITS) -> None:
    """Refuse a seed that is not in [0, 2**bits). name: of the option. Raises: InvalidInputError."""
    if not 0 <= seed < 1 << bits:
        raise InvalidInputError(
            f"{name} is {seed}, it must be in 0..2**{bits}-1: nothing could be drawn by it again;"
            " choose another"
        )


def hash_key(*parts: int | str) -> int:
    """Mix names and numbers into one 64-bit key; `hash_key("a", 1)` and `hash_key("a1")` differ."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        kind = b"s" if isinstance(part, str) else b"i"
        text = str(part).encode()
        digest.update(kind + len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little")


def _mix(words: KeyArray) -> KeyArray:
    """Finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), in place."""
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


def derive(key: int | KeyArray, counters: IntArray | KeyArray) -> KeyArray:
    """One 64-bit key for each counter, shaped like `counters` (at least one dimension).

    key: one for all, or one for each counter.
    """
    return _mix((counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN + np.asarray(key, np.uint64))


def shuffle(key: int, count: int, group: IntArray | None = None) -> IntArray:
    """(count,) int64, a keyed random order of [0, count); fast for counts up to 2**32.

    group: (count,) non-negative int64; indexes then come by rising group, random within one.
    Sorting values that hold their own index settles ties alike on every machine, and beats an
    argsort by far.
    """
    index_bits = max(1, (count - 1).bit_length())
    mask = np.uint64((1 << index_bits) - 1)
    index = np.arange(count, dtype=np.uint64)
    words = derive(key, index)
    if group is not None:
        group_bits = int(group.max(initial=0)).bit_length()
        words >>= np.uint64(group_bits)
        words |= group.astype(np.uint64) << np.uint64(64 - group_bits)
    words = (words & ~mask) | index
    words.sort()
    return (words & mask).astype(np.int64)


def _scale(words: KeyArray, high: KeyArray | np.uint64) -> KeyArray:
    """Map words to [0, high) for high <= 2**32, by the upper half of a 32 x 32 bit product."""
    return ((words >> np.uint64(32)) * high) >> np.uint64(32)


def permute(index: IntArray, size: int | IntArray, key: int | KeyArray) -> IntArray:
    """Where a keyed shuffle of [0, size) puts each index, without laying the shuffle out.

    A Feistel network over a rectangle just larger than `size`, with cycle walking: an image
    outside of [0, size) is mapped again until it falls inside (Black and Rogaway, CT-RSA 2002).

    index: any shape, int64. size and key: one for all, or one for each index (broadcast).
    Raises InvalidInputError for an index outside of [0, size).
    """
    index = np.asarray(index, dtype=np.int64)
    shape = index.shape
    flat = index.reshape(-1)  # (n,)
    sizes = np.broadcast_to(np.asarray(size, dtype=np.int64), shape).reshape(-1)  # (n,)
    keys = np.broadcast_to(np.asarray(key, dtype=np.uint64), shape).reshape(-1)  # (n,)
    outside = (flat < 0) | (flat >= sizes)
    if outside.any():
        at = int(np.argmax(outside))
        raise InvalidInputError(
            f"index {flat[at]} is outside of [0, {sizes[at]}): a shuffle is defined there only; "
            "pass indexes of the range that is shuffled"
        )
    limit = sizes.astype(np.uint64)
    image = _feistel(flat.astype(np.uint64), limit, keys)
    astray = np.flatnonzero(image >= limit)
    while len(astray):
        image[astray] = _feistel(image[astray], limit[astray], keys[astray])
        astray = astray[image[astray] >= limit[astray]]
    return image.astype(np.int64).reshape(shape)


def _feistel(values: KeyArray, size: KeyArray, keys: KeyArray) -> KeyArray:
    """One pass over the width x height rectangle that covers [0, size), all (n,) uint64."""
    width = np.sqrt(size.astype(np.float64)).astype(np.uint64) + np.uint64(1)
    height = (size + width - np.uint64(1)) // width
    left, right = values // height, values % height  # left in [0, width), right in [0, height)
    for turn in range(_ROUNDS):
        salt = derive(turn, keys)  # (n,)
        # Adding a function of one half to the other, modulo its side, can always be undone.
        if turn % 2 == 0:
            left += _scale(_mix(right + salt), width)
            left -= np.where(left >= width, width, np.uint64(0))
        else:
            right += _scale(_mix(left + salt), height)
            right -= np.where(right >= height, height, np.uint64(0))
    image: KeyArray = left * height + right
    return image


@functools.cache
def _normal_table() -> FloatArray:
    """(65536,) float32: the middle quantiles of N(0, 1/2); a sum of two entries is N(0, 1)."""
    half = 1 << 15
    upper = [NormalDist().inv_cdf((half + i + 0.5) / (2 * half)) for i in range(half)]
    # fsum is exact, so the correction to unit variance is the same everywhere.
    scale = math.sqrt(0.5 / (math.fsum(value * value for value in upper) / half))
    top = np.array(upper) * scale
    return np.concatenate([-top[::-1], top]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of some rows, each in its epoch.

    seed: of the run. epoch: from 0, one for all rows or (N,) int64, one for each: the rows of a
    mixture stand in different epochs of their datasets. rows: (N,) int64 row numbers within the
    split; a row that does not exist is -1 and gets numbers too, which nobody will use.
    `op` names what a number is for: two operations never see the same numbers, nor do two
    methods. A larger `count` begins with the numbers of a smaller one.
    """

    seed: int
    epoch: int | IntArray
    rows: IntArray

    def __post_init__(self) -> None:
        if self.rows.ndim != 1 or self.rows.dtype != np.int64:
            raise InvalidInputError(
                f"rows must be (N,) int64, got {self.rows.shape} {self.rows.dtype}: "
                "each number is keyed by a row; pass the row numbers of a span"
            )
        epoch = self.epoch
        if isinstance(epoch, np.ndarray) and (
            epoch.shape != self.rows.shape or epoch.dtype != np.int64
        ):
            raise InvalidInputError(
                f"epoch must be an integer or {self.rows.shape} int64, got {epoch.shape} "
                f"{epoch.dtype}: each number is keyed by its row's epoch; pass one for each row"
            )

    def take(self, index: IntArray | slice) -> Draws:
        """The draws of some of the rows: each keeps its epoch, and so its numbers."""
        epoch = self.epoch[index] if isinstance(self.epoch, np.ndarray) else self.epoch
        return Draws(self.seed, epoch, self.rows[index])

    def keys(self, purpose: str, *names: str) -> KeyArray:
        """(N,) uint64, one key for each row: a hash of purpose, seed, epoch, names and row."""
        epochs, number = self._epochs
        keys = [hash_key(purpose, self.seed, epoch, *names) for epoch in epochs]
        if number is None:
            return derive(keys[0], self.rows)
        return derive(np.array(keys, dtype=np.uint64)[number], self.rows)

    @functools.cached_property
    def _epochs(self) -> tuple[list[int], IntArray | None]:
        """The different epochs, and which of them is each row's; None if there is one for all."""
        if not isinstance(self.epoch, np.ndarray):
            return [self.epoch], None
        epochs, number = np.unique(self.epoch, return_inverse=True)
        if len(epochs) < 2:
            return epochs.tolist() or [0], None
        return epochs.tolist(), number.astype(np.int64)

    def uniform(self, op: str, count: int = 1) -> FloatArray:
        """(N, count) float32, uniform in [0, 1), multiples of 2**-24."""
        return self._unit("uniform", op, count)

    def normal(self, op: str, count: int = 1) -> FloatArray:
        """(N, count) float32 of mean 0 and variance 1; sums of two quantiles, below 6 sigma."""
        numbers = np.empty((len(self.rows), count), dtype=np.float32)
        table = _normal_table()
        for part, words in self._words("normal", op, (count + 1) // 2):
            quarters = words.astype("<u8", copy=False).view("<u2")  # (n, 4 * words)
            terms = table.take(quarters).reshape(len(words), -1, 2)  # (n, 2 * words, 2)
            np.add(terms[:, :count, 0], terms[:, :count, 1], out=numbers[part])
        return numbers

    def integers(self, op: str, high: int, count: int = 1) -> IntArray:
        """(N, count) int64, uniform in [0, high); 1 <= high <= 2**32."""
        if not 1 <= high <= _MAX_INTEGER:
            raise InvalidInputError(
                f"high={high} is outside of [1, {_MAX_INTEGER}]: there would be no integer to draw"
                f" for {op!r}; pass the number of choices"
            )
        numbers = np.empty((len(self.rows), count), dtype=np.int64)
        for part, words in self._words("integers", op, count):
            numbers[part] = _scale(words, np.uint64(high))
        return numbers

    def levels(self, op: str, count: int = 1) -> LevelArray:
        """(N, count) uint16, every bit uniform: four of each hashed word, where the other methods
        make one number of it. For noise on whole maps, by far the most that any recipe draws.
        """
        numbers = np.empty((len(self.rows), (count + 3) // 4 * 4), dtype="<u2")
        starts = self.keys("levels", op) * _GOLDEN
        for part, words in _sequences(starts, (count + 3) // 4):
            numbers[part] = words.astype("<u8", copy=False).view("<u2")
        return numbers[:, :count]

    def block_uniform(self, op: str, count: int = 1) -> FloatArray:
        """(count,) float32 in [0, 1): one draw for all rows, keyed by the first that exists."""
        existing = np.flatnonzero(self.rows >= 0)[:1]  # (1,), or (0,) if none exists
        if len(existing):
            block = self.take(existing)
        else:
            epoch = self._epochs[0][0]
            block = Draws(self.seed, epoch, np.array([-1], dtype=np.int64))
        return block._unit("block", op, count).reshape(-1)

    def _unit(self, kind: str, op: str, count: int) -> FloatArray:
        """(N, count) float32: the upper 24 bits of each word."""
        numbers = np.empty((len(self.rows), count), dtype=np.float32)
        for part, words in self._words(kind, op, count):
            numbers[part] = words >> np.uint64(40)
        numbers *= np.float32(2.0**-24)
        return numbers

    def _words(self, kind: str, op: str, count: int) -> Iterator[tuple[slice, KeyArray]]:
        """Some rows at a time: (n, count) uint64, every bit uniform."""
        return _sequences(self.keys("draw", kind, op), count)


def _sequences(starts: KeyArray, count: int) -> Iterator[tuple[slice, KeyArray]]:
    """Some rows at a time: (n, count) uint64. Each row is a splitmix64 sequence from its start."""
    strides = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * _GOLDEN  # (count,)
    chunk = max(1, _CHUNK_WORDS // max(1, count))
    for begin in range(0, len(starts), chunk):
        part = slice(begin, begin + chunk)
        yield part, _mix(starts[part, None] + strides)
