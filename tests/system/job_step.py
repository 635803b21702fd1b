"""A program for tests of job graphs: appends a line to a file, and then does as it is told.

`python -m tests.system.job_step LOG NAME done|fail|wait OUTPUT`; "wait" ends when OUTPUT stands, or
on SIGTERM, as a training run does.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path


def main(log: str, name: str, what: str, output: str) -> int:
    """Its exit code."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Path(log).open("a") as file:
        file.write(f"{name}\n")
    sys.stdout.write(f"this is {name}\n")
    if what == "fail":
        sys.stdout.write("the reason why\n")
        return 3
    if what == "wait":
        while not Path(output).exists():
            if stop.wait(0.1):
                with Path(log).open("a") as file:
                    file.write(f"{name} stopped\n")
                return 130
        return 0
    Path(output).write_text(name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
