"""Crops made while fetching are those of the augmenter; shares and batches survive their tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.augment.augmenter import Augmenter
from services.augment.config import CropConfig, RecipeConfig
from services.errors import FormatError
from services.plan.draws import Draws
from services.stream.account import Account
from services.stream.batch import StreamBatch, of_share, pack_batch, unpack_batch
from services.stream.fetch import Share, fetch_share
from services.stream.loader import Stream
from services.stream.table import head_of, inputs_of, pack_share, unpack_share
from services.wire.seit import v1 as wire
from tests.stream.conftest import CHANNELS, CODES, CROP, SPEC

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["random", "centre"])
@pytest.mark.parametrize("seed", [0, 5, 2**63])
@pytest.mark.parametrize("names", [("tiny",), ("tiny", "birds", "cars")])
def test_fetching_cuts_as_the_augmenter_would(
    world: Any, kind: Literal["random", "centre"], seed: int, names: tuple[str, ...]
) -> None:
    recipe = RecipeConfig("cut", CROP, plain_crop=CropConfig(kind=kind))
    assert recipe.only_cuts
    order = replace(world.order, seed=seed)
    request = replace(world.request("eval", *names, order=order), recipe=recipe)
    augmenter = Augmenter(recipe, wire.TokenSpec(**SPEC), torch.zeros(CODES, CHANNELS))
    blocks = order.blocks_per_step
    corners = set()
    for batch in Stream(request, start=3, stop=12):
        whole = fetch_share(request.rows, batch.step, 0, 1)
        assert whole.ids.shape[1:] == (SPEC["grid_height"], SPEC["grid_width"])
        draws = Draws(seed, whole.row_epochs, whole.rows)
        ids, label = torch.from_numpy(whole.ids), torch.from_numpy(whole.label)
        wanted = augmenter(ids, label, draws, blocks)
        assert (batch.rows == whole.rows).all()
        assert (batch.row_epochs == whole.row_epochs).all()
        assert batch.inputs.dtype == torch.uint16
        # What does not exist is zeros, wherever it is cut.
        assert torch.equal(batch.inputs.long(), wanted.inputs.long())
        assert torch.equal(batch.label, wanted.label)
        assert torch.equal(batch.label_b, wanted.label_b)
        assert torch.equal(batch.mix, wanted.mix)
        corners |= {tuple(row[0, :2].tolist()) for row in batch.inputs}
    assert len(corners) > 24  # not one grid over and over


def test_a_crop_is_drawn_anew_in_each_epoch(world: Any) -> None:
    stream = Stream(world.request("crop"), stop=14)
    seen: dict[int, list[bytes]] = {}
    for batch in stream:
        for row, ids in zip(batch.rows.tolist(), batch.inputs.numpy(), strict=True):
            if row >= 0:
                seen.setdefault(row, []).append(ids.tobytes())
    assert {len(crops) for crops in seen.values()} == {2}
    assert sum(len(set(crops)) == 2 for crops in seen.values()) > len(seen) // 2


def test_inputs_travel_in_16_bits_and_widen_on_the_device(world: Any) -> None:
    for recipe, narrow, wide in (
        ("crop", torch.uint16, torch.int64),
        ("finetune", torch.uint16, torch.int64),
        ("scratch", torch.bfloat16, torch.float32),
    ):
        batch = next(iter(Stream(world.request(recipe), stop=1)))
        assert batch.inputs.dtype == narrow
        moved = batch.to(CPU)
        assert moved.inputs.dtype == wide
        assert moved.inputs.tolist() == batch.inputs.tolist()
        assert batch.inputs.dtype == narrow  # the batch itself stays as it is
        assert moved.rows is batch.rows


shares = st.builds(
    lambda count, side, seed, high, account: _share(count, side, seed, high, account),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(0, 2**32),
    st.sampled_from([1, 255, 2**16 - 1]),
    st.builds(
        Account,
        storage_seconds=st.floats(0, 1e6),
        augment_seconds=st.floats(0, 1e6),
        bytes_fetched=st.integers(0, 2**62),
        bytes_hit=st.integers(0, 2**62),
        retries=st.integers(0, 9),
        refetches=st.integers(0, 9),
        lost=st.lists(st.text(max_size=9), max_size=3).map(tuple),
        restarted=st.text(max_size=9),
    ),
)


def _share(count: int, side: int, seed: int, high: int, account: Account) -> Share:
    rng = np.random.default_rng(seed)
    return Share(
        step=int(rng.integers(2**40)),
        epoch=int(rng.integers(2**20)),
        rows=rng.integers(-1, 2**40, count),
        row_epochs=rng.integers(0, 2**20, count),
        ids=rng.integers(0, high, (count, side, side + 1), np.uint16, endpoint=True),
        label=rng.integers(-1, 1000, count),
        account=account,
    )


def _through_a_file(table: pa.Table) -> pa.Table:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


@settings(deadline=None, max_examples=60)
@given(shares)
def test_a_share_survives_its_table(share: Share) -> None:
    for table in (pack_share(share), _through_a_file(pack_share(share))):
        found = unpack_share(table)
        for name in ("rows", "row_epochs", "ids", "label"):
            array, wanted = getattr(found, name), getattr(share, name)
            assert array.dtype == wanted.dtype
            assert (array == wanted).all()
            assert array.flags.owndata or array.base.flags.owndata  # not the table's memory
            assert array.flags.writeable
        assert (found.step, found.epoch) == (share.step, share.epoch)
        assert found.account == share.account
        batch = unpack_batch(table)
        assert (batch.inputs.numpy() == share.ids).all()
        assert batch.weight.tolist() == (share.rows >= 0).astype(float).tolist()
        assert batch.mix.tolist() == [1.0] * len(share.rows)


@settings(deadline=None, max_examples=40)
@given(shares, st.booleans())
def test_an_augmented_batch_survives_its_table(share: Share, embeddings: bool) -> None:
    plain = of_share(share)
    inputs = plain.inputs
    if embeddings:
        every = inputs.view(torch.int16).view(torch.bfloat16)  # any bits, NaN among them
        inputs = every[:, None].expand(-1, 3, -1, -1).contiguous()
    mix = torch.linspace(0, 1, len(share.rows))
    batch = replace(plain, inputs=inputs, label_b=plain.label.flip(0), mix=mix)
    found = unpack_batch(_through_a_file(pack_batch(batch)))
    assert found.inputs.dtype == batch.inputs.dtype
    assert found.inputs.shape == batch.inputs.shape
    assert torch.equal(found.inputs.view(torch.int16), batch.inputs.view(torch.int16))
    for name in ("label", "label_b", "mix", "weight"):
        assert torch.equal(getattr(found, name), getattr(batch, name))
    assert (found.rows == batch.rows).all()
    assert (found.row_epochs == batch.row_epochs).all()
    assert found.account == batch.account


def test_tables_of_several_shares_are_cut_where_they_were_made(world: Any) -> None:
    rows = world.rows()
    made = [fetch_share(rows, step, 0, 1) for step in (0, 1, 2)]
    count = len(made[0].rows)
    tables = pa.concat_tables([pack_share(share) for share in made])
    for at, share in enumerate(made):
        part = tables.slice(at * count, count)
        assert unpack_share(part).step == share.step
        assert (unpack_share(part).ids == share.ids).all()
    # A block whose columns lie in two pieces, as when the object store splits what it is given.
    halves = pa.concat_tables([pack_share(made[1]).slice(0, 5), pack_share(made[1]).slice(5)])
    assert (inputs_of(halves, head_of(halves)) == made[1].ids).all()
    assert (unpack_share(tables.slice(count, count).combine_chunks()).ids == made[1].ids).all()


@pytest.mark.parametrize("start", [1, 7, 23])
def test_a_table_cut_inside_a_share_is_refused(world: Any, start: int) -> None:
    table = pack_share(fetch_share(world.rows(), 0, 0, 1))
    with pytest.raises(FormatError, match="does not begin with the first row of a share"):
        unpack_share(table.slice(start))
    batch: StreamBatch = next(iter(Stream(world.request("scratch"), stop=1)))
    with pytest.raises(FormatError, match="does not begin with the first row of a share"):
        unpack_batch(pack_batch(batch).slice(start))
