"""What any client can cause in the service's log: little, and errors are all told."""

from __future__ import annotations

import itertools
import logging
import socket
import subprocess
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.shards.store import Store
from services.stats.seldom import SECONDS, Seldom
from tests.small_datasets import write_dataset
from tests.stats.test_app import start_server, wait_for

steps = st.lists(st.tuples(st.floats(0, 2 * SECONDS), st.sampled_from("ab")), min_size=1)


@given(steps)
def test_each_warning_is_told_or_counted(said: Iterable[tuple[float, str]]) -> None:
    now = 0.0
    seldom = Seldom(lambda: now)
    told: dict[str, list[float]] = {"a": [], "b": []}
    accounted = dict.fromkeys("ab", 0)
    since = dict.fromkeys("ab", 0)
    for pause, words in said:
        now += pause
        for level in (logging.ERROR, logging.WARNING):
            record = logging.LogRecord("x", level, "x", 1, words, None, None)
            passes = seldom.filter(record)
            assert passes or level == logging.WARNING
        since[words] += 1
        if passes:
            told[words].append(now)
            left_out = record.getMessage().removeprefix(words).strip().split(" ")
            accounted[words] += 1 + (int(left_out[1]) if len(left_out) > 1 else 0)
            assert accounted[words] == since[words]
    for times in told.values():
        assert all(b - a >= SECONDS for a, b in itertools.pairwise(times))


@pytest.mark.system
def test_a_scanner_of_ports_leaves_one_line(root: Store) -> None:
    write_dataset(root)
    server, port = start_server(root, subprocess.PIPE)
    try:
        wait_for(f"http://127.0.0.1:{port}/healthz", server)
        for _ in range(30):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                client.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
                assert client.recv(1 << 16).startswith(b"HTTP/1.1 400")
    finally:
        server.terminate()
        _, log = server.communicate(timeout=20)
    assert log.count(b"Invalid HTTP request") == 1
