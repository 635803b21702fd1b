"""docker-compose.yml, run for real: up, ingest, train, ask, kill a worker, see the job end, down.

`python deploy/proof/run.py` needs docker and compose, and root where no engine runs yet. Nothing is
skipped: where the engine cannot start, the program says why and ends with exit code 1. The images
are built from Debian's packages and lock files; deploy/proof/compose.yml says which of them stand
for images that the compose file names. Grafana's cannot be built so; what it would ask of
Prometheus, every query of its dashboard, is asked here instead.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
# Started by its path, the program finds `services` as a job would: from the root.
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from cluster import Cluster  # noqa: E402
from engine import BASE, Engine, ProofError, build, engine, make_base  # noqa: E402
from given import make_input  # noqa: E402

IMAGES = {  # variable of the compose files: Dockerfile, name
    "SEIT_IMAGE": ("deploy/Dockerfile", "seit:proof"),
    "SEIT_PROOF_STORE_IMAGE": ("deploy/proof/store.Dockerfile", "seit-store:proof"),
    "SEIT_PROOF_PROMETHEUS_IMAGE": ("deploy/proof/prometheus.Dockerfile", "seit-metrics:proof"),
}
SERVICES = ("store", "head", "worker", "api", "prometheus")
JOB = "proof-mtm"
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
        out.print(f"[bold red]proof failed[/] at {steps.failed}:", highlight=False)
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
                        help="folder for the engine's data (14 GB) and the input")  # fmt: skip
    parser.add_argument("--base", default="", help="base image; default: one made by debootstrap")
    parser.add_argument("--json", type=Path, default=None, help="file for the seconds of each step")
    return parser.parse_args()


class Steps:
    """Says what goes on, and keeps how long each step took."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self.seconds: dict[str, float] = {}
        self.failed = ""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._out.print(f"… {name}", highlight=False)
        began = time.monotonic()
        try:
            yield
        except ProofError:
            self.failed = self.failed or name
            raise
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
    # What was built before and has not changed comes from the engine's own cache.
    for dockerfile, name in IMAGES.values():
        with steps(f"image {name}"):
            build(docker, ROOT / dockerfile, name, [f"BASE={options.base or BASE}"])
    with steps("input"):
        given = options.scratch / "input"
        shutil.rmtree(given, ignore_errors=True)
        make_input(given)
    images = {variable: name for variable, (_, name) in IMAGES.items()}
    cluster = Cluster(docker, given, images)
    with steps("refusal without secrets"):
        cluster.refuses_without_secrets()
    try:
        _live(cluster, steps)
    except ProofError:
        steps.say(cluster.logs())
        raise
    finally:
        with steps("down"):
            cluster.compose("down", "--volumes", "--remove-orphans", "-t", "10")


def _live(cluster: Cluster, steps: Steps) -> None:
    with steps("up"):
        cluster.compose("up", "-d", "--no-build", "--scale", "worker=2", *SERVICES)
        cluster.wait_healthy(SERVICES, len(SERVICES) + 1)
    with steps("what stands is not root and cannot write to its image"):
        cluster.check_confined()
    with steps("the store refuses a wrong key"):
        steps.say(cluster.refuses_a_wrong_key())
    with steps("the store refuses what the API would write"):
        steps.say(cluster.refuses_the_api_s_writes())
    with steps("ingest"):
        steps.say(cluster.ingest())
    with steps("jobs run what was submitted"):
        cluster.check_code()
    with steps("job: first steps"):
        cluster.train(JOB)
        stream = cluster.wait_stream(lambda s: s["step"] >= _KILL_AT_STEP, JOB)
        steps.say(f"step {stream['step']} of {stream['step_target']}, {_read(stream)}")
        steps.say(cluster.wait_jobs_told(JOB, nodes=3))
    with steps("kill a worker"):
        steps.say(cluster.kill_trainer())
    with steps("job: end"):
        cluster.wait_job(JOB)
        stream = cluster.wait_stream(lambda s: s["state"] == "finished", JOB)
        steps.say(f"{stream['step']} of {stream['step_target']} steps, {_read(stream)}")
    with steps("Prometheus"):
        steps.say(cluster.wait_scraped({"seit": 1, "ray": 2, "prometheus": 1}))
    with steps("what the store kept when it was killed"):
        cluster.kill_store()
        steps.say(cluster.check_results())


def _read(stream: dict[str, Any]) -> str:
    return f"{int(stream['bytes_fetched']):,} bytes from the store"


if __name__ == "__main__":
    main()
