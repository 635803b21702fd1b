"""What the rows of a version hold, from its facts: labels and codes. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np

from services.stats.facts import Counts, Facts
from services.stats.paging import Page
from services.stats.report import entropy_bits
from services.wire.seit import v1 as wire

LabelSort: TypeAlias = Literal["label", "-rows", "rows"]
CodeSort: TypeAlias = Literal["code", "-tokens", "tokens"]

MOST_BINS = 256
"""Points of the curve of code shares: as many as a chart can show."""


def label_counts(facts: Facts, split: str | None) -> Counts:
    """(1 + n,) int64: rows without a label, then of each class.

    n: classes that have a name; where none has, labels that rows have. Raises: NotFoundError.
    """
    return _label_rows(facts, split)[1]


def _label_rows(facts: Facts, split: str | None) -> tuple[Counts, Counts]:
    """(1 + n,) int64 labels, rising from -1 for none, and (1 + n,) int64 rows of each, as in
    `label_counts`."""
    places, shards, named = facts.places(split), facts.shards, len(facts.about.classes)
    of = slice(shards.starts[places.start], shards.starts[places.stop])
    held, rows = shards.labels[of].astype(np.int64) + 1, shards.counts[of]
    # Summed as floats, exact up to 2**53 rows.
    if named or held.max(initial=0) <= len(held):
        counts = np.bincount(held, rows, 1 + named)
        labels = np.arange(len(counts))
    else:  # ids of something else as labels, up to 2**31 - 1: no memory for those between
        labels, at = np.unique(np.append(0, held), return_inverse=True)
        counts = np.bincount(at[1:], rows, len(labels))
    if not named:
        shown = counts > 0
        shown[0] = True
        labels, counts = labels[shown], counts[shown]
    return labels - 1, counts.astype(np.int64)


def label_report(facts: Facts, split: str | None, sort: LabelSort, page: Page) -> wire.LabelReport:
    """Rows of each class, and how evenly they are spread. Raises: NotFoundError."""
    labels, counts = _label_rows(facts, split)
    manifest, known = facts.about, counts[1:]
    rows, bare = int(counts.sum()), int(counts[0])
    used = known[known > 0]
    if not bare:
        labels, counts = labels[1:], known
    places, following = page.cut(_order(labels, counts, sort))
    return wire.LabelReport(
        dataset=manifest.dataset,
        version=manifest.version,
        split=split or "",
        rows=rows,
        unlabelled_rows=bare,
        classes=len(known),
        empty_classes=len(known) - len(used),
        largest_rows=int(used.max(initial=0)),
        smallest_rows=int(used.min()) if len(used) else 0,
        imbalance=float(used.max() / used.min()) if len(used) else 0.0,
        balance=balance(known),
        labels=[
            wire.LabelRows(
                label=label, name=class_name(manifest.classes, label), rows=many, share=share
            )
            for label, many, share in _columns(labels[places], counts[places], rows)
        ],
        next=following,
    )


def balance(counts: Counts) -> float:
    """Entropy of classes with `counts` (L,) rows, against that of even ones: 1 is even.

    0 where no row has a label; 1 for a single class.
    """
    if not counts.sum():
        return 0.0
    return entropy_bits(counts.astype(np.float64)) / np.log2(len(counts)) if len(counts) > 1 else 1


def class_name(classes: Sequence[str], label: int) -> str:
    """Name of a label's class; "" for none."""
    return classes[label] if 0 <= label < len(classes) else ""


def code_counts(facts: Facts, split: str | None) -> Counts:
    """(K,) int64 occurrences of each code. Raises: NotFoundError."""
    counts = np.zeros(facts.spec.codes, np.int64)
    for one in facts.splits(split):
        counts += np.asarray(one.code_counts, np.int64)
    return counts


def code_report(facts: Facts, split: str | None, sort: CodeSort, page: Page) -> wire.CodeReport:
    """How often each code occurs, and how much of the codebook is used. Raises: NotFoundError."""
    counts = code_counts(facts, split)
    tokens, used = int(counts.sum()), int(np.count_nonzero(counts))
    entropy = entropy_bits(counts.astype(np.float64))
    places, following = page.cut(_order(np.arange(len(counts)), counts, sort))
    bins, width = ranked(counts)
    return wire.CodeReport(
        dataset=facts.about.dataset,
        version=facts.about.version,
        split=split or "",
        tokens=tokens,
        codes=len(counts),
        used_codes=used,
        dead_codes=len(counts) - used,
        entropy_bits=entropy,
        perplexity=float(2**entropy) if tokens else 0.0,
        ranked_share=bins,
        ranks_a_bin=width,
        counts=[
            wire.CodeCount(code=code, tokens=many, share=share)
            for code, many, share in _columns(places, counts[places], tokens)
        ],
        next=following,
    )


def _columns(names: Counts, amounts: Counts, total: int) -> Iterator[tuple[int, int, float]]:
    """(name, amount, share of the total) of each entry, as Python's own numbers, made all at once:
    one by one they take a sixth of an answer's time."""
    shares = (amounts / max(1, total)).tolist()
    return zip(names.tolist(), amounts.tolist(), shares, strict=True)


def ranked(counts: Counts) -> tuple[list[float], int]:
    """(shares by rank, ranks a bin): the most frequent first, in at most `MOST_BINS` bins."""
    width = -(-len(counts) // MOST_BINS)
    shares = np.sort(counts)[::-1] / max(1, counts.sum())
    starts = np.arange(0, len(counts), width)
    sizes = np.diff(np.append(starts, len(counts)))
    return (np.add.reduceat(shares, starts) / sizes).tolist(), width


def _order(names: Counts, amounts: Counts, sort: str) -> Counts:
    """Positions in the order asked; equal amounts stand in the order of their names."""
    if sort == "-rows" or sort == "-tokens":
        return np.lexsort((names, -amounts))
    if sort in ("rows", "tokens"):
        return np.lexsort((names, amounts))
    return np.argsort(names)
