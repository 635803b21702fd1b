"""Programs one after another, on one local Ray cluster; what is done is skipped the next time.

A step is noted with its command and with what it was made from. A training step that was
interrupted goes on from its checkpoint. SIGTERM and Ctrl-C are passed on to the step that runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.pictures import list_pictures
from services.shards.store import open_store
from services.stream.cluster import local_cluster
from trainers.program import StoppedError
from trainers.reports import read_json
from trainers.signals import Stop, stopping

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
"""Folder of the training programs."""

_POLL_SECONDS = 0.2
_ENDS_WITH_US = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Becomes a program that gets SIGTERM when the one that started it ends, however it does. Not in a
`preexec_fn`, which is unsafe beside the threads of Ray."""


@dataclass(frozen=True)
class Step:
    """One program of the chain. outputs: names in its folder that stand when it is done."""

    name: str
    about: str
    command: Sequence[str]
    folder: Path
    outputs: Sequence[str]


def run_steps(steps: Iterable[Step], out: Path, made_from: str) -> tuple[int, dict[str, float]]:
    """(exit code of the first step that failed or 0, seconds that each step took).

    out: folder of the notes, and of the node's cache. made_from: digest of what the steps read; a
    step that was made from something else, and all that follow it, are done again.

    Raises: StoppedError after SIGINT or SIGTERM, when the step that ran has ended; it is done only
    if it came to its end.
    """
    notes = open_store(str(out / "steps"))
    os.environ["SEIT_CACHE_DIR"] = str(out / "cache")  # the cluster's processes inherit it
    seconds: dict[str, float] = {}
    with stopping("passing it on to the step that runs") as stop, contextlib.ExitStack() as stack:
        environment: dict[str, str] = {}  # of the cluster, which starts where a step is to be done
        redone = False
        for step in steps:
            note = f"{step.name}.json"
            shown = [short(word, out) for word in step.command]
            mark = {"command": shown, "pictures": made_from}  # wherever program and folder lie
            known = read_json(notes, note) if notes.exists(note) else {}
            noted = known.get("mark", {})
            noted = {**noted, "command": [_of_old(word, out) for word in noted.get("command", [])]}
            same = noted == mark
            if same and not redone and known.get("seconds") is not None and _stand(step):
                seconds[step.name] = known["seconds"]
                logger.info("[%s] done before, in %.0f s", step.name, seconds[step.name])
                continue
            if known and (not same or redone):  # ours, and made from something else
                shutil.rmtree(step.folder, ignore_errors=True)
            redone = True
            notes.write(note, json.dumps({"mark": mark, "seconds": None}).encode())
            logger.info("[%s] %s", step.name, step.about)
            logger.info("  $ %s", " ".join(shown))
            if not environment:
                address = stack.enter_context(local_cluster())
                environment = {**os.environ, "RAY_ADDRESS": address}
                stop.arm()  # Ray's own handler of SIGTERM would take down the cluster at once
            began = time.monotonic()
            code = None if stop.is_set() else _call(step.command, environment, stop)
            if code == 0:
                seconds[step.name] = time.monotonic() - began
                done = {"mark": mark, "seconds": seconds[step.name]}
                notes.write(note, json.dumps(done).encode())
            if stop.is_set():
                raise StoppedError(stop.code)
            if code:
                logger.error(
                    "[%s] ended with code %d; the same command goes on from here", step.name, code
                )
                return code, seconds
    return 0, seconds


def _call(command: Sequence[str], environment: dict[str, str], stop: Stop) -> int:
    """Exit code of a program, which is told once to stop, and given the time to end well.

    A terminal, and `timeout`, send a signal to all of a group, and a second one would end the
    program at once: it leads a group of its own, and is told by this process alone.
    """
    words = [sys.executable, "-c", _ENDS_WITH_US, *command]
    with subprocess.Popen(words, env=environment, process_group=0) as program:
        while program.poll() is None and not stop.wait(_POLL_SECONDS):
            pass
        if stop.is_set():
            program.send_signal(stop.number)
        return program.wait()


def fingerprint(images: Path) -> str:
    """Digest of names, sizes and times of all pictures of a folder: changes when one of them does.

    Raises: InvalidInputError where the folder holds no pictures that could be read.
    """
    digest = hashlib.sha256()
    for picture in (
        picture for found in list_pictures(images).splits.values() for picture in found
    ):
        status = picture.path.stat()
        digest.update(os.fsencode(f"{picture.key}\0{status.st_size}\0{status.st_mtime_ns}\0"))
    return digest.hexdigest()


def _stand(step: Step) -> bool:
    return all((step.folder / name).exists() for name in step.outputs)


def _of_old(word: str, out: Path) -> str:
    """A word of a note as `short` says it now: once notes held whole paths, of a program that may
    have lain elsewhere."""
    word = re.sub(r"^/.*/bin/python[0-9.]*$", "python", word)
    return short(re.sub(r"^/.*/(trainers/\w+\.py)$", r"\1", word), out)


def short(word: str, out: Path) -> str:
    """A word of a command as a person would type it from the folder above `out`."""
    if word == sys.executable:
        return "python"
    return word.replace(f"{HERE}/", "trainers/").replace(f"{out.parent}/", "")
