"""OpenStack Swift with its S3 API on loopback: a durable S3 server that checks what it is sent.

It is not among the project's requirements. `python -m venv X && X/bin/pip install swift
keystonemiddleware` (123 MB) makes an environment for it, and `SEIT_TEST_SWIFT=X/bin/python`
lets the tests of the token store run against it in place of moto. They do so behind the proxy of
faulty_s3.py: Swift looks whether an object stands and writes later, so of conditional writes that
meet several succeed, and the store refuses to commit to it directly.
"""

from __future__ import annotations

import configparser
import contextlib
import getpass
import http.client
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

KEY, SECRET = "test:tester", "testing"
_START_SECONDS = 30.0
_SERVERS = ("account", "container", "object")
_FILTERS = {  # of the proxy, in the order in which a request passes them
    "catch_errors": {"use": "egg:swift#catch_errors"},
    "cache": {"use": "egg:swift#memcache"},
    "s3api": {"use": "egg:swift#s3api", "s3_acl": "false", "check_bucket_owner": "false"},
    "tempauth": {"use": "egg:swift#tempauth", f"user_{KEY.replace(':', '_')}": f"{SECRET} .admin"},
    "copy": {"use": "egg:swift#copy"},
    "slo": {"use": "egg:swift#slo"},
}
# The servers read /etc/swift/swift.conf unless told otherwise, before anything else is imported.
# A server ends when its standard input does: also when the tests are killed.
_PROGRAM = (
    "import os, sys, threading, importlib\n"
    "kept = os.dup(0)  # Swift closes its own\n"
    "ended = lambda: (os.read(kept, 1), os._exit(0))\n"
    "threading.Thread(target=ended, daemon=True).start()\n"
    "import swift.common.utils as utils\n"
    "kind, utils.SWIFT_CONF_FILE = sys.argv.pop(1), sys.argv.pop(1)\n"
    "sys.argv[0] = f'swift-{kind}-server'\n"
    "module = 'obj' if kind == 'object' else kind\n"
    "importlib.import_module(f'swift.{module}.server').main()\n"
)


@contextlib.contextmanager
def swift_server(python: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Host and port of a fresh server whose files stand in `folder`; ends with the context."""
    ports = dict(zip(("proxy", *_SERVERS), _free_ports(1 + len(_SERVERS)), strict=True))
    (folder / "node" / "d1").mkdir(parents=True)
    _write(folder / "swift.conf", {
        "swift-hash": {"swift_hash_path_prefix": "a", "swift_hash_path_suffix": "b"},
        "storage-policy:0": {"name": "default", "default": "yes"},
    })  # fmt: skip
    common = {
        "bind_ip": "127.0.0.1",
        "workers": "0",
        "swift_dir": str(folder),
        "user": getpass.getuser(),
        "devices": str(folder / "node"),
        "mount_check": "false",
        "log_level": "WARNING",
    }
    for kind, port in ports.items():
        filters = _FILTERS if kind == "proxy" else {}
        named = {f"filter:{name}": filter_options for name, filter_options in filters.items()}
        _write(folder / f"{kind}.conf", {
            "DEFAULT": {**common, "bind_port": str(port)},
            "pipeline:main": {"pipeline": " ".join([*filters, f"{kind}-server"])},
            f"app:{kind}-server": {"use": f"egg:swift#{kind}", "account_autocreate": "true"},
            **named,
        })  # fmt: skip
        if kind != "proxy":
            _build_ring(python, folder, kind, port)
    running = []
    try:
        for kind in ports:
            arguments = [kind, str(folder / "swift.conf"), str(folder / f"{kind}.conf")]
            with (folder / f"{kind}.log").open("wb") as log:
                command = [python, "-c", _PROGRAM, *arguments]
                running.append(
                    subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
                )
        _await(ports["proxy"], folder)
        yield "127.0.0.1", ports["proxy"]
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.communicate()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _build_ring(python: str, folder: Path, kind: str, port: int) -> None:
    builder = str(folder / f"{kind}.builder")
    for step in (
        ("create", "4", "1", "0"),
        ("add", f"r1z1-127.0.0.1:{port}/d1", "1"),
        ("rebalance",),
    ):
        command = [Path(python).with_name("swift-ring-builder"), builder, *step]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _write(path: Path, sections: dict[str, dict[str, str]]) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_dict(sections)
    with path.open("w") as file:
        parser.write(file)


def _await(port: int, folder: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        with contextlib.suppress(OSError):
            connection.request("GET", "/")
            connection.getresponse()  # of any kind: it is up
            return
        connection.close()
        time.sleep(0.1)
    logs = "".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.log")))
    raise AssertionError(f"Swift does not answer after {_START_SECONDS} s: {logs}")
