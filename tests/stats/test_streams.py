"""Streams of real runs' folders: in memory, over HTTP, and what foreign files cannot do."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import uvicorn
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from services.errors import InvalidInputError, NotFoundError
from services.settings import load_settings
from services.shards.retry import RetryPolicy
from services.shards.store import Store, open_store
from services.stats.app import create_app
from services.stats.client import StatsClient
from services.stats.flows import STATES
from services.stats.streams import Streams, open_runs
from services.stream.account import Account
from services.wire.seit import v1 as wire
from tests.seit_command import Seit
from tests.small_runs import TARGET, metered, write_file, write_run

NOW = {"SEIT_STATS_FRESH_SECONDS": "0"}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def client(root: Store, runs: Path) -> Iterator[TestClient]:
    app = create_app(root, load_settings(NOW | {"SEIT_STATS_RUNS": str(runs)}))
    with TestClient(app) as client:
        yield client


def looked_at(*folders: Path, late: float = 0.0, limit: int = 10**6) -> Streams:
    return Streams(
        open_runs([str(folder) for folder in folders]),
        fresh_seconds=0,
        bytes_limit=limit,
        now=lambda: time.time() + late,
    )


def states(streams: Streams) -> dict[str, str]:
    return {one.name: one.state for one in streams.all()}


def test_a_folder_of_runs_that_is_gone_is_no_empty_one(client: TestClient, runs: Path) -> None:
    write_run(runs / "mtm")
    assert client.get("/readyz").status_code == 200
    aside = runs.rename(runs.with_name("aside"))
    for path in ("/v1/streams", "/v1/streams/mtm", "/readyz"):
        answer = client.get(path)
        assert answer.status_code == 503
        assert "is gone" in answer.json()["detail"]
    assert 'seit_service_up{part="streams"} 0.0' in client.get("/metrics").text
    aside.rename(runs)
    assert client.get("/v1/streams/mtm").json()["state"] == "running"
    assert client.get("/readyz").status_code == 200


def test_a_stream_tells_where_it_stands(client: TestClient, runs: Path) -> None:
    account = Account(augment_seconds=1, bytes_fetched=10, bytes_hit=30, lost=("a.parquet",))
    write_run(runs / "mtm-tiny", world=2, account=account)
    answer = client.get("/v1/streams/mtm-tiny")
    stream = TypeAdapter(wire.StreamInfo).validate_json(answer.content)
    assert (stream.name, stream.kind, stream.recipe) == ("mtm-tiny", "MtmRun", "mtm")
    assert (stream.stream, stream.state, stream.reason) == ("digits/train", "running", "")
    assert (stream.rows, stream.step, stream.step_target) == (64, 4, TARGET)
    assert (stream.bytes_fetched, stream.bytes_cached, stream.cache_hit_rate) == (80, 240, 0.75)
    assert (stream.quarantined, stream.workers) == (1, 2)
    assert stream.augmentation_share > 0
    assert stream.storage_share == 0
    assert 0 <= stream.silent_seconds < 30
    assert stream.eta_seconds is not None
    assert [rank.flow and rank.flow.rank for rank in stream.ranks] == [0, 1]
    assert stream.ranks[0].flow is not None
    assert stream.ranks[0].flow.quarantined == ["a.parquet"]
    (line,) = client.get("/v1/streams").json()["streams"]
    assert line == answer.json() | {"ranks": [], "silent_seconds": line["silent_seconds"]}


def test_streams_are_listed_newest_first_by_state_and_in_pages(runs: Path) -> None:
    for name in ("old", "middle", "new"):
        write_run(runs / name, state="failed" if name == "middle" else "finished")
    for number, name in enumerate(("new", "middle", "old")):
        _begin_earlier(runs / name, hours=number)
    streams = looked_at(runs)
    assert [one.name for one in streams.all()] == ["new", "middle", "old"]
    first = streams.page(None, "", 2)
    rest = streams.page(None, first.next, 2)
    assert [one.name for one in first.streams + rest.streams] == ["new", "middle", "old"]
    assert rest.next == ""
    finished = streams.page("finished", "", 1)
    assert [one.name for one in finished.streams] == ["new"]
    assert [one.name for one in streams.page("finished", finished.next, 1).streams] == ["old"]
    assert streams.page("running", "", 10).streams == []


def _begin_earlier(run: Path, hours: float) -> None:
    """Let the run have started that much before its last word."""
    path = run / "streams/rank-0.json"
    flow = wire.Flow.from_json(path.read_text())
    flow.seconds += hours * 3600
    write_file(path, flow.to_json().encode())


def test_silence_is_told(runs: Path) -> None:
    write_run(runs / "hangs")
    write_run(runs / "done", state="finished")
    assert states(looked_at(runs)) == {"hangs": "running", "done": "finished"}
    later = looked_at(runs, late=60)
    assert states(later) == {"hangs": "stalled", "done": "finished"}
    assert 60 <= later.stream("hangs").silent_seconds < 90
    assert later.stream("done").silent_seconds == 0


def test_new_words_are_seen_and_old_files_not_read_again(runs: Path) -> None:
    write_run(runs / "mtm")
    streams = looked_at(runs)
    assert streams.stream("mtm").state == "running"
    write_run(runs / "mtm", state="stopped", steps=6)
    assert (streams.stream("mtm").state, streams.stream("mtm").step) == ("stopped", 6)
    path = runs / "mtm/streams/rank-0.json"
    before = path.stat().st_mtime - 100
    os.utime(path, (before, before))
    assert streams.stream("mtm").step == 6
    path.write_bytes(b"x" * path.stat().st_size)  # what no writer does: same size, same time
    os.utime(path, (before, before))
    assert streams.stream("mtm").step == 6
    shutil.rmtree(runs / "mtm")
    assert streams.all() == []


def test_fewer_workers_leave_no_ghosts(runs: Path) -> None:
    write_run(runs / "elastic", world=4, state="stopped")
    write_run(runs / "elastic", world=2)
    write_file(runs / "elastic/streams/rank-3.json", b"damaged, of a rank that is gone")
    stream = looked_at(runs).stream("elastic")
    assert (stream.state, stream.workers, len(stream.ranks)) == ("running", 2, 2)


def test_a_folder_may_be_a_run_itself_and_names_may_meet(tmp_path: Path) -> None:
    for name in ("a/mtm", "b/mtm", "single"):
        write_run(tmp_path / name, state="finished")
    found = states(looked_at(tmp_path / "a", tmp_path / "b", tmp_path / "single"))
    assert found == dict.fromkeys(["mtm", "mtm~2", "single"], "finished")


@pytest.mark.parametrize(
    "name", ["tok 1", "läuf", "実験(2)", "a..b", "#7 100%", "_lr=0.1", "x" * 128]
)
def test_a_folder_may_be_called_as_people_call_theirs(root: Store, runs: Path, name: str) -> None:
    write_run(runs / name, state="finished")
    settings = load_settings({"SEIT_STATS_FRESH_SECONDS": "600"})
    with TestClient(create_app(root, settings, open_runs([str(runs)]))) as client:
        (found,) = client.get("/v1/streams").json()["streams"]
        assert found["name"] == name
        assert client.get("/v1/streams/" + quote(name, safe="")).json()["state"] == "finished"
        assert f'run="{name}"' in client.get("/metrics").text


@pytest.mark.parametrize("name", [".hidden", "two\nlines", "a~1", "back\\slash", "x" * 129])
def test_a_folder_of_a_name_that_steers_is_passed_over(runs: Path, name: str) -> None:
    write_run(runs / "good", state="finished")
    (runs / name).mkdir()
    shutil.copytree(runs / "good", runs / name, dirs_exist_ok=True)
    assert states(looked_at(runs)) == {"good": "finished"}


def test_a_thousand_runs_are_answered_from_memory(root: Store, runs: Path) -> None:
    write_run(runs / "run-0", state="finished")
    for number in range(1, 1000):
        shutil.copytree(runs / "run-0", runs / f"run-{number}")
    app = create_app(
        root, load_settings({"SEIT_STATS_FRESH_SECONDS": "1K"}), open_runs([str(runs)])
    )
    with TestClient(app) as client:
        assert client.get("/v1/streams?limit=1").json()["streams"][0]["state"] == "finished"
        shutil.rmtree(runs)  # whatever is answered from now on comes from memory
        names, cursor = [], ""
        while True:
            page = client.get("/v1/streams", params={"limit": 300, "cursor": cursor}).json()
            names += [one["name"] for one in page["streams"]]
            if not (cursor := page["next"]):
                break
        assert sorted(names) == sorted(f"run-{number}" for number in range(1000))
        assert client.get("/v1/streams/run-999").json()["ranks"][0]["flow"]["rows"] == 32


def test_memory_is_bounded_and_says_so(runs: Path) -> None:
    for name in ("earlier", "later"):
        write_run(runs / name, state="finished")
    path = runs / "earlier/streams/rank-0.json"
    os.utime(path, (path.stat().st_mtime - 100,) * 2)
    streams = looked_at(runs, limit=int(path.stat().st_size * 1.5))
    assert states(streams) == {"later": "finished", "earlier": "unreadable"}
    assert "SEIT_STATS_STREAM_BYTES" in streams.stream("earlier").reason


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not whole JSON"),
        (b"[]", "not an object"),
        (b"{}", "it is of rank 0, not of rank 1"),
        (b"{" + b" " * (1 << 20) + b"}", "more than 1,048,576 bytes"),
        (b"[" * 100_000, "not whole JSON"),
    ],
)
def test_a_damaged_file_is_listed_with_its_reason(
    client: TestClient, runs: Path, data: bytes, words: str
) -> None:
    write_run(runs / "mtm", world=2)
    write_file(runs / "mtm/streams/rank-1.json", data)
    write_run(runs / "sound")
    found = {one["name"]: one for one in client.get("/v1/streams").json()["streams"]}
    assert found["sound"]["state"] == "running"
    assert found["mtm"]["state"] == "unreadable"
    assert "streams/rank-1.json" in found["mtm"]["reason"]
    assert words in found["mtm"]["reason"]
    assert found["mtm"]["rows"] == 32  # of the rank that can be read


def test_a_run_without_its_json_still_streams(runs: Path) -> None:
    write_run(runs / "mtm")
    (runs / "mtm/run.json").unlink()
    assert looked_at(runs).stream("mtm").reason == "there is no run.json"
    (runs / "mtm/run.json").write_bytes(b"\xff")
    stream = looked_at(runs).stream("mtm")
    assert (stream.state, stream.kind) == ("running", "")
    assert "not whole JSON" in stream.reason


def test_links_do_not_lead_out(tmp_path: Path, runs: Path) -> None:
    write_run(tmp_path / "elsewhere")
    (runs / "linked").symlink_to(tmp_path / "elsewhere")
    write_run(runs / "mixed")
    (runs / "mixed/streams/rank-0.json").unlink()
    (runs / "mixed/streams/rank-0.json").symlink_to(tmp_path / "elsewhere/streams/rank-0.json")
    os.mkfifo(_folder(runs / "piped/streams") / "rank-0.json")
    found = {one.name: one for one in looked_at(runs).all()}
    assert {name: one.state for name, one in found.items()} == dict.fromkeys(
        ["linked", "mixed", "piped"], "unreadable"
    )
    assert "leads out" in found["linked"].reason
    assert "leads out" in found["mixed"].reason
    assert found["linked"].kind == ""
    assert "not a regular file" in found["piped"].reason


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


@settings(
    deadline=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(["streams/rank-0.json", "streams/rank-9.json", "run.json"])
    | st.from_regex(r"streams/[a-z0-9.-]{1,12}", fullmatch=True),
    data=st.binary(max_size=200)
    | st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.dictionaries(st.sampled_from(["state", "rows", "workers"]), st.integers()).map(
        lambda raw: repr(raw).replace("'", '"').encode()
    ),
)
@example(name="streams/..", data=b"")
def test_no_file_breaks_the_service(client: TestClient, runs: Path, name: str, data: bytes) -> None:
    shutil.rmtree(runs / "mtm", ignore_errors=True)
    write_run(runs / "mtm")
    path = runs / "mtm" / name
    if not path.is_dir():
        path.write_bytes(data)
    for asked in ("/v1/streams", "/v1/streams/mtm", "/metrics", "/readyz"):
        assert client.get(asked).status_code == 200
    assert client.get("/v1/streams/mtm").json()["state"] in STATES


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1/streams/none", 404, "no run 'none'"),
        ("/v1/streams/%2e%2e", 422, "not valid"),
        ("/v1/streams/..%2fruns", 404, "/docs"),
        ("/v1/streams/%00", 422, "not valid"),
        ("/v1/streams?state=asleep", 422, "query.state"),
        ("/v1/streams?cursor=x", 422, "start again without a cursor"),
        ("/v1/streams?cursor=" + "9" * 100 + ".a", 422, "start again without a cursor"),
        ("/v1/streams?limit=0", 422, "query.limit"),
    ],
)
def test_a_wrong_request_is_a_problem(
    client: TestClient, path: str, status: int, words: str
) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/streams", "/v1/streams/mtm"])
def test_a_known_answer_is_not_sent_again(client: TestClient, runs: Path, path: str) -> None:
    write_run(runs / "mtm", state="stopped")
    first = client.get(path)
    again = client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    write_run(runs / "mtm", state="finished", steps=TARGET)
    changed = client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert changed.status_code == 200


def test_a_storage_that_does_not_answer_is_a_problem(root: Store) -> None:
    with socket.socket() as free:  # bound, and never listened at
        free.bind(("127.0.0.1", 0))
        gone = open_store(
            "s3://bucket/runs",
            retry=RetryPolicy(attempts=1),
            endpoint_url=f"http://127.0.0.1:{free.getsockname()[1]}",
            key="k",
            secret="s",
        )
        with TestClient(create_app(root, load_settings(NOW), [gone])) as client:
            for path in ("/v1/streams", "/v1/streams/mtm", "/readyz"):
                answer = client.get(path)
                assert answer.status_code == 503
                assert answer.headers["content-type"] == "application/problem+json"
            assert client.get("/healthz").status_code == 200
            text = client.get("/metrics").text
    assert 'seit_service_up{part="datasets"} 1.0' in text
    assert 'seit_service_up{part="streams"} 0.0' in text


def test_a_folder_that_is_not_there_is_a_typing_error(tmp_path: Path, seit: Seit) -> None:
    with pytest.raises(NotFoundError, match="no folder"):
        open_runs([str(tmp_path / "nowhere")])
    ended = seit("serve", str(tmp_path), "--runs", str(tmp_path / "nowhere"))
    assert ended.code == 2
    assert "nowhere" in ended.err


def test_a_real_server_and_the_command_line(root: Store, runs: Path, seit: Seit) -> None:
    write_run(runs / "mtm", account=Account(retries=3))
    write_run(runs / "tune", state="finished")
    app = create_app(root, load_settings(NOW), open_runs([str(runs)]))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        asked = StatsClient(url)
        assert [one.name for one in asked.streams("running")] == ["mtm"]
        assert {one.name for one in asked.streams()} == {"mtm", "tune"}
        assert asked.stream("mtm").ranks[0].state == "running"
        with pytest.raises(NotFoundError, match="no run"):
            asked.stream("other")
        with pytest.raises(InvalidInputError, match=r"query\.state"):
            list(asked.streams("asleep"))
        for place in (url, str(runs)):
            shown = seit("streams", place)
            assert shown.code == 0
            assert "12 retries" in shown.out
            assert "tune" in shown.out
            assert "mtm" not in seit("streams", place, "--state", "finished").out
    finally:
        server.should_exit = True
        thread.join()


def test_a_live_meter_flows_through(runs: Path) -> None:
    write_run(runs / "mtm")
    flow = metered(steps=TARGET)
    flow.ended("finished")
    write_file(runs / "mtm/streams/rank-0.json", flow.snapshot().to_json().encode())
    stream = looked_at(runs).stream("mtm")
    assert (stream.state, stream.step, stream.eta_seconds) == ("finished", TARGET, None)
