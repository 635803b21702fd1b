"""The settings of docs/object-stores.md, each in a process of its own, as a job meets them."""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from tests.deploy.loopback import BODY, read, served

REGION = {"AWS_DEFAULT_REGION": "eu-west-1"}
ALONE = {**REGION, "AWS_EC2_METADATA_DISABLED": "true"}
KEYS = {**ALONE, "AWS_ACCESS_KEY_ID": "env-key", "AWS_SECRET_ACCESS_KEY": "env-secret"}
ROLE = {
    "Code": "Success",
    "AccessKeyId": "role-key",
    "SecretAccessKey": "role-secret",
    "Token": "role-session",
    "Expiration": "2099-01-01T00:00:00Z",
}


def test_keys_of_the_environment_sign_and_the_bucket_stands_in_the_path(tmp_path: Path) -> None:
    with served() as seen:
        done = read(tmp_path, AWS_ENDPOINT_URL=seen.url, **KEYS)
    assert done.stdout == BODY.decode(), done.stderr
    assert seen.keys == {"env-key"}
    (asked,) = [one for one in seen.of_objects() if one.method == "GET"]
    assert asked.plain_path == "/bucket/folder/object"
    assert asked.headers["host"] == f"127.0.0.1:{seen.port}"


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
            **ALONE,
        )
    assert done.stdout == BODY.decode(), done.stderr
    assert seen.keys == {"file-key"}


def test_the_role_of_a_container_gives_keys_that_live_for_a_while(tmp_path: Path) -> None:
    """As ECS and EKS Pod Identity give them: from an address that the environment names."""
    with served({"/role": ROLE}) as seen:
        done = read(
            tmp_path,
            AWS_ENDPOINT_URL=seen.url,
            AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{seen.url}/role",
            AWS_CONTAINER_AUTHORIZATION_TOKEN="who-i-am",
            **ALONE,
        )
    assert done.stdout == BODY.decode(), done.stderr
    assert seen.keys == {"role-key"}
    assert {one.headers["x-amz-security-token"] for one in seen.of_objects()} == {"role-session"}
    assert next(one.key for one in seen.requests if one.path == "/role") == "who-i-am"


def test_the_role_of_a_machine_is_asked_of_its_metadata_service(tmp_path: Path) -> None:
    """As EC2 gives it: a token for the session first, then the role's name, then its keys."""
    roles = "/latest/meta-data/iam/security-credentials/"
    answers = {"/latest/api/token": b"session", roles: b"trainer", f"{roles}trainer": ROLE}
    with served(answers) as seen:
        endpoint = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": seen.url}
        done = read(tmp_path, AWS_ENDPOINT_URL_S3=seen.url, **REGION, **endpoint)
    assert done.stdout == BODY.decode(), done.stderr
    assert seen.keys == {"role-key"}
    first, *others = [one for one in seen.requests if one.path.startswith("/latest")]
    assert (first.method, first.path) == ("PUT", "/latest/api/token")
    assert {one.headers["x-aws-ec2-metadata-token"] for one in others} == {"session"}


def test_a_metadata_service_that_is_busy_is_asked_again_with_the_image_s_settings(
    tmp_path: Path,
) -> None:
    dockerfile = (Path(__file__).resolve().parents[2] / "deploy/Dockerfile").read_text()
    image = dict(re.findall(r"(AWS_METADATA_SERVICE_\w+)=(\d+)", dockerfile))
    roles = "/latest/meta-data/iam/security-credentials/"
    answers = {"/latest/api/token": b"session", roles: b"trainer", f"{roles}trainer": ROLE}
    with served(answers, busy=3) as seen:
        endpoint = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": seen.url}
        done = read(tmp_path, AWS_ENDPOINT_URL_S3=seen.url, **REGION, **endpoint, **image)
    assert done.stdout == BODY.decode(), done.stderr
    assert seen.keys == {"role-key"}


def test_the_role_of_a_service_account_is_had_for_its_token(tmp_path: Path) -> None:
    """As EKS gives it to pods (IRSA): a token in a file, which the STS service takes for keys."""
    (tmp_path / "token").write_text("i-am-the-pod")
    keys = "".join(
        f"<{name}>{value}</{name}>"
        for name, value in {
            "AccessKeyId": "role-key",
            "SecretAccessKey": "role-secret",
            "SessionToken": "role-session",
            "Expiration": "2099-01-01T00:00:00Z",
        }.items()
    )
    result = f"<AssumeRoleWithWebIdentityResult><Credentials>{keys}</Credentials>"
    answer = (
        '<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
        f"{result}</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    )
    with served({"/sts": answer.encode()}) as seen:
        done = read(
            tmp_path,
            AWS_ENDPOINT_URL_S3=seen.url,
            AWS_ENDPOINT_URL_STS=f"{seen.url}/sts",
            AWS_ROLE_ARN="arn:aws:iam::123456789012:role/trainer",
            AWS_WEB_IDENTITY_TOKEN_FILE=str(tmp_path / "token"),
            **ALONE,
        )
    assert done.stdout == BODY.decode(), done.stderr
    assert seen.keys == {"role-key"}
    (asked,) = [one for one in seen.requests if one.path.startswith("/sts")]
    assert b"i-am-the-pod" in asked.body


def test_without_any_credentials_nothing_is_asked_and_the_error_says_so(tmp_path: Path) -> None:
    with served() as seen:
        done = read(tmp_path, AWS_ENDPOINT_URL=seen.url, **ALONE)
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
    with served(tls=certificate) as seen:
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
    with served(tls=certificate) as seen:
        done = read(tmp_path, AWS_ENDPOINT_URL=f"https://127.0.0.1:{seen.port}", **KEYS)
    assert done.returncode == 1
    assert re.search("certificate|SSL", done.stderr)
    assert "env-secret" not in done.stderr
    assert not seen.requests


def test_gcs_takes_the_role_of_a_machine(tmp_path: Path) -> None:
    """As Compute Engine and Workload Identity of GKE give it: by the metadata server."""
    token = {"access_token": "role-token", "expires_in": 3600, "token_type": "Bearer"}
    account = "/computeMetadata/v1/instance/service-accounts/default"
    answers = {
        "/computeMetadata": b"project",
        f"{account}/": {"email": "trainer@project", "scopes": [], "aliases": ["default"]},
        f"{account}/token": token,
        "/computeMetadata/v1/universe": b"googleapis.com",
    }
    with served(answers) as seen:
        place = f"127.0.0.1:{seen.port}"
        settings = {"GCE_METADATA_HOST": place, "GCE_METADATA_IP": place}
        done = read(tmp_path, "gs://bucket/folder", STORAGE_EMULATOR_HOST=seen.url, **settings)
    assert done.stdout == BODY.decode(), done.stderr
    assert seen.keys == {"Bearer role-token"}
    metadata = [one for one in seen.requests if one.path.startswith("/computeMetadata")]
    assert {one.headers["metadata-flavor"] for one in metadata} == {"Google"}


def test_gcs_takes_the_key_of_a_service_account_from_a_file(tmp_path: Path) -> None:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    answer = {"access_token": "file-token", "expires_in": 3600, "token_type": "Bearer"}
    with served({"/token": answer}) as seen:
        account: dict[str, Any] = {
            "type": "service_account",
            "project_id": "project",
            "private_key_id": "1",
            "private_key": private.decode(),
            "client_email": "trainer@project.iam.gserviceaccount.com",
            "token_uri": f"{seen.url}/token",
        }
        (tmp_path / "key.json").write_text(json.dumps(account))
        done = read(
            tmp_path,
            "gs://bucket/folder",
            STORAGE_EMULATOR_HOST=seen.url,
            GOOGLE_APPLICATION_CREDENTIALS=str(tmp_path / "key.json"),
        )
    assert done.stdout == BODY.decode(), done.stderr
    assert seen.keys == {"Bearer file-token"}
    assert private.decode().splitlines()[1] not in done.stderr
