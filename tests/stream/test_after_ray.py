"""A stream that is left once its program has shut Ray down: nothing is said, nothing started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys
from itertools import islice
from pathlib import Path
import ray
from services.stream.loader import Stream
from services.stream.pool import Pool
from services.stream.request import StreamRequest
from tests.stream.conftest import World, write_small

root = Path(sys.argv[1])
world = World(root, {"tiny": write_small(root, "tiny", [40] * 9, classes=["a"])}, root / "cache")
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
stream = Stream(StreamRequest(world.rows("tiny"), world.recipe("crop"), ""), stop=60, pool=Pool())
batches = iter(stream)
assert len(list(islice(batches, 59))) == 59
ray.shutdown()
print("shut down", file=sys.stderr, flush=True)
batches.close()
assert not ray.is_initialized()
print(stream.flow().state)
"""


@pytest.mark.system
@pytest.mark.timeout(180)
def test_a_stream_that_is_left_after_ray_says_nothing_and_starts_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("shut down\n")
