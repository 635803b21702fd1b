"""Figures of a run on their way to its folder: aside, whole at the end, failures told."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest
import torch

from services.errors import FormatError, StoreError
from services.shards.objectstore import ObjectStore
from services.shards.store import open_store
from services.wire.seit import v1 as wire
from trainers import progress
from trainers.checkpoint import Checkpoint, Checkpoints
from trainers.progress import FlowFile, Recorder


@pytest.fixture
def out(tmp_path: Path) -> str:
    return f"memory://{tmp_path}"


def steps_at(out: str) -> list[int]:
    data = open_store(out).read("metrics.jsonl").decode()
    assert data.endswith("\n") or not data
    return [json.loads(line)["step"] for line in data.splitlines()]


@pytest.mark.parametrize("cut", [b"", b'{"step": 4, "lo', b"\x00\x00\xff"])
def test_what_follows_a_checkpoint_or_was_cut_off_is_dropped(tmp_path: Path, cut: bytes) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"".join(b'{"step": %d, "loss": NaN}\n' % step for step in (1, 2, 3)) + cut)
    Recorder(str(tmp_path), start=2).close()
    assert steps_at(str(tmp_path)) == [1, 2]


@pytest.mark.parametrize("line", [b'{"step": 2, "lo', b"", b"[1]", b"{}", b"\x00\xff", b'"\r\r"'])
def test_a_damaged_line_is_named_and_nothing_is_changed(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "metrics.jsonl"
    stood = b'{"step": 1}\n' + line + b'\n{"step": 3}\n'
    file.write_bytes(stood)
    with pytest.raises(FormatError, match=r"line 2 is no line of figures .* delete that line"):
        Recorder(str(tmp_path), start=5)
    assert file.read_bytes() == stood


def test_uploads_hold_up_no_one_and_are_whole_at_the_end(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_UPLOAD_SECONDS", 0.0)
    write, begun, go = ObjectStore.write, threading.Event(), threading.Event()
    writers = set()

    def slow(self: ObjectStore, path: str, data: bytes) -> None:
        writers.add(threading.current_thread().name)
        begun.set()
        assert go.wait(timeout=60)
        write(self, path, data)

    recorder = Recorder(out, start=0)
    monkeypatch.setattr(ObjectStore, "write", slow)
    recorder.record(1, {"loss": 1.0})
    recorder.flush()
    assert begun.wait(timeout=60)  # the storage takes its time, ...
    for step in range(2, 200):
        recorder.record(step, {"loss": 1.0 / step})
        recorder.flush()  # ... and nobody waits for it
    assert not open_store(out).exists("metrics.jsonl")
    go.set()
    recorder.close()
    assert steps_at(out) == list(range(1, 200))
    assert any(name.startswith("seit-figures") for name in writers)
    (events,) = open_store(out).list("tensorboard")
    assert open_store(out).size(events) > 199 * 20


def test_a_recorder_goes_on_where_the_checkpoint_stands(out: str) -> None:
    first = Recorder(out, start=0)
    for step in range(1, 8):
        first.record(step, {"loss": 1.0})
    first.close()
    store = open_store(out)
    store.write("metrics.jsonl", store.read("metrics.jsonl") + b'{"step": 8, "lo')  # a lost end
    second = Recorder(out, start=5)
    assert steps_at(out) == [1, 2, 3, 4, 5]
    second.record(6, {"loss": 2.0})
    second.close()
    assert steps_at(out) == [1, 2, 3, 4, 5, 6]
    assert len(store.list("tensorboard")) == 2


def test_what_a_checkpoint_waits_for_is_all_that_was_recorded(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, go = ObjectStore.write, threading.Event()

    def slow(self: ObjectStore, path: str, data: bytes) -> None:
        if "checkpoints" not in self.url:
            assert go.wait(timeout=60)
        write(self, path, data)

    recorder = Recorder(out, start=0)
    monkeypatch.setattr(ObjectStore, "write", slow)
    checkpoints = Checkpoints(out, keep=1)
    for step in range(1, 4):  # long before the time of the next upload
        recorder.record(step, {"loss": 1.0 / step})
    checkpoints.save(
        Checkpoint(3, {}, None, {}, torch.zeros(1, 1), b"", "", {}), after=recorder.standing()
    )
    assert checkpoints.steps() == []  # the step is not held up, the checkpoint is
    go.set()
    checkpoints.close()
    assert checkpoints.steps() == [3]
    assert steps_at(out) == [1, 2, 3]
    recorder.close()


def test_an_upload_that_fails_is_told_and_made_up_for(
    out: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "_UPLOAD_SECONDS", 0.0)
    write, down, refused = ObjectStore.write, True, threading.Event()

    def flaky(self: ObjectStore, path: str, data: bytes) -> None:
        if down:
            refused.set()
            raise StoreError("the storage is down")
        write(self, path, data)

    recorder = Recorder(out, start=0)
    monkeypatch.setattr(ObjectStore, "write", flaky)
    with caplog.at_level(logging.WARNING):
        recorder.record(1, {"loss": 1.0})
        recorder.flush()
        assert refused.wait(timeout=60)
        pending = recorder._pending
        assert pending is not None
        pending.result(timeout=60)
    assert "did not reach memory" in caplog.text
    down = False
    recorder.record(2, {"loss": 1.0})
    recorder.close()
    assert steps_at(out) == [1, 2]


@pytest.mark.parametrize("root", ["{tmp}", "memory://{tmp}"])
def test_what_flows_stands_beside_the_run(tmp_path: Path, root: str) -> None:
    where = root.format(tmp=tmp_path)
    files = [FlowFile(where, rank) for rank in (0, 1)]
    for rank, file in enumerate(files):
        flow = wire.Flow(stream="a/train", rank=rank, workers=2, rows=5, state="running")
        flow.quarantined = ["a/shards/x.parquet"]
        file.publish(flow)
        file.publish(wire.Flow(stream="a/train", rank=rank, rows=6))  # too soon after the other
        flow.rows, flow.state = 2**40, "finished"
        file.close(flow)
        read = open_store(where).read(f"streams/rank-{rank}.json")
        assert wire.Flow.from_json(read.decode()) == flow
    assert len(open_store(where).list("streams")) == 2


def test_a_flow_that_cannot_be_written_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "streams").write_text("a file where the folder should be")
    file = FlowFile(str(tmp_path), 0)
    with caplog.at_level(logging.WARNING):
        file.publish(wire.Flow(state="running"))
        file.close(wire.Flow(state="finished"))
    assert "what flows was not published" in caplog.text


def test_a_finished_run_that_is_started_again_keeps_what_it_said(tmp_path: Path) -> None:
    said = wire.Flow(stream="a/train", rows=50, steps=5, step=5, step_target=5, state="finished")
    FlowFile(str(tmp_path), 0).close(said)
    nothing = wire.Flow(stream="a/train", step=5, step_target=5, state="finished")
    FlowFile(str(tmp_path), 0).close(nothing)
    failed = wire.Flow(stream="a/train", step=3, step_target=5, state="failed")

    def read() -> wire.Flow:
        return wire.Flow.from_json((tmp_path / "streams" / "rank-0.json").read_text())

    assert read() == said
    FlowFile(str(tmp_path), 0).close(failed)
    assert read() == failed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_a_disk_that_is_full_is_said_with_a_way_on(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    recorder = Recorder(str(tmp_path), start=0)
    recorder.record(1, {"loss": 1.0})
    for step in (recorder.flush, recorder.close):
        with pytest.raises(StoreError, match=r"No space left .* goes on from that checkpoint"):
            step()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert events.stat().st_size > 0  # the other file was closed all the same
