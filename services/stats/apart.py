"""Work on the storage in a process of its own.

To list 50 datasets of an object store takes a third of a second of Python, to read a manifest of
2,000 shards a tenth. Threads would do it under the same lock as the answers, which wait meanwhile.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from services.errors import SeitError, StoreError
from services.shards.store import LocalStore, Store

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 8  # that work at the same time: most of the time they wait for the storage
_NICE = 10  # answers come first
_END_SECONDS = 5.0


class Work(Protocol):
    """Calls a function of the root, and of what else it is given, which is waited for."""

    def __call__(
        self, function: Callable[Concatenate[Store, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    def close(self) -> None:
        """Nothing is called afterwards."""


def work_on(root: Store) -> Work:
    """Here for a folder of this machine, which takes milliseconds, and for files that stand in this
    process's memory; else in a process of its own."""
    here = isinstance(root, LocalStore) or root.url.startswith("memory://")
    return Here(root) if here else Apart(root)


class Here:
    """In the thread that asks."""

    def __init__(self, root: Store) -> None:
        self._root = root

    def __call__(
        self, function: Callable[Concatenate[Store, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return function(self._root, *args, **kwargs)

    def close(self) -> None:
        """Nothing to end."""


class Apart:
    """In a process of its own, which is started when it is first needed, and again if it dies.

    Functions are named, arguments and results copied: all must be picklable. Safe to share by
    threads. The process ends when this one does, however that comes.

    Raises, besides what a function raises: StoreError where the process ended at its work. One that
    had ended before it heard the question makes room for the next.
    """

    def __init__(self, root: Store) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._running: tuple[BaseProcess, Connection] | None = None
        self._waiting: dict[int, Future[Any]] = {}

    def __call__(
        self, function: Callable[Concatenate[Store, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        answer: Future[T] = Future()
        with self._lock:
            question = next(self._numbers), function, args, kwargs
            try:
                self._ask(question, answer)
            except OSError:  # it has just died, and the listener does not know it yet
                self._running = None
                try:
                    self._ask(question, answer)
                except OSError as error:
                    raise StoreError(_DIED) from error
        return answer.result()

    def _ask(self, question: tuple[Any, ...], answer: Future[Any]) -> None:
        """Send a question, (number, ...), to the process that runs, or to a new one; the caller
        holds the lock. Raises: OSError where it hears nothing any more."""
        if self._running is None:
            self._running = self._start()
        number, *_ = question
        self._waiting[number] = answer
        try:
            self._running[1].send(question)
        except OSError:
            del self._waiting[number]
            raise

    def close(self) -> None:
        """End the process; what it is asked meanwhile fails."""
        with self._lock:
            running, self._running = self._running, None
        if running is None:
            return
        process, connection = running
        with contextlib.suppress(OSError):  # it has died already
            connection.send(None)
        process.join(_END_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()

    def _start(self) -> tuple[BaseProcess, Connection]:
        context = multiprocessing.get_context("spawn")  # a fork of threads could hang
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(self._root, theirs), name="seit-storage", daemon=True
        )
        process.start()
        theirs.close()
        self._waiting = {}
        threading.Thread(
            target=self._listen, args=(process, ours, self._waiting), name="seit-apart", daemon=True
        ).start()
        return process, ours

    def _listen(
        self, process: BaseProcess, connection: Connection, answers: dict[int, Future[Any]]
    ) -> None:
        """Hand out the answers until the process ends."""
        while True:
            try:
                number, result, error = connection.recv()
            except (EOFError, OSError):
                break
            with self._lock:
                waiting = answers.pop(number)
            if error is None:
                waiting.set_result(result)
            else:
                waiting.set_exception(error)
        connection.close()
        with self._lock:
            if self._running is not None and self._running[0] is process:
                self._running = None
                logger.error("%s", _DIED)
            lost = list(answers.values())
            answers.clear()
        for one in lost:
            one.set_exception(StoreError(_DIED))


_DIED = "the process that reads the storage has ended; the next question starts another: ask again"


def _serve(root: Store, connection: Connection) -> None:
    """What the process does: answer until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the service, which closes
    os.nice(_NICE)
    sending = threading.Lock()

    def answer(number: int, done: Future[Any]) -> None:
        error = done.exception()
        if error is not None and not isinstance(error, SeitError):  # a defect, of any type
            logger.error("the storage's process fails", exc_info=error)
            error = RuntimeError(f"{type(error).__name__}: {error}")
        told = (number, None if error else done.result(), error)
        with sending, contextlib.suppress(OSError):  # nobody is there to hear it
            connection.send(told)

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="seit-work") as pool:
        while True:
            try:
                asked = connection.recv()
            except (EOFError, OSError):
                break
            if asked is None:
                break
            number, function, args, kwargs = asked
            working = pool.submit(function, root, *args, **kwargs)
            working.add_done_callback(partial(answer, number))
        pool.shutdown(wait=False, cancel_futures=True)
