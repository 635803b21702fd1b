"""The compose project of the proof: its own name, secrets and ports, and what is asked of it."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine import Engine, ProofError

ROOT = Path(__file__).resolve().parents[2]
_FILES = ("docker-compose.yml", "deploy/proof/compose.yml")
_HEAD = "http://head:8265"
_RUN = "s3://seit/runs/proof"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Cluster:
    """given: folder of the pictures. images: by variable of the compose files."""

    def __init__(self, docker: Engine, given: Path, images: dict[str, str]) -> None:
        self._no_env = given.parent / "no.env"
        self._no_env.touch()
        self._project = f"seit-proof-{os.getpid()}"
        names = ("API", "DASHBOARD", "STORE", "STORE_CONSOLE", "PROMETHEUS", "GRAFANA")
        self._ports = {name: _free_port() for name in names}
        self._secrets = {
            "SEIT_STORE_USER": "proof:seit",
            "SEIT_STORE_PASSWORD": secrets.token_hex(16),
            "SEIT_STORE_WRITER": "proof:writer",
            "SEIT_STORE_WRITER_PASSWORD": secrets.token_hex(16),
            "SEIT_STORE_READER": "proof:reader",
            "SEIT_STORE_READER_PASSWORD": secrets.token_hex(16),
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "GRAFANA_PASSWORD": secrets.token_hex(16),
        }
        self._bare = Engine(
            {
                **{k: v for k, v in docker.environment.items() if k not in self._secrets},
                **images,
                "SEIT_INPUT": str(given),
                **{f"SEIT_{name}_PORT": str(port) for name, port in self._ports.items()},
            },
            docker.compose,
        )
        self._docker = Engine({**self._bare.environment, **self._secrets}, docker.compose)

    def _words(self) -> list[str]:
        named = [word for file in _FILES for word in ("-f", str(ROOT / file))]
        # Another .env than the user's own, which may hold real secrets.
        return [*self._docker.compose, "--env-file", str(self._no_env), "-p", self._project, *named]

    def compose(self, *words: str) -> str:
        return self._docker.run(*self._words(), *words)

    def _client(self, *words: str, **settings: str) -> str:
        changed = [word for name, value in settings.items() for word in ("-e", f"{name}={value}")]
        return self.compose("run", "--rm", "-T", *changed, "client", *words)

    def _containers(self, service: str) -> list[str]:
        return self.compose("ps", "-q", service).split()

    def refuses_without_secrets(self) -> None:
        try:
            self._bare.run(*self._words(), "config", "-q")
        except ProofError as error:
            if "make_env.py" in str(error):
                return
            raise
        raise ProofError("compose took a configuration without secrets")

    def wait_healthy(self, services: Sequence[str], count: int, seconds: float = 600) -> None:
        names = [name for service in services for name in self._containers(service)]
        if len(names) != count:
            raise ProofError(f"{len(names)} containers stand, expected {count}")
        form = "{{.Name}} {{.State.Health.Status}}"

        def healthy() -> str:
            states = self._docker.run("docker", "inspect", "-f", form, *names)
            return states if states.count(" healthy") == count else ""

        self._until(healthy, "all are healthy", seconds)

    def _until(self, found: Callable[[], Any], what: str, seconds: float) -> Any:
        """What `found` returns as soon as it is something."""
        end = time.monotonic() + seconds
        while not (got := found()):
            if time.monotonic() > end:
                raise ProofError(f"not within {seconds:g} s: {what}")
            time.sleep(1)
        return got

    def check_confined(self) -> None:
        probe = 'test "$(id -u)" = 10001 && ! touch /opt/seit/probe 2>/dev/null'
        for service in ("head", "worker", "api"):
            name = self._containers(service)[0]
            self._docker.run("docker", "exec", name, "sh", "-c", probe)
            # It may write no bytecode: what is not compiled yet costs every process seconds.
            compiled = 'test -n "$(find /opt/seit/env -path "*/torch/__pycache__/__init__.*.pyc")"'
            self._docker.run("docker", "exec", name, "sh", "-c", compiled)
        on_disk = 'test "$(stat -c %d /tmp/ray/session_latest/logs)" = "$(stat -c %d /ray)"'
        for service in ("head", "worker"):
            for name in self._containers(service):
                self._docker.run("docker", "exec", name, "sh", "-c", on_disk)

    def refuses_a_wrong_key(self) -> str:
        words = ("seit", "inspect", "s3://seit/datasets", "proof")
        return self._refused("client", *words, AWS_SECRET_ACCESS_KEY="wrong")

    def refuses_the_api_s_writes(self) -> str:
        """What the API has for a key reads, and no more."""
        write = "import s3fs; s3fs.S3FileSystem().pipe_file('seit/datasets/probe', b'x')"
        return self._refused("api", "python", "-c", write)

    def _refused(self, service: str, *words: str, **settings: str) -> str:
        """How the store refuses what a container of that service asks."""
        changed = [word for name, value in settings.items() for word in ("-e", f"{name}={value}")]
        try:
            self.compose("run", "--rm", "-T", "--no-deps", *changed, service, *words)
        except ProofError as error:
            refusal = re.search(r".*(signature|AccessDenied|Access Denied|Forbidden).*", str(error))
            if refusal:
                return refusal[0].strip()[:160]
            raise
        raise ProofError(f"the store took what {service} may not ask: {' '.join(words)}")

    def ingest(self) -> str:
        self._submit(
            "seit", "ingest", "--images", "/input/images", "--root", "s3://seit/datasets",
            "--dataset", "proof", "--tokenizer", "/input/tokenizer.safetensors",
            "--rows-per-shard", "64",
        )  # fmt: skip
        return json.dumps(self._api("/v1/datasets/proof/storage"))[:200]

    def check_code(self) -> None:
        program = ("python", "deploy/proof/whose_code.py")
        said = self._submit(*program, options=("--working-dir", "/work"))
        if "all nodes run the submitted code" not in said:
            raise ProofError(f"jobs do not run what was submitted:\n{said[-2000:]}")

    def _submit(self, *words: str, options: Sequence[str] = ()) -> str:
        return self._client("ray", "job", "submit", "--address", _HEAD, *options, "--", *words)

    def train(self, name: str) -> None:
        """Submit the MTM job, and return while it begins."""
        said = self._submit(
            *("python", "trainers/mtm.py", "--recipe", "mtm-tiny", "--out", _RUN),
            *("--data.root", "s3://seit/datasets", "--data.dataset", "proof"),
            *("--loop.epochs", "30", "--optim.warmup-epochs", "1", "--loop.checkpoint-every", "10"),
            *("--loop.log-every", "1"),
            options=("--no-wait", "--working-dir", "/work", "--submission-id", name),
        )
        if name not in said:
            raise ProofError(f"the job was not taken:\n{said[-2000:]}")

    def _head(self, path: str) -> Any:
        asked = urllib.request.Request(f"http://127.0.0.1:{self._ports['DASHBOARD']}{path}")
        asked.add_header("Authorization", f"Bearer {self._secrets['RAY_AUTH_TOKEN']}")
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return json.load(answer)

    def wait_job(self, job: str, seconds: float = 420) -> None:
        self._until(lambda: self._status(job) == "SUCCEEDED", f"{job} succeeds", seconds)

    def _status(self, job: str) -> str:
        status = str(self._head(f"/api/jobs/{job}")["status"])
        if status in ("FAILED", "STOPPED"):
            raise ProofError(f"{job} is {status}:\n{self.job_log(job)}")
        return status

    def job_log(self, job: str) -> str:
        return str(self._head(f"/api/jobs/{job}/logs")["logs"])[-5000:]

    def _api(self, path: str) -> Any:
        url = f"http://127.0.0.1:{self._ports['API']}{path}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return json.load(answer)

    def wait_stream(
        self, good: Callable[[dict[str, Any]], bool], job: str, seconds: float = 300
    ) -> dict[str, Any]:
        """The run's stream, as the stats API tells it, once it is as wanted."""

        def found() -> dict[str, Any] | None:
            self._status(job)
            streams = [_numbers(s) for s in self._api("/v1/streams").get("streams", [])]
            return streams[0] if streams and good(streams[0]) else None

        found_in_time: dict[str, Any] = self._until(found, "the stream is as wanted", seconds)
        return found_in_time

    def wait_jobs_told(self, job: str, nodes: int) -> str:
        """The stats API tells the cluster's nodes, and the job with its run."""

        def told() -> str:
            answer = self._api("/v1/jobs")
            known = {one["id"]: one for one in answer.get("jobs", [])}
            cluster = answer["cluster"]
            if cluster.get("nodesAlive", cluster.get("nodes_alive")) != nodes or job not in known:
                return ""
            return json.dumps(known[job]) if known[job].get("run") == "proof" else ""

        said: str = self._until(told, f"the API tells {job} and {nodes} nodes", 60)
        return said

    def _prometheus(self, path: str, **query: str) -> Any:
        port = self._ports["PROMETHEUS"]
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return json.load(answer)["data"]

    def wait_scraped(self, jobs: dict[str, int]) -> str:
        """All containers are scraped, every panel of the dashboard has series, alerts are sound."""

        def up() -> str:
            found: dict[str, int] = {}
            for target in self._prometheus("targets")["activeTargets"]:
                if target["health"] == "up":
                    name = target["labels"]["job"]
                    found[name] = found.get(name, 0) + 1
            return str(found) if found == jobs else ""

        targets = self._until(up, f"Prometheus scrapes {jobs}", 90)
        panels = json.loads((ROOT / "deploy/grafana/seit.json").read_text())["panels"]
        asked = {one["expr"].replace("$run", ".*") for p in panels for one in p["targets"]}

        def silent() -> list[str]:
            return [q for q in asked if not self._prometheus("query", query=q)["result"]]

        self._until(lambda: not silent(), "every panel of the dashboard has a series", 120)
        rules = [r for group in self._prometheus("rules")["groups"] for r in group["rules"]]
        unsound = [rule["name"] for rule in rules if rule["health"] != "ok"]
        if unsound or not rules:
            raise ProofError(f"of {len(rules)} alerts these cannot be evaluated: {unsound}")
        return f"scraped {targets}; {len(asked)} panels have series; {len(rules)} alerts evaluated"

    def kill_trainer(self) -> str:
        """SIGKILL to the container in which the trainer runs."""
        for name in self._containers("worker"):
            if "RayTrainWorker" in self._docker.run("docker", "top", name, "-o", "pid,args"):
                self._docker.run("docker", "kill", "--signal", "KILL", name)
                return f"killed {name[:12]}, in which the trainer ran"
        raise ProofError("no worker container holds the trainer")

    def kill_store(self) -> None:
        """SIGKILL to the store, and start it again on what its volume holds."""
        (name,) = self._containers("store")
        self._docker.run("docker", "kill", "--signal", "KILL", name)
        self._docker.run("docker", "start", name)
        self.wait_healthy(("store",), 1)

    def check_results(self) -> str:
        look = "import sys, s3fs; sys.exit(not s3fs.S3FileSystem().exists(sys.argv[1]))"
        return self._client(
            *("sh", "-c", 'seit verify s3://seit/datasets proof && python -c "$0" "$1"'),
            *(look, f"{_RUN}/model.safetensors"),
        ).strip()[-200:]

    def logs(self) -> str:
        return self.compose("logs", "--no-color", "--tail", "40")[-12000:]


def _numbers(stream: dict[str, Any]) -> dict[str, Any]:
    """The counts that the proof reads, as numbers."""
    counts = ("step", "step_target", "bytes_fetched")
    return {**stream, **{name: int(stream.get(name, 0)) for name in counts}}
