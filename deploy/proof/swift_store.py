"""OpenStack Swift with its S3 API: a durable S3 server that checks who asks and what it is sent.

`PYTHON swift_store.py FOLDER HOST PORT` serves the user whose access key (ACCOUNT:USER) and secret
are MINIO_ROOT_USER and MINIO_ROOT_PASSWORD, and those of the same account that WRITER, READER and
their _PASSWORD name: the reader changes nothing. It runs until SIGTERM; with `--attached` also
until its standard input ends, so that it does not outlive whoever started it. PYTHON's environment
has the packages of swift.lock. Objects stand below FOLDER/objects and outlive the program.

Swift looks whether an object stands and writes later, so of conditional writes that meet several
would succeed, where one may. `in_turn` lets them pass one by one.
"""

from __future__ import annotations

import configparser
import getpass
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_KINDS = ("account", "container", "object")
_PROGRAM = (  # the servers read /etc/swift/swift.conf unless told otherwise before any import
    "import sys, importlib\n"
    "import swift.common.utils as utils\n"
    "kind, utils.SWIFT_CONF_FILE = sys.argv.pop(1), sys.argv.pop(1)\n"
    "sys.argv[0] = f'swift-{kind}-server'\n"
    "module = 'obj' if kind == 'object' else kind\n"
    "importlib.import_module(f'swift.{module}.server').main()\n"
)

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def in_turn(_: dict[str, str], **__: str) -> Callable[[Wsgi], Wsgi]:
    """A filter of the proxy (paste.filter_factory): conditional writes pass one by one."""
    from eventlet.semaphore import Semaphore  # type: ignore[import-not-found]

    turn = Semaphore()

    def around(app: Wsgi) -> Wsgi:
        def answer(asked: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            if asked["REQUEST_METHOD"] != "PUT" or "HTTP_IF_NONE_MATCH" not in asked:
                return app(asked, start)
            with turn:
                return list(app(asked, start))

        return answer

    return around


_USERS = {"MINIO_ROOT_USER": ".admin", "WRITER": ".admin", "READER": ".reseller_reader"}
"""By the variable that holds the access key: the group that says what it may do."""


def _users() -> dict[str, str]:
    """Tempauth's options, of the users that the environment names."""
    found = {}
    for variable, group in _USERS.items():
        if key := os.environ.get(variable):
            secret = os.environ[f"{variable.removesuffix('_USER')}_PASSWORD"]
            found[f"user_{key.replace(':', '_')}"] = f"{secret} {group}"
    return found


def _filters() -> dict[str, dict[str, str]]:
    """Of the proxy, in the order in which a request passes them."""
    return {
        "catch_errors": {"use": "egg:swift#catch_errors"},
        "healthcheck": {"use": "egg:swift#healthcheck"},
        "cache": {"use": "egg:swift#memcache"},
        "in_turn": {"paste.filter_factory": "swift_store:in_turn"},
        "s3api": {"use": "egg:swift#s3api", "s3_acl": "false", "check_bucket_owner": "false"},
        "tempauth": {"use": "egg:swift#tempauth", **_users()},
        "copy": {"use": "egg:swift#copy"},
        "slo": {"use": "egg:swift#slo"},
    }


def configure(folder: Path, host: str, port: int) -> None:
    """FOLDER/etc: the settings of the four servers, and rings of the one disk, FOLDER/objects."""
    etc, disk = folder / "etc", folder / "objects" / "d1"
    etc.mkdir(parents=True, exist_ok=True)
    disk.mkdir(parents=True, exist_ok=True)
    _write(etc / "swift.conf", {
        "swift-hash": {"swift_hash_path_prefix": "a", "swift_hash_path_suffix": "b"},
        "storage-policy:0": {"name": "default", "default": "yes"},
    })  # fmt: skip
    common = {
        "workers": "0",
        "swift_dir": str(etc),
        "user": getpass.getuser(),
        "devices": str(disk.parent),
        "mount_check": "false",
        "log_level": "WARNING",
    }
    filters = _filters()
    _write(etc / "proxy.conf", {
        "DEFAULT": {**common, "bind_ip": host, "bind_port": str(port)},
        "pipeline:main": {"pipeline": " ".join([*filters, "proxy-server"])},
        "app:proxy-server": {"use": "egg:swift#proxy", "account_autocreate": "true"},
        **{f"filter:{name}": options for name, options in filters.items()},
    })  # fmt: skip
    for kind, inner in zip(_KINDS, _free_ports(len(_KINDS)), strict=True):
        _write(etc / f"{kind}.conf", {
            "DEFAULT": {**common, "bind_ip": "127.0.0.1", "bind_port": str(inner)},
            "pipeline:main": {"pipeline": f"{kind}-server"},
            f"app:{kind}-server": {"use": f"egg:swift#{kind}"},
        })  # fmt: skip
        _build_ring(etc, kind, inner)


def _build_ring(etc: Path, kind: str, port: int) -> None:
    builder = etc / f"{kind}.builder"
    builder.unlink(missing_ok=True)
    for step in (
        ("create", "4", "1", "0"),
        ("add", f"r1z1-127.0.0.1:{port}/d1", "1"),
        ("rebalance",),
    ):
        command = [Path(sys.executable).with_name("swift-ring-builder"), builder, *step]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _write(path: Path, sections: dict[str, dict[str, str]]) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_dict(sections)
    with path.open("w") as file:
        parser.write(file)


def serve(etc: Path) -> int:
    """Run the servers until this process is told to end or one of them does; its exit code."""
    here = str(Path(__file__).resolve().parent)
    environment = {**os.environ, "PYTHONPATH": here}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, kind, etc / "swift.conf", etc / f"{kind}.conf"],
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        for kind in (*_KINDS, "proxy")
    ]
    try:
        while all(one.poll() is None for one in running):
            time.sleep(0.2)
        return 1
    finally:
        for one in running:
            one.kill()


def _end_with_standard_input() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    folder, host, port, *options = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if options == ["--attached"]:
        threading.Thread(target=_end_with_standard_input, daemon=True).start()
    configure(Path(folder), host, int(port))
    sys.exit(serve(Path(folder) / "etc"))


if __name__ == "__main__":
    main()
