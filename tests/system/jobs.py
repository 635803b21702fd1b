"""Streams led step by step in processes of their own, and ways to kill what works for them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from services.stream.request import StreamRequest
from services.wire.seit import v1 as wire
from tests.system.clusters import Cluster
from tests.system.stream_job import write_request
from tests.until import until

JOB = Path(__file__).with_name("stream_job.py")
STEPS = 160


class Job:
    """A consumer that goes on by as many steps as it is told to.

    ip: of the node on which it runs. share_lag: 0 for a stream of its own.
    head_start: steps that it makes itself; of the others, all who work for it may be killed.
    """

    def __init__(
        self,
        made: Cluster,
        request: StreamRequest,
        folder: Path,
        *,
        start: int = 0,
        stop: int = STEPS,
        actors: int = 2,
        place: tuple[int, int] = (0, 1),
        ip: str = "127.0.0.2",
        share_lag: int = 0,
        head_start: int = 0,
    ) -> None:
        folder.mkdir(exist_ok=True)
        write_request(request, folder / "request.json")
        words = [str(folder / "request.json"), str(start), str(stop), made.address]
        self._log = (folder / "job.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, str(JOB), *words, str(actors), "0.5", *map(str, place)],
            env={
                **made.environment,
                "SEIT_TEST_IP": ip,
                "SEIT_TEST_SHARE_LAG": str(share_lag),
                "SEIT_TEST_HEAD_START": str(head_start),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def take(self, steps: int) -> list[str]:
        """The digests of that many steps more."""
        self._tell(str(steps))
        return [self._word("batch").split()[1] for _ in range(steps)]

    def finish(self) -> wire.Flow:
        assert self.process.stdin is not None
        self.process.stdin.close()
        told = self._word("end")
        assert self.process.wait(60) == 0
        self._log.close()
        return wire.Flow.from_json(told)

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def _word(self, kind: str) -> str:
        """The rest of the next line of that kind; Ray writes lines of its own between them."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            word, _, rest = line.strip().partition(" ")
            if word == kind:
                return rest
        self.process.kill()
        raise AssertionError(Path(self._log.name).read_text()[-4000:])


@contextmanager
def started(made: Cluster, words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program on that cluster, killed at the context's end if it still runs then."""
    with log.open("wb") as lines:
        process = subprocess.Popen(
            words,
            env={**made.environment, "RAY_ADDRESS": made.address},
            stdout=lines,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def kill_one(made: Cluster, title: str) -> None:
    victim: psutil.Process = until(lambda: made.workers(title), title)[0]
    victim.send_signal(signal.SIGKILL)
    psutil.wait_procs([victim], timeout=10)
