"""Programs one after another, on one local Ray cluster; what is done is skipped the next time.

A step is noted with its command and with what it was made from. A training step that was
interrupted goes on from its checkpoint.
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
from trainers.reports import read_json

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
"""Folder of the training programs."""


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
    """
    notes = open_store(str(out / "steps"))
    os.environ["SEIT_CACHE_DIR"] = str(out / "cache")  # the cluster's processes inherit it
    seconds: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
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
            began = time.monotonic()
            code = _call(step.command, environment)
            if code:
                logger.error(
                    "[%s] ended with code %d; the same command goes on from here", step.name, code
                )
                return code, seconds
            seconds[step.name] = time.monotonic() - began
            notes.write(note, json.dumps({"mark": mark, "seconds": seconds[step.name]}).encode())
    return 0, seconds


def _call(command: Sequence[str], environment: dict[str, str]) -> int:
    """Exit code of a program. Ctrl-C reaches it too, and it is given the time to end well."""
    with subprocess.Popen(command, env=environment) as program:
        try:
            return program.wait()
        except KeyboardInterrupt:
            program.wait()
            raise


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
