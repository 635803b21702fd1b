"""What is kept for those who ask again is bounded, whatever they ask."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.shards.store import open_store
from services.stats.facts import Facts, facts_of
from services.stats.listing import ShardQuery, shard_order
from services.stats.orders import Orders
from tests.small_datasets import write_dataset

LIMIT = 20_000


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    root = open_store(str(tmp_path_factory.mktemp("bounds")))
    return facts_of(write_dataset(root, shards=40, rows=1))


QUERIES = st.builds(
    ShardQuery,
    split=st.sampled_from([None, "train", "validation"]),
    contains=st.sampled_from(["", "train", "9"]) | st.text(max_size=200),
    column=st.text(max_size=63),
    sort=st.sampled_from(["row", "-bytes", "path"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(QUERIES, max_size=60))
def test_orders_take_no_more_than_their_limit(facts: Facts, queries: list[ShardQuery]) -> None:
    orders, seen = Orders(LIMIT), set()
    for query in queries:
        assert orders.get(facts, query).tolist() == shard_order(facts, query).tolist()
        seen.add(query)
        assert 1000 <= orders.bytes <= LIMIT
    orders.forget_others({"digits"})
    assert (orders.bytes > 0) == bool(queries)
    orders.forget_others(())
    assert orders.bytes == 0


def test_empty_orders_make_room_as_well(facts: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ShardQuery] = []

    def noted(facts: Facts, query: ShardQuery) -> object:
        made.append(query)
        return shard_order(facts, query)

    monkeypatch.setattr("services.stats.orders.shard_order", noted)
    orders = Orders(LIMIT)
    queries = [ShardQuery(contains=f"none {number}") for number in range(100)]
    for query in queries:
        assert len(orders.get(facts, query)) == 0
    orders.get(facts, queries[-1])
    assert made == queries, "the last one is kept"
    orders.get(facts, queries[0])
    assert made == [*queries, queries[0]], "the first one had to go"
