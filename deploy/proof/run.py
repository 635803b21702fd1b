"""docker-compose.yml, run for real: up, ingest, train, ask, kill a worker, see the job end, down.

`python deploy/proof/run.py` needs docker and compose, and root where no engine runs yet. Nothing is
skipped: where the engine cannot start, the program says why and ends with exit code 1. The images
are built from Debian's packages and the lock file, and only the object store is another one than
the compose file names (deploy/proof/compose.yml says which).
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
# Started by its path, the program finds `services` and `engine` as a job would: from the root.
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from engine import BASE, Engine, ProofError, build, engine, has_image, make_base  # noqa: E402

from services.tokens.tokenizer import save_tokenizer  # noqa: E402
from services.tokens.vitvqgan import ViTSize, ViTVQGAN, ViTVQGANConfig  # noqa: E402

PICTURES, CLASSES, PIXELS = 640, 4, 32
IMAGE, STORE_IMAGE = "seit:proof", "seit-store:proof"
_KILL_AT_STEP = 20


def main() -> None:
    options = _options()
    out = Console(stderr=True)
    steps = Steps(out)
    options.scratch.mkdir(parents=True, exist_ok=True)
    try:
        with steps("engine"), engine(options.scratch) as docker:
            _prove(docker, options, steps)
    except ProofError as error:
        out.print(f"[bold red]proof failed[/] at {steps.last}:", highlight=False)
        out.print(str(error), markup=False, highlight=False)
        sys.exit(1)
    finally:
        out.print(steps.table())
        if options.json:
            options.json.write_text(json.dumps(steps.seconds, indent=1) + "\n")
    out.print("[bold green]the compose cluster holds[/]")


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/seit-proof"),
                        help="folder for the engine's data (12 GB) and the input")  # fmt: skip
    parser.add_argument("--base", default="", help="base image; default: one made by debootstrap")
    parser.add_argument("--rebuild", action="store_true", help="build images that stand already")
    parser.add_argument("--json", type=Path, default=None, help="file for the seconds of each step")
    return parser.parse_args()


class Steps:
    """Says what goes on, and keeps how long each step took."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self.seconds: dict[str, float] = {}
        self.last = ""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.last = name
        self._out.print(f"… {name}", highlight=False)
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)
        self._out.print(f"  {name}: {self.seconds[name]:.1f} s", highlight=False)

    def say(self, words: str) -> None:
        self._out.print(f"  {words}", markup=False, highlight=False)

    def table(self) -> Table:
        table = Table("step", "seconds", title="docker-compose.yml")
        for name, seconds in self.seconds.items():
            table.add_row(name, f"{seconds:.1f}")
        return table


def _prove(docker: Engine, options: Any, steps: Steps) -> None:
    with steps("base image"):
        if not options.base:
            make_base(docker, options.scratch)
    with steps("images"):
        if options.rebuild or not has_image(docker, IMAGE):
            build(docker, ROOT / "deploy/Dockerfile", IMAGE, [f"BASE={options.base or BASE}"])
        if options.rebuild or not has_image(docker, STORE_IMAGE):
            build(docker, ROOT / "deploy/proof/store.Dockerfile", STORE_IMAGE, [f"IMAGE={IMAGE}"])
    with steps("input"):
        given = options.scratch / "input"
        shutil.rmtree(given, ignore_errors=True)
        make_input(given)
        tree = options.scratch / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        make_tree(tree)
    cluster = Cluster(docker, given, tree)
    with steps("refusal without secrets"):
        cluster.refuses_without_secrets()
    try:
        with steps("up"):
            cluster.compose("up", "-d", "--no-build", "--scale", "worker=2",
                            "store", "head", "worker", "api")  # fmt: skip
            cluster.wait_healthy(("store", "head", "worker", "api"), 5)
        with steps("what stands is not root and cannot write to its image"):
            cluster.check_confined()
        with steps("ingest"):
            steps.say(cluster.ingest())
        with steps("job: first steps"):
            job = cluster.submit()
            stream = cluster.wait_stream(lambda s: s["step"] >= _KILL_AT_STEP, job)
            steps.say(f"step {stream['step']} of {stream['step_target']}, {_read(stream)}")
        with steps("kill a worker"):
            steps.say(cluster.kill_trainer())
        with steps("job: end"):
            cluster.wait_job(job)
            stream = cluster.wait_stream(lambda s: s["state"] == "finished", job)
            steps.say(f"{stream['step']} of {stream['step_target']} steps, {_read(stream)}")
        with steps("what stands"):
            steps.say(cluster.check_results())
    except ProofError:
        steps.say(cluster.logs())
        raise
    finally:
        with steps("down"):
            cluster.compose("down", "--volumes", "--remove-orphans", "-t", "10")


def _read(stream: dict[str, Any]) -> str:
    return f"{int(stream['bytes_fetched']):,} bytes from the store"


def make_input(folder: Path) -> None:
    """Pictures of classes that a model can tell apart, and a small tokenizer."""
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        place = folder / "images" / f"class{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 60, (PIXELS, PIXELS, 3))
        colour = np.eye(4, 3)[number % CLASSES] * 180
        Image.fromarray((noise + colour).astype(np.uint8)).save(place / f"{number:04d}.png")
    torch.manual_seed(0)
    size = ViTSize(16, 1, 1, 32)
    model = ViTVQGAN(ViTVQGANConfig((PIXELS, PIXELS), 4, size, size, 32, 8, 16))
    (folder / "tokenizer.safetensors").write_bytes(save_tokenizer(model))
    _open_to_all(folder)


def make_tree(folder: Path) -> None:
    """What a user submits: a copy of the sources, with a job that the image does not have."""
    for name in ("services", "trainers"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "deploy/proof/whose_code.py", folder / "whose_code.py")
    _open_to_all(folder)


def _open_to_all(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Cluster:
    """The compose project of the proof: its own name, secrets and ports."""

    def __init__(self, docker: Engine, given: Path, tree: Path) -> None:
        self._no_env = given.parent / "no.env"
        self._no_env.touch()
        self._project = f"seit-proof-{os.getpid()}"
        self._ports = {
            name: _free_port() for name in ("API", "DASHBOARD", "STORE", "STORE_CONSOLE")
        }
        self._secrets = {
            "SEIT_STORE_USER": "proof",
            "SEIT_STORE_PASSWORD": secrets.token_hex(16),
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "GRAFANA_PASSWORD": secrets.token_hex(16),
        }
        self._bare = Engine(
            {
                **{k: v for k, v in docker.environment.items() if k not in self._secrets},
                "SEIT_IMAGE": IMAGE,
                "SEIT_PROOF_STORE_IMAGE": STORE_IMAGE,
                "SEIT_INPUT": str(given),
                "SEIT_TREE": str(tree),
                **{f"SEIT_{name}_PORT": str(port) for name, port in self._ports.items()},
            },
            docker.compose,
        )
        self._docker = Engine({**self._bare.environment, **self._secrets}, docker.compose)

    def _words(self) -> list[str]:
        files = ("docker-compose.yml", "deploy/proof/compose.yml")
        named = [word for file in files for word in ("-f", str(ROOT / file))]
        # Another .env than the user's own, which may hold real secrets.
        return [*self._docker.compose, "--env-file", str(self._no_env), "-p", self._project, *named]

    def compose(self, *words: str) -> str:
        return self._docker.run(*self._words(), *words)

    def refuses_without_secrets(self) -> None:
        try:
            self._bare.run(*self._words(), "config", "-q")
        except ProofError as error:
            if "make_env.py" in str(error):
                return
            raise
        raise ProofError("compose took a configuration without secrets")

    def _client(self, *words: str) -> str:
        return self.compose("run", "--rm", "-T", "client", *words)

    def _containers(self, service: str) -> list[str]:
        return self.compose("ps", "-q", service).split()

    def wait_healthy(self, services: Sequence[str], count: int, seconds: float = 240) -> None:
        names = [name for service in services for name in self._containers(service)]
        if len(names) != count:
            raise ProofError(f"{len(names)} containers stand, expected {count}")
        end = time.monotonic() + seconds
        while True:
            states = self._docker.run(
                "docker", "inspect", "-f", "{{.Name}} {{.State.Health.Status}}", *names
            )
            if states.count(" healthy") == count:
                return
            if time.monotonic() > end:
                raise ProofError(f"not healthy after {seconds:g} s:\n{states}")
            time.sleep(1)

    def check_confined(self) -> None:
        for service in ("head", "worker", "api"):
            name = self._containers(service)[0]
            probe = 'test "$(id -u)" = 10001 && ! touch /opt/seit/probe 2>/dev/null'
            self._docker.run("docker", "exec", name, "sh", "-c", probe)

    def ingest(self) -> str:
        self._job(
            "seit", "ingest", "--images", "/input/images", "--root", "s3://seit/datasets",
            "--dataset", "proof", "--tokenizer", "/input/tokenizer.safetensors",
            "--rows-per-shard", "64",
        )  # fmt: skip
        code = self._job("python", "whose_code.py", folder="/tree")
        if "all nodes run the submitted code" not in code:
            raise ProofError(f"jobs do not run what was submitted:\n{code[-2000:]}")
        found = self._ask("/v1/datasets/proof/storage")
        return json.dumps(found)[:300]

    def _job(self, *words: str, folder: str = "") -> str:
        asked = ["ray", "job", "submit", "--address", "http://head:8265"]
        return self._client(*asked, *(["--working-dir", folder] if folder else []), "--", *words)

    def submit(self) -> str:
        said = self._client(
            *("ray", "job", "submit", "--address", "http://head:8265", "--no-wait"),
            *("--working-dir", "/tree", "--submission-id", "proof-mtm", "--"),
            *("python", "trainers/mtm.py", "--recipe", "mtm-tiny", "--out", "s3://seit/runs/proof"),
            *("--data.root", "s3://seit/datasets", "--data.dataset", "proof"),
            *("--loop.epochs", "30", "--optim.warmup-epochs", "1", "--loop.checkpoint-every", "10"),
            *("--loop.log-every", "1"),
        )
        if "proof-mtm" not in said:
            raise ProofError(f"the job was not taken:\n{said[-2000:]}")
        return "proof-mtm"

    def _job_status(self, job: str) -> str:
        url = f"http://127.0.0.1:{self._ports['DASHBOARD']}/api/jobs/{job}"
        asked = urllib.request.Request(url)
        asked.add_header("Authorization", f"Bearer {self._secrets['RAY_AUTH_TOKEN']}")
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return str(json.load(answer)["status"])

    def wait_job(self, job: str, seconds: float = 420) -> None:
        end = time.monotonic() + seconds
        while (status := self._job_status(job)) != "SUCCEEDED":
            if status in ("FAILED", "STOPPED") or time.monotonic() > end:
                raise ProofError(f"the job is {status}:\n{self._job_log(job)}")
            time.sleep(1)

    def _job_log(self, job: str) -> str:
        address = "http://head:8265"
        return self._client("ray", "job", "logs", "--address", address, job)[-5000:]

    def _ask(self, path: str) -> Any:
        url = f"http://127.0.0.1:{self._ports['API']}{path}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return json.load(answer)

    def wait_stream(
        self, good: Callable[[dict[str, Any]], bool], job: str, seconds: float = 300
    ) -> dict[str, Any]:
        """The run's stream, as the stats API tells it, once it is as wanted."""
        end = time.monotonic() + seconds
        while True:
            streams = [_numbers(s) for s in self._ask("/v1/streams").get("streams", [])]
            if streams and good(streams[0]):
                return streams[0]
            if self._job_status(job) == "FAILED" or time.monotonic() > end:
                raise ProofError(f"the stream is {streams}:\n{self._job_log(job)}")
            time.sleep(1)

    def kill_trainer(self) -> str:
        """SIGKILL to the container in which the trainer runs."""
        for name in self._containers("worker"):
            if "RayTrainWorker" in self._docker.run("docker", "top", name, "-o", "pid,args"):
                self._docker.run("docker", "kill", "--signal", "KILL", name)
                return f"killed {name[:12]}, in which the trainer ran"
        raise ProofError("no worker container holds the trainer")

    def check_results(self) -> str:
        said = self._client("seit", "verify", "s3://seit/datasets", "proof")
        log = self._job_log("proof-mtm")
        listed = self._client(
            "python", "-c", "import s3fs; print(*s3fs.S3FileSystem().find('seit/runs/proof'))"
        )
        if "model.safetensors" not in listed:
            raise ProofError(f"the run left no model:\n{listed}\n{log}")
        return said.strip()[-200:]

    def logs(self) -> str:
        return self.compose("logs", "--tail", "40")[-12000:]


def _numbers(stream: dict[str, Any]) -> dict[str, Any]:
    """The counts that the proof reads, as numbers."""
    counts = ("step", "step_target", "bytes_fetched")
    return {**stream, **{name: int(stream.get(name, 0)) for name in counts}}


if __name__ == "__main__":
    main()
