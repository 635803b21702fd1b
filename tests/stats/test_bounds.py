"""What is kept for those who ask again is bounded, whatever they ask."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from services.shards.store import open_store
from services.stats.facts import Facts, facts_of
from services.stats.kept import Kept
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


def test_what_was_asked_counts_with_the_answer() -> None:
    """Long questions with short answers: all that is kept together stays within the limit."""
    limit, asked = 100_000, 7_000
    made: list[bytes] = []

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        made.append(scope["query_string"])
        scope["state"]["sources"] = ("all",)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"etag", b'"a"')]})
        await send({"type": "http.response.body", "body": b"{}"})

    kept = Kept(answering, {"all": lambda path: 1}, limit)

    async def ask(number: int) -> None:
        async def send(message: Message) -> None:
            pass

        async def receive() -> Message:
            return {}

        query = f"{number:0{asked}d}".encode()
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": query, "headers": []}
        await kept(scope, receive, send)

    async def ask_all() -> None:
        for number in [*range(100), 99]:
            await ask(number)
        assert len(made) == 100, "the last one is kept"
        for number in reversed(range(100)):
            await ask(number)

    asyncio.run(ask_all())
    again = len(made) - 100
    assert (100 - again) * asked <= limit
