"""What docker-compose.yml's containers run before their program starts: the words themselves, on
this machine; and what compose may be asked to understand.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.ray_constants import DEFAULT_OBJECT_PREFIX

ROOT = Path(__file__).resolve().parents[2]
DAY = 86_400


def services() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"])


def elsewhere(words: list[str], disk: Path, memory: Path) -> list[str]:
    """A command of the compose file with other folders in the place of /ray and /tmp."""
    places = {"/ray": str(disk), "/tmp": str(memory)}
    known = re.compile(r"(?<![\w/])/(?:ray|tmp)\b")
    return [known.sub(lambda found: places[found[0]], word.replace("$$", "$")) for word in words]


def made(path: Path, days: float = 0) -> Path:
    """A file DISK/CONTAINER/SESSION/FOLDER/NAME, last written so long ago, and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    when = time.time() - days * DAY
    for one in (path, *path.parents[:3]):
        os.utime(one, (when, when))
    return path


@pytest.mark.parametrize("name", ["head", "worker"])
def test_what_ray_writes_lies_on_disk_for_as_long_as_it_is_of_use(
    tmp_path: Path, name: str
) -> None:
    service = services()[name]
    disk, memory = tmp_path / "ray", tmp_path / "tmp"
    memory.mkdir()
    mounted = {volume.split(":")[1] for volume in service["volumes"]}
    assert "/ray" in mounted
    assert "/tmp" in {one.partition(":")[0] for one in service["tmpfs"]}
    spilled = made(disk / f"me/session_1/{DEFAULT_OBJECT_PREFIX}_0f/object")
    log = made(disk / "me/session_1/logs/raylet.out", days=30)
    gone = made(disk / "gone/session_1/logs/raylet.out", days=8)
    recent = made(disk / "recent/session_1/logs/raylet.out", days=6)
    living = made(disk / "living/session_1/logs/dashboard.log", days=30)
    writing = made(disk / "living/session_1/logs/raylet.out")
    os.utime(writing.parent, (0, 0))
    words = elsewhere(service["entrypoint"], disk, memory)
    known = {"PATH": os.environ["PATH"], "HOSTNAME": "me"}
    for _ in range(2):  # a container that starts again
        done = subprocess.run(
            [*words, "echo", "two words", "$HOME"], env=known, capture_output=True, text=True
        )
        assert (done.stdout, done.stderr, done.returncode) == ("two words $HOME\n", "", 0)
        (memory / "ray/session_latest").write_text("")
        assert (disk / "me/session_latest").exists()
    assert not spilled.exists()
    assert not gone.exists()
    assert log.exists()
    assert recent.exists()
    assert living.exists()


@pytest.mark.parametrize(("disk", "named"), [("file", True), ("folder", False)])
def test_a_node_without_a_folder_of_its_own_does_not_start(
    tmp_path: Path, disk: str, named: bool
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    words = elsewhere(services()["worker"]["entrypoint"], tmp_path / disk, tmp_path)
    known = {"PATH": os.environ["PATH"], **({"HOSTNAME": "me"} if named else {})}
    done = subprocess.run([*words, "echo", "started"], env=known, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stdout == ""


def test_the_image_gives_its_user_the_folders_at_which_volumes_are_mounted() -> None:
    """A new volume takes its owner from there; else it is root's, and nothing can be written."""
    (line,) = re.findall(
        r"install -d -o seit -g seit (.+) \\", (ROOT / "deploy/Dockerfile").read_text()
    )
    (cache,) = re.findall(r"SEIT_CACHE_DIR=(\S+)", (ROOT / "deploy/Dockerfile").read_text())
    for name in ("head", "worker", "client", "api"):
        named = [one.split(":") for one in services()[name]["volumes"] if one[0].isalpha()]
        assert cache in {place for _, place in named}, name  # what it reads goes by way of there
        assert {place for _, place in named} <= set(line.split()), name


@pytest.mark.parametrize("mounted", ["nothing", "tokens", "a folder, where there was no such file"])
def test_only_an_api_without_a_file_of_tokens_asks_for_none(tmp_path: Path, mounted: str) -> None:
    """Docker makes a folder where a file to mount does not exist: that is no way in for all."""
    place = tmp_path / "tokens"
    if mounted == "nothing":
        place.symlink_to("/dev/null")
    elif mounted == "tokens":
        place.write_text("{}")
    else:
        place.mkdir()
    words = [
        word.replace("$$", "$").replace("/run/seit", str(tmp_path))
        for word in services()["api"]["entrypoint"]
    ]
    said = subprocess.run([*words, "env"], env={"PATH": os.environ["PATH"]}, capture_output=True)
    asked = f"SEIT_STATS_TOKENS={place}" in said.stdout.decode().splitlines()
    assert asked == (mounted != "nothing")


@pytest.mark.parametrize(
    "file", sorted([ROOT / "docker-compose.yml", *ROOT.glob("deploy/**/compose*.yml")])
)
def test_every_compose_can_read_what_variables_stand_for(file: Path) -> None:
    """Debian's docker-compose knows a default and a refusal, and nothing else behind a name."""
    words = re.findall(r"(?<!\$)\$\{([^}]*)\}", file.read_text())
    assert [one for one in words if not re.fullmatch(r"\w+(:?[-?].*)?", one)] == []
