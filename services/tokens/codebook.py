"""The table that turns token ids into vectors, and the search that turns vectors into ids.

Shape letters: N rows, H and W grid sides, M any number of vectors, K codes, D channels of a code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from services.errors import FormatError, InvalidInputError
from services.tokens.devices import on_device
from services.tokens.weights import read_safetensors, read_torch, to_safetensors
from services.types import MAX_CODES, IntArray
from services.wire.seit import v1 as wire

Metric = Literal["cosine", "euclidean"]
_METRICS: dict[str, Metric] = {"cosine": "cosine", "euclidean": "euclidean"}

CODEBOOK_FORMAT = 1
_CPU_CHUNK_ELEMENTS = 1 << 18  # 1 MiB: what a core keeps in its cache
_CHUNK_ELEMENTS = 1 << 24  # of the (rows, K) score matrix: 64 MiB of float32


@torch.no_grad()
def nearest_codes(vectors: Tensor, weight_KD: Tensor, metric: Metric = "cosine") -> Tensor:
    """Id of the nearest code for each vector: (..., D) -> (...) int64.

    "cosine" compares unit vectors, "euclidean" the vectors as they are. Works in pieces, so that
    memory stays bounded for any number of vectors and codes. Computed in float32 at least.
    """
    flat_MD = vectors.reshape(-1, vectors.shape[-1])
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    flat_MD, weight_KD = flat_MD.to(dtype), weight_KD.to(dtype)
    if metric == "cosine":
        # A vector's own length does not change its order of codes; only theirs must be one.
        weight_KD = F.normalize(weight_KD, dim=1)
        offset_K = weight_KD.new_zeros(len(weight_KD))
    else:
        # |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2): the largest bracket is the nearest code.
        offset_K = weight_KD.square().sum(1) / -2
    weight_DK = weight_KD.T.contiguous()
    on_cpu = flat_MD.device.type == "cpu"
    rows = max(1, (_CPU_CHUNK_ELEMENTS if on_cpu else _CHUNK_ELEMENTS) // len(weight_KD))
    ids_M = torch.empty(len(flat_MD), dtype=torch.int64, device=flat_MD.device)
    scores = flat_MD.new_empty(min(rows, len(flat_MD)), len(weight_KD))
    for piece, found in zip(torch.split(flat_MD, rows), torch.split(ids_M, rows), strict=True):
        score = torch.addmm(offset_K, piece, weight_DK, out=scores[: len(piece)])
        if on_cpu:
            # Scores stay in the processor's cache, and numpy's argmax is ten times PyTorch's.
            score.numpy().argmax(1, out=found.numpy())
        else:
            torch.argmax(score, 1, out=found)
    return ids_M.view(vectors.shape[:-1])


@dataclass(frozen=True, eq=False)
class Codebook:
    """K code vectors and how vectors are compared with them.

    weight: (K, D) floating point. metric: "cosine" (ViT-VQGAN) or "euclidean" (VQGAN, DCT).
    original: (K,) int64, each code's id in the codebook that this one is a part of; None for a
    whole one.
    """

    weight: Tensor
    metric: Metric = "cosine"
    original: IntArray | None = None

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or not self.weight.is_floating_point():
            raise InvalidInputError(
                f"a codebook is a (K, D) table of floats, got {tuple(self.weight.shape)} "
                f"{self.weight.dtype}"
            )
        if not (1 <= self.codes <= MAX_CODES and self.channels >= 1):
            raise InvalidInputError(
                f"a codebook of {self.codes} codes x {self.channels} channels is outside "
                f"1..{MAX_CODES} codes and at least 1 channel"
            )
        if self.metric not in _METRICS:
            raise InvalidInputError(f"metric={self.metric!r} is not one of {', '.join(_METRICS)}")
        if self.original is not None and self.original.shape != (self.codes,):
            raise InvalidInputError(
                f"{self.codes} codes have one original id each, got {self.original.shape}"
            )

    @property
    def codes(self) -> int:
        """K."""
        return self.weight.shape[0]

    @property
    def channels(self) -> int:
        """D."""
        return self.weight.shape[1]

    def to(self, device: torch.device | str) -> Codebook:
        """The same codebook on another device."""
        return Codebook(self.weight.to(device), self.metric, self.original)

    def lookup(self, ids: Tensor) -> Tensor:
        """Vectors of integer ids: (...) -> (..., D)."""
        return F.embedding(ids.long(), self.weight)

    def embed(self, ids_NHW: Tensor) -> Tensor:
        """Maps of grids of ids: (N, H, W) -> (N, D, H, W), contiguous."""
        return self.lookup(ids_NHW).movedim(-1, 1).contiguous()

    def quantise(self, map_NDHW: Tensor) -> Tensor:
        """Nearest ids of maps: (N, D, H, W) -> (N, H, W) int64."""
        return nearest_codes(map_NDHW.movedim(1, -1), self.weight, self.metric)

    def synonyms(self, count: int) -> Tensor:
        """The `count` nearest other codes of each code, nearest first: (K, count) int64.

        Raises `InvalidInputError` unless 1 <= count < K.
        """
        if not 1 <= count < self.codes:
            raise InvalidInputError(
                f"count={count} synonyms is outside 1..{self.codes - 1}: a codebook of "
                f"{self.codes} codes has no more others"
            )
        weight = self.weight.float()
        if self.metric == "cosine":
            weight = F.normalize(weight, dim=1)
        rows = max(1, _CHUNK_ELEMENTS // self.codes)
        found = []
        for start in range(0, self.codes, rows):
            distance = torch.cdist(weight[start : start + rows], weight)  # (rows, K)
            own = torch.arange(len(distance), device=weight.device)
            distance[own, own + start] = torch.inf
            found.append(distance.topk(count, dim=1, largest=False).indices)
        return torch.cat(found)

    def restrict(self, used: IntArray) -> Codebook:
        """The codebook of the given codes alone, in the given order (see `renumber`).

        It keeps the ids that they had before, those of the whole codebook if this is a part of it.
        """
        kept = np.asarray(used, np.int64)
        original = kept if self.original is None else self.original[kept]
        return Codebook(self.weight[torch.from_numpy(kept)], self.metric, original)

    def to_bytes(self) -> bytes:
        """A safetensors file of this codebook."""
        metadata = {"seit": "codebook", "format": str(CODEBOOK_FORMAT), "metric": self.metric}
        tensors = {"weight": self.weight}
        if self.original is not None:
            tensors["original"] = torch.from_numpy(self.original)
        return to_safetensors(tensors, metadata)

    @classmethod
    def from_bytes(cls, source: bytes | str | Path) -> Codebook:
        """Read what `to_bytes` wrote, from bytes or a path; `FormatError` for anything else."""
        tensors, metadata = read_safetensors(source)
        check_format(metadata, "codebook", CODEBOOK_FORMAT)
        metric = metadata.get("metric", "")
        weight, original = tensors.pop("weight", None), tensors.pop("original", None)
        odd = original is not None and original.dtype != torch.int64
        if weight is None or tensors or odd or metric not in _METRICS:
            raise FormatError(
                f"a codebook file holds a tensor `weight`, perhaps `original` (int64), and a "
                f"metric, found {metric!r} and, beside them, {sorted(tensors) or 'nothing'}: "
                "nothing was loaded"
            )
        _check_finite(weight)
        return cls(weight, _METRICS[metric], None if original is None else original.numpy())

    @classmethod
    def from_published(cls, path: str | Path) -> Codebook:
        """Read the release's `codebook.ckpt`: one (K, D) tensor written by `torch.save`."""
        weight = read_torch(path)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            raise FormatError(
                f"{path} does not hold one (K, D) tensor: nothing was loaded; "
                "give the release's codebook.ckpt"
            )
        _check_finite(weight)
        return cls(weight.detach().float())


def _check_finite(weight_KD: Tensor) -> None:
    """Of what is loaded, before it stands on a device, which would have to be waited for."""
    spoilt = torch.nonzero(~torch.isfinite(weight_KD).all(1)).flatten().tolist()
    if spoilt:
        raise FormatError(
            f"{len(spoilt)} of the codebook's {len(weight_KD)} codes, {spoilt[0]} first, are no"
            " finite numbers, and no vector has a distance to those: nothing was loaded; copy the"
            " file again, or train the tokenizer anew"
        )


def token_spec(
    grid: tuple[int, int], codes: int, channels: int, image_size: tuple[int, int]
) -> wire.TokenSpec:
    """The wire form of a tokenizer's sizes; `grid` and `image_size` are (height, width)."""
    return wire.TokenSpec(
        grid_height=grid[0],
        grid_width=grid[1],
        codes=codes,
        channels=channels,
        image_height=image_size[0],
        image_width=image_size[1],
    )


def check_format(metadata: dict[str, str], kind: str, version: int) -> None:
    """Refuse a safetensors file that is not of this kind, or newer than this program."""
    if metadata.get("seit") != kind:
        raise FormatError(
            f"expected a {kind} file, found {metadata.get('seit', 'no mark of this program')!r}: "
            f"nothing was loaded; give the {kind}.safetensors that its trainer left, which is"
            " neither the run's model.safetensors nor a published checkpoint"
        )
    found = metadata.get("format", "")
    if found != str(version):
        raise FormatError(
            f"{kind} file: found format {found!r}, this program reads {version}: upgrade seitpp"
        )


def used_codes(counts_K: IntArray) -> IntArray:
    """Ids of the codes that occur, ascending, from the occurrences (K,) of every code."""
    return np.flatnonzero(counts_K).astype(np.int64)


def renumber(ids: IntArray, used: IntArray, codes: int) -> IntArray:
    """Ids of the full codebook -> positions in `used`, so K shrinks to len(used).

    Raises `InvalidInputError` where an id is not in `used`.
    """
    table = np.full(codes, -1, dtype=np.int64)
    table[used] = np.arange(len(used))
    narrow = table[ids]
    if narrow.size and narrow.min() < 0:
        missing = int(np.asarray(ids)[narrow < 0].flat[0])
        raise InvalidInputError(
            f"code {missing} is not among the {len(used)} codes kept: its tokens would be lost; "
            "keep it, or tokenize anew with the restricted codebook"
        )
    return narrow


def count_codes(ids: Tensor, codes: int) -> Tensor:
    """Occurrences of each code in integer ids of any shape: (K,) int64."""
    ids_M = ids.flatten().long()
    # Not `bincount`: it reads the largest id back, and so waits for a GPU.
    counts_K = torch.zeros(codes, dtype=torch.int64, device=ids.device)
    return counts_K.scatter_add_(0, ids_M, torch.ones_like(ids_M))


def perplexity(counts_K: Tensor) -> float:
    """exp of the entropy of code use: 1 where one code does all, K where all are used alike."""
    share = counts_K.double() / counts_K.sum().clamp(min=1)
    return float(torch.special.entr(share).sum().exp())


@torch.no_grad()
def revive_codes(
    weight_KD: Tensor, counts_K: Tensor, latents_MD: Tensor, generator: torch.Generator
) -> Tensor:
    """Give codes that were never chosen the place of encoder outputs, in `weight_KD` itself.

    counts_K: occurrences since the last call. latents_MD: encoder outputs of the batch, of which
    as many as there are unused codes are drawn without repetition with `generator` (which must
    live on the CPU, so that draws are the same on every device). Returns how many were replaced,
    at most M: () int64 on the codes' device, for which nothing waits.
    """
    if not len(latents_MD):
        return counts_K.new_zeros(())
    # Which codes are dead is known on the device alone: each is told the draw of its turn.
    unused_K = counts_K == 0
    turn_K = unused_K.cumsum(0) - 1
    revived_K = unused_K & (turn_K < len(latents_MD))
    most = min(len(latents_MD), len(weight_KD))
    drawn = on_device(torch.randperm(len(latents_MD), generator=generator)[:most], weight_KD.device)
    new_KD = latents_MD[drawn[turn_K.clamp(0, most - 1)]].to(weight_KD.dtype)
    weight_KD.copy_(torch.where(revived_K[:, None], new_KD, weight_KD))
    return revived_K.sum()
