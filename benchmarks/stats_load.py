"""The stats service under 50 clients at once, over 100,000 shards in 50 datasets on S3.

Manifests are put on an S3 server of its own process (moto), `seit serve` is started on it as its
own process too, and 50 connections ask it as fast as they get answers: lists, one dataset,
versions, pages of shards in many orders, storage, growth, labels, codes, health, streams, jobs.
Half-way a new version is committed. Each kind of answer has its own p99, and the slowest of them
is held against the goal. Once more without the answers at hand, as the peer.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import harness
import numpy as np
import psutil
import uvloop
from peers import storage

from services.shards.manifest import dump_manifest
from services.shards.store import Store, open_store
from services.wire.seit import v1 as wire

HERE = Path(__file__).resolve().parent
CLIENTS = 50
CLASSES = 20
SORTS = ("row", "bytes", "-bytes", "path", "-rows", "bytes_per_image")
TAILS = (
    "", "/versions", "/shards", "/shards", "/shards", "/storage", "/growth", "/labels", "/codes",
    "/health",
)  # fmt: skip


def manifest(name: str, version: int, shards: int) -> wire.Manifest:
    """A version as ingest would commit it; its shards are only named."""
    generator = np.random.default_rng([version, *name.encode()])
    rows = generator.integers(4000, 8193, shards).tolist()

    def shard(number: int) -> wire.Shard:
        digest = f"{generator.integers(2**62):016x}{number:016x}"
        labels = np.bincount(generator.integers(0, CLASSES, rows[number]), minlength=CLASSES)
        return wire.Shard(
            path=f"shards/train-{digest}.parquet",
            rows=rows[number],
            bytes=rows[number] * 1001 + int(generator.integers(9000)),
            xxh3=digest,
            source_bytes=rows[number] * 110_000,
            labels=wire.LabelCounts(labels=list(range(CLASSES)), rows=labels.tolist()),
        )

    codes = np.zeros(391, np.int64)
    codes[1:] = sum(rows) * 1024 // 390
    codes[1] += sum(rows) * 1024 - codes.sum()
    return wire.Manifest(
        format=1,
        dataset=name,
        version=version,
        created="2026-01-31T12:00:00.000000+00:00",
        writer="stats_load",
        parent="0" * 32 if version > 1 else "",
        spec=wire.TokenSpec(
            grid_height=32,
            grid_width=32,
            codes=391,
            channels=32,
            image_height=256,
            image_width=256,
        ),
        tokenizer_kind="vitvqgan",
        classes=[f"class {number}" for number in range(CLASSES)],
        splits=[
            wire.Split(
                name="train",
                shards=[shard(number) for number in range(shards)],
                code_counts=codes.tolist(),
            )
        ],
    )


def put(root: Store, content: wire.Manifest) -> None:
    """The version's manifest alone: the service is asked for nothing that a shard holds."""
    path = f"versions/{content.version:08d}.json"
    root.child(content.dataset).write(path, dump_manifest(content))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def process(command: list[str], probe: str, **environment: str) -> Iterator[int]:
    """A server as a process of its own, from when `probe` answers; its process id."""
    running = subprocess.Popen(command, cwd=HERE.parent, env={**os.environ, **environment})
    try:
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(probe, timeout=60).read()
                break
            except OSError:
                if running.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.1)
        yield running.pid
    finally:
        running.terminate()
        running.wait(30)


def questions(names: list[str], seed: int) -> Iterator[str]:
    """An endless mix of paths."""
    draw = random.Random(seed)
    while True:
        kind = draw.random()
        if kind < 0.1:
            yield f"/v1/datasets?limit={draw.choice((10, 50, 100))}"
        elif kind < 0.15:
            yield draw.choice(("/v1/streams", "/v1/jobs"))
        else:
            tail = draw.choice(TAILS)
            path = f"/v1/datasets/{draw.choice(names)}{tail}"
            if tail == "/shards":
                path += f"?sort={draw.choice(SORTS)}&limit=100&cursor=1.{100 * draw.randrange(15)}"
            yield path


class Client(asyncio.Protocol):
    """One connection that asks for the next path as soon as it has an answer, until `until`.

    taken: (kind of question, seconds) of each answer. Leaner than asyncio's streams: what the
    clients take of the machine's cores is not the server's to use.
    """

    def __init__(self, paths: Iterator[str], until: float) -> None:
        self._paths, self._until = paths, until
        self._answer = bytearray()
        self._length = -1  # of the answer, once its header is there
        self.taken: list[tuple[str, float]] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if self._length < 0:
            head, end, _ = self._answer.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 200"):
                self.ended.set_exception(AssertionError(f"{self._path}: {bytes(head)!r}"))
                return
            size = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            self._length = len(head) + len(end) + int(size)
        if len(self._answer) == self._length:
            self.taken.append((kind_of(self._path), time.perf_counter() - self._began))
            self._answer.clear()
            self._length = -1
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(exc or ConnectionError("the server closed the connection"))

    def _ask(self) -> None:
        self._path, self._began = next(self._paths), time.perf_counter()
        if self._began < self._until:
            head = f"GET {self._path} HTTP/1.1\r\nhost: x\r\naccept-encoding: gzip\r\n\r\n"
            self._transport.write(head.encode())
        else:
            self.ended.set_result(None)
            self._transport.close()


def kind_of(path: str) -> str:
    """datasets, dataset, versions, shards, storage, ..., streams, jobs."""
    parts = path.partition("?")[0].strip("/").split("/")[1:]
    return "dataset" if len(parts) == 2 else parts[-1]


def load(port: int, names: list[str], seconds: float, results: object) -> None:
    """All clients, in a process of their own."""

    async def run() -> list[tuple[str, float]]:
        loop, until = asyncio.get_running_loop(), time.perf_counter() + seconds
        clients = []
        for seed in range(CLIENTS):
            made = partial(Client, questions(names, seed), until)
            _, one = await loop.create_connection(made, "127.0.0.1", port)
            clients.append(one)
        await asyncio.gather(*(one.ended for one in clients))
        return [found for one in clients for found in one.taken]

    results.put(uvloop.run(run()))  # type: ignore[attr-defined]


def ask(port: int, path: str) -> dict[str, object]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            content: dict[str, object] = json.load(answer)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{path}: {error.read()!r}") from error
    return content


def measure(
    root: Store, names: list[str], shards: int, seconds: float, version: int, answer_bytes: str
) -> dict[str, float]:
    """The figures of one server, by their names."""
    port = free_port()
    command = [sys.executable, "-m", "services.cli", "serve", root.url, "--port", str(port)]
    limits = {"SEIT_STATS_RATE": "1M", "SEIT_STATS_ANSWER_BYTES": answer_bytes}
    with process(command, f"http://127.0.0.1:{port}/readyz", **limits) as pid:
        began = time.monotonic()
        for name in names:
            ask(port, f"/v1/datasets/{name}/health")
        warm = time.monotonic() - began
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        loading = context.Process(target=load, args=(port, names, seconds, results))
        loading.start()
        time.sleep(seconds / 2)
        put(root, manifest(names[0], version, shards))
        committed = time.monotonic()
        while ask(port, f"/v1/datasets/{names[0]}")["version"] != version:
            time.sleep(0.02)
        seen = time.monotonic() - committed
        taken = results.get(timeout=seconds * 10 + 60)
        loading.join()
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        memory = sum(one.memory_info().rss for one in processes)
    times = np.array([one for _, one in taken]) * 1000
    kinds = {kind: times[[one == kind for one, _ in taken]] for kind in {one for one, _ in taken}}
    by_kind = {kind: float(np.percentile(found, 99)) for kind, found in sorted(kinds.items())}
    return {
        "p50_ms": float(np.percentile(times, 50)),
        "p99_ms": float(np.percentile(times, 99)),
        "slowest_kind_p99_ms": max(by_kind.values()),
        "longest_ms": float(times.max()),
        "answers_per_second": len(times) / seconds,
        "new_version_seconds": seen,
        "memory_bytes": float(memory),
        "warm_seconds": warm,
        **{f"p99_{kind}_ms": value for kind, value in by_kind.items()},
    }


def main() -> None:
    options = harness.options(__doc__, harness.Options)
    report = harness.Report("stats_load", options, packages=("fastapi", "uvicorn", "pydantic"))
    datasets, shards, seconds = (10, 200, 6.0) if options.quick else (50, 2000, 30.0)
    with tempfile.TemporaryDirectory() as scratch, storage.server() as s3:
        os.environ.update(s3.environment, SEIT_CACHE_DIR=scratch)
        for child in psutil.Process().children():
            child.nice(10)  # a real object store would not take the service's cores
        root = open_store(f"s3://{storage.BUCKET}/datasets")
        names = [f"set-{number:02d}" for number in range(datasets)]
        for name in names:
            put(root, manifest(name, 1, shards))
        found = measure(root, names, shards, seconds, 2, "64M")
        peer = measure(root, names, shards, seconds, 3, "0")
    units = {"answers_per_second": "1/s", "new_version_seconds": "s", "warm_seconds": "s"}
    units["memory_bytes"] = "B"
    goals = {"p99_ms": 50.0, "slowest_kind_p99_ms": 50.0, "new_version_seconds": 5.0}
    for key, value in found.items():
        goal = 50.0 if key.startswith("p99_") else goals.get(key)
        report.add(key, value, units.get(key, "ms"), peer=peer.get(key), at_most=goal)
    report.note(
        f"{datasets * shards:,} shards in {datasets} datasets, {CLIENTS} connections without a"
        " pause between questions. Server, clients and, at a lower priority, S3 server share the"
        " machine's cores; memory"
        " is the server's and that of its process for the storage. The peer is the same service"
        " without answers at hand (SEIT_STATS_ANSWER_BYTES=0)."
    )
    report.finish()


if __name__ == "__main__":
    main()
