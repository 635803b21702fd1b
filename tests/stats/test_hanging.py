"""A storage that does not answer: who waits for it, for how long, and who does not."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from services.errors import StoreError
from services.settings import load_settings
from services.shards.store import LocalStore, Names, Store
from services.stats.apart import Here
from services.stats.app import create_app
from services.stats.catalog import Catalog
from services.stats.decoding import Decoder
from services.stats.facts import Facts, load_facts
from services.stats.fresh import Fresh
from services.wire.seit import v1 as wire
from tests.small_datasets import write_dataset
from tests.stats.pictured import write_digits_dataset

WAITING = 8  # as many as the service has threads
PATIENCE = 20.0


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The address at which the service answers."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def hanging(root: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a service all of whose threads wait for its storage."""
    write_dataset(root)
    answers, asked = threading.Event(), threading.Semaphore(0)
    folders, page = LocalStore.folders, Catalog.dataset_page

    def hang(store: LocalStore) -> Names:
        answers.wait()
        return folders(store)

    def noted(catalog: Catalog, after: str, limit: int) -> wire.DatasetList:
        asked.release()
        return page(catalog, after, limit)

    monkeypatch.setattr(LocalStore, "folders", hang)
    monkeypatch.setattr(Catalog, "dataset_page", noted)
    served = serving(create_app(root, load_settings({}), []))
    with served as url, ThreadPoolExecutor(WAITING) as pool:
        lists = [pool.submit(get, f"{url}/v1/datasets", 60) for _ in range(WAITING)]
        try:
            for _ in range(WAITING):
                assert asked.acquire(timeout=PATIENCE)
            yield url
        finally:
            answers.set()
        assert [one.result() for one in lists] == [200] * WAITING


def get(url: str, seconds: float) -> int:
    try:
        with urllib.request.urlopen(url, timeout=seconds) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_probes_and_pages_do_not_wait_for_the_storage(hanging: str) -> None:
    for path in ("/healthz", "/", "/docs", "/assets/app.js"):
        assert get(hanging + path, 10) == 200


def test_a_refusal_does_not_wait_for_the_storage(hanging: str) -> None:
    """All threads of the pool are taken: what is answered was answered without one."""
    for path, status in (
        ("/nothing", 404),
        ("/assets/none", 404),
        ("/v1/datasets?limit=0", 422),
        ("/v1/datasets?limt=5", 422),
    ):
        assert get(hanging + path, 10) == status


def test_no_other_answer_waits_for_pictures(root: Store, tmp_path: Path) -> None:
    """Two people look at a dataset whose pictures take seconds each."""
    write_digits_dataset(root, versions=1)
    # Nothing stays at hand: each answer takes a thread.
    settings = {"SEIT_CACHE_DIR": str(tmp_path / "cache"), "SEIT_STATS_ANSWER_BYTES": "0"}
    app = create_app(root, load_settings(settings), [])
    decoder: Decoder = app.state.parts.decoder
    samples = "/v1/datasets/digits/samples"
    with serving(app) as url, ThreadPoolExecutor(2 * WAITING) as pool:
        with decoder._making:  # one of them is being made, all the while
            asked = [
                pool.submit(get, f"{url}{samples}/train/{row}/picture", 60)
                for row in range(2 * WAITING)
            ]
            while app.state.parts.picturing.available_tokens:
                time.sleep(0.01)
            for path in ("/readyz", samples, "/v1/datasets/digits/storage"):
                assert get(url + path, PATIENCE) == 200
            assert not any(one.done() for one in asked)
        assert [one.result() for one in asked] == [200] * len(asked)


def test_readers_that_wait_together_do_not_look_one_after_another() -> None:
    """However old a view may be: whoever came before a look began takes what it found."""
    looked: list[bool] = []
    begun, go, come = threading.Semaphore(0), threading.Semaphore(0), threading.Semaphore(0)

    def look(waited: bool) -> int:
        looked.append(waited)
        begun.release()
        assert go.acquire(timeout=PATIENCE)
        return len(looked)

    def clock() -> float:
        come.release()
        return 0.0

    fresh = Fresh(look, 0, clock)  # a view is old when it is there
    with ThreadPoolExecutor(WAITING) as pool:
        first = pool.submit(fresh.get)
        assert begun.acquire(timeout=PATIENCE)
        while come.acquire(blocking=False):
            pass  # of the first reader
        others = [pool.submit(fresh.get) for _ in range(WAITING - 1)]
        for _ in others:
            assert come.acquire(timeout=PATIENCE)
        go.release(WAITING)
        assert first.result() == 1
        assert {one.result() for one in others} == {2}, "not 1: it was begun before they came"
    assert len(looked) == 2
    go.release()
    assert fresh.get() == 3, "who comes later asks anew"


@pytest.mark.parametrize("beside", [False, True], ids=["a reader looks", "nobody waits at first"])
def test_readers_that_wait_for_a_look_that_fails_share_its_failure(beside: bool) -> None:
    """Each would else wait for the dead storage itself, one after another."""
    now, dead = 0.0, beside is False
    begun, go, come = threading.Semaphore(0), threading.Semaphore(0), threading.Semaphore(0)
    looked: list[bool] = []

    def look(waited: bool) -> str:
        if not dead:
            return "found"
        looked.append(waited)
        begun.release()
        assert go.acquire(timeout=PATIENCE)
        raise StoreError("no answer")

    def clock() -> float:
        come.release()
        return now

    fresh = Fresh(look, 10, clock)
    with ThreadPoolExecutor(WAITING) as pool:
        readers = []
        if beside:  # a view that is not young any more is looked at again while it serves
            assert fresh.get() == "found"
            dead, now = True, 9.0
            assert fresh.get() == "found"
        else:
            readers.append(pool.submit(fresh.get))
        assert begun.acquire(timeout=PATIENCE)
        now = 11.0
        while come.acquire(blocking=False):
            pass  # of the readers before
        others = [pool.submit(fresh.get) for _ in range(WAITING - 1)]
        for _ in others:
            assert come.acquire(timeout=PATIENCE)
        go.release(WAITING)
        for one in (*readers, *others):
            with pytest.raises(StoreError, match="no answer"):
                one.result()
    assert looked == [not beside]
    dead = False
    assert fresh.get() == "found", "who comes later asks anew"


@pytest.mark.parametrize("dead", [True, False], ids=["no answer", "an answer"])
def test_readers_that_wait_for_one_version_read_it_once(
    root: Store, monkeypatch: pytest.MonkeyPatch, dead: bool
) -> None:
    """One patience for all of them where the storage does not answer, not one for each."""
    write_dataset(root)
    waiting, reads = threading.Semaphore(0), []

    class Noted(Future[Facts]):
        def result(self, timeout: float | None = None) -> Facts:
            waiting.release()
            return super().result(timeout)

    class Slow(Here):
        def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            if function is load_facts:
                reads.append(args)
                for _ in range(WAITING - 1):
                    assert waiting.acquire(timeout=PATIENCE)
                if dead:
                    raise StoreError("no answer")
            return super().__call__(function, *args, **kwargs)

    monkeypatch.setattr("services.stats.catalog.Future", Noted)
    catalog = Catalog(Slow(root), fresh_seconds=600, shard_limit=1000)
    with ThreadPoolExecutor(WAITING) as pool:
        readers = [pool.submit(catalog.facts, "digits") for _ in range(WAITING)]
        told = {str(one.exception()) for one in readers}
    assert told == {"no answer" if dead else "None"}
    assert reads == [("digits", 1)]
    catalog.close()
