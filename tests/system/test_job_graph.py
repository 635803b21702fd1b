"""Programs as Ray jobs on a real cluster: order, notes, failures, stopping and going on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from services.errors import InvalidInputError, NotFoundError, SeitError
from services.stream.jobs import Jobs, jobs_at
from trainers.job_graph import ClusterOptions, Job, JobGraph
from trainers.program import StoppedError

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        with jobs_at("") as found:
            yield found


class Folder:
    """A folder of jobs that log their starts."""

    def __init__(self, jobs: Jobs, out: Path, at_once: int = 1) -> None:
        self.out, self._jobs = out, jobs
        self._options = ClusterOptions(at_once=at_once, cpus=0.1)
        self.log = out / "log"

    def job(self, name: str, what: str = "done", needs: Sequence[str] = ()) -> Job:
        output = self.out / f"{name}.out"
        words = [str(self.log), name, what, str(output)]
        return Job(name, "tests.system.job_step", words, [output], needs)

    def run(self, *graph: Job, made_from: str = "x") -> dict[str, float]:
        return JobGraph(self._jobs, self._options, self.out, made_from).run(graph)

    @property
    def started(self) -> list[str]:
        return self.log.read_text().split("\n")[:-1] if self.log.exists() else []


def test_jobs_run_after_what_they_need_and_once(jobs: Jobs, tmp_path: Path) -> None:
    folder = Folder(jobs, tmp_path)
    graph = [folder.job("c", needs=["b"]), folder.job("a"), folder.job("b", needs=["a"])]
    assert set(folder.run(*graph)) == {"a", "b", "c"}
    assert folder.started == ["a", "b", "c"]
    assert "this is b" in (tmp_path / "logs" / "b.log").read_text()
    folder.run(*graph, folder.job("d", needs=["c"]))
    assert folder.started == ["a", "b", "c", "d"]  # nothing was done again
    (tmp_path / "b.out").unlink()
    folder.run(*graph)
    assert folder.started == ["a", "b", "c", "d", "b"]  # what is gone is made anew
    for other in ([folder.job("a", "wait")], [folder.job("e"), folder.job("a", "fail")]):
        with pytest.raises(InvalidInputError, match="holds job a with another command"):
            folder.run(*other)
    with pytest.raises(InvalidInputError, match="another made from: x there, y here"):
        folder.run(*graph, made_from="y")
    assert folder.started == ["a", "b", "c", "d", "b"]


def test_a_failure_ends_only_what_needs_it(jobs: Jobs, tmp_path: Path) -> None:
    folder = Folder(jobs, tmp_path)
    graph = [
        folder.job("bad", "fail"),
        folder.job("after", needs=["bad"]),
        folder.job("later", needs=["after"]),
        folder.job("good"),
    ]
    with pytest.raises(SeitError, match="job bad failed with code 3") as raised:
        folder.run(*graph)
    assert "the reason why" in str(raised.value)
    assert "after was not run, as bad failed" in str(raised.value)
    assert folder.started == ["bad", "good"]
    assert (tmp_path / "good.out").exists()
    # What failed is tried again, and what is done is not.
    with pytest.raises(SeitError):
        folder.run(*graph)
    assert folder.started == ["bad", "good", "bad"]


def test_a_job_that_leaves_nothing_is_a_failure(jobs: Jobs, tmp_path: Path) -> None:
    folder = Folder(jobs, tmp_path)
    job = folder.job("a")
    empty = Job(job.name, job.module, job.words, [tmp_path / "else.out"])
    with pytest.raises(SeitError, match=r"ended well but left no .*else\.out"):
        folder.run(empty)


def test_a_stopped_graph_waits_for_its_jobs_and_goes_on(jobs: Jobs, tmp_path: Path) -> None:
    folder = Folder(jobs, tmp_path, at_once=2)
    graph = [folder.job("one"), folder.job("long", "wait", needs=["one"])]

    def interrupt() -> None:
        while "long" not in folder.started:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(StoppedError):
        folder.run(*graph)
    thread.join()
    assert folder.started == ["one", "long", "long stopped"]  # asked to end, and waited for
    (tmp_path / "long.out").write_text("")
    folder.run(*graph)
    assert folder.started == ["one", "long", "long stopped", "long"]


def test_a_job_that_still_runs_is_found_again(jobs: Jobs, tmp_path: Path) -> None:
    """As after the program that submitted it was killed."""
    folder = Folder(jobs, tmp_path)
    job = folder.job("long", "wait")
    JobGraph(jobs, ClusterOptions(cpus=0.1), tmp_path, "x")._start(job)

    def finish() -> None:
        while "long" not in folder.started:
            time.sleep(0.1)
        job.outputs[0].write_text("")

    thread = threading.Thread(target=finish)
    thread.start()
    folder.run(job)
    thread.join()
    assert folder.started == ["long"]


def test_a_dashboard_that_is_not_there_is_named() -> None:
    with (
        pytest.raises(NotFoundError, match="no Ray dashboard answers at http://127"),
        jobs_at("http://127.0.0.1:9"),
    ):
        pass
