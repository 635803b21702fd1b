"""The settings of docs/object-stores.md, each in a process of its own, as a job meets them.

A server on loopback answers one object, and notes who asked for what.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

BODY = b"tokens"
_READ = """
import sys
from services.errors import StoreError
from services.shards.retry import RetryPolicy
from services.shards.store import open_store
store = open_store("s3://bucket/folder", retry=RetryPolicy(attempts=1))
try:
    sys.stdout.write(store.read("object").decode())
except StoreError as error:
    sys.exit(str(error))
"""


@dataclass
class Seen:
    """What the server was asked: (method, path, host, access key, session token) each."""

    port: int = 0
    requests: list[tuple[str, str, str, str, str]] = field(default_factory=list)

    @property
    def keys(self) -> set[str]:
        return {request[3] for request in self.requests if request[1].startswith("/bucket")}


@contextmanager
def served(tls: tuple[Path, Path] | None = None) -> Iterator[Seen]:
    seen = Seen()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            signed = self.headers.get("Authorization", "")
            key = re.search(r"Credential=([^/]+)/", signed)
            seen.requests.append(
                (
                    *(self.command, self.path, self.headers.get("Host", "")),
                    *(key[1] if key else signed, self.headers.get("X-Amz-Security-Token", "")),
                )
            )
            body = BODY
            if self.path.startswith("/role"):
                body = json.dumps(
                    {
                        "AccessKeyId": "role-key",
                        "SecretAccessKey": "role-secret",
                        "Token": "role-session",
                        "Expiration": "2099-01-01T00:00:00Z",
                    }
                ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    seen.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()


def read(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process that reads the object, with no settings but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    alone = {
        "HOME": str(folder),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }
    return subprocess.run(
        [sys.executable, "-c", _READ],
        env={**kept, **alone, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


KEYS = {"AWS_ACCESS_KEY_ID": "env-key", "AWS_SECRET_ACCESS_KEY": "env-secret"}


def test_keys_of_the_environment_sign_and_the_bucket_stands_in_the_path(tmp_path: Path) -> None:
    with served() as seen:
        done = read(tmp_path, AWS_ENDPOINT_URL=f"http://127.0.0.1:{seen.port}", **KEYS)
    assert done.stdout == BODY.decode(), done.stderr
    assert seen.keys == {"env-key"}
    assert ("GET", "/bucket/folder/object", f"127.0.0.1:{seen.port}", "env-key", "") in [
        (method, path.partition("?")[0], host, key, token)
        for method, path, host, key, token in seen.requests
    ]


def test_a_file_names_keys_endpoint_and_style_by_profile(tmp_path: Path) -> None:
    with served() as seen:
        (tmp_path / "credentials").write_text(
            "[tokens]\naws_access_key_id = file-key\naws_secret_access_key = file-secret\n"
        )
        (tmp_path / "config").write_text(
            "[profile tokens]\nservices = near\n"
            "s3 =\n  addressing_style = path\n"
            f"[services near]\ns3 =\n  endpoint_url = http://localhost:{seen.port}\n"
        )
        done = read(
            tmp_path,
            AWS_PROFILE="tokens",
            AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "credentials"),
            AWS_CONFIG_FILE=str(tmp_path / "config"),
        )
    assert done.stdout == BODY.decode(), done.stderr
    assert seen.keys == {"file-key"}


def test_a_role_gives_keys_that_live_for_a_while(tmp_path: Path) -> None:
    """As ECS and EKS Pod Identity give them: from an address that the environment names."""
    with served() as seen:
        address = f"http://127.0.0.1:{seen.port}"
        done = read(
            tmp_path,
            AWS_ENDPOINT_URL=address,
            AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{address}/role",
            AWS_CONTAINER_AUTHORIZATION_TOKEN="who-i-am",
        )
    assert done.stdout == BODY.decode(), done.stderr
    assert seen.keys == {"role-key"}
    assert {request[4] for request in seen.requests if request[3] == "role-key"} == {"role-session"}
    assert any(path == "/role" and key == "who-i-am" for _, path, _, key, _ in seen.requests)


def test_without_any_credentials_nothing_is_asked_and_the_error_says_so(tmp_path: Path) -> None:
    with served() as seen:
        done = read(tmp_path, AWS_ENDPOINT_URL=f"http://127.0.0.1:{seen.port}")
    assert done.returncode == 1
    assert "redentials" in done.stderr
    assert not seen.keys


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(certificate, key) for 127.0.0.1, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "cert.pem", folder / "key.pem"


def test_tls_takes_a_certificate_that_a_bundle_vouches_for(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    with served(certificate) as seen:
        done = read(
            tmp_path,
            AWS_ENDPOINT_URL=f"https://127.0.0.1:{seen.port}",
            AWS_CA_BUNDLE=str(certificate[0]),
            **KEYS,
        )
    assert done.stdout == BODY.decode(), done.stderr
    assert seen.keys == {"env-key"}


def test_tls_refuses_a_certificate_that_nobody_vouches_for(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    with served(certificate) as seen:
        done = read(tmp_path, AWS_ENDPOINT_URL=f"https://127.0.0.1:{seen.port}", **KEYS)
    assert done.returncode == 1
    assert re.search("certificate|SSL", done.stderr)
    assert "env-secret" not in done.stderr
    assert not seen.requests
