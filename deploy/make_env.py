"""Write a .env file with fresh random secrets for docker-compose.yml; one that stands is kept."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

NAMES = ("SEIT_STORE_PASSWORD", "RAY_AUTH_TOKEN", "GRAFANA_PASSWORD")
PATH = Path(__file__).resolve().parent.parent / ".env"


def main() -> None:
    lines = ["SEIT_STORE_USER=seit", *(f"{name}={secrets.token_hex(32)}" for name in NAMES)]
    try:
        handle = os.open(PATH, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        sys.stderr.write(f"{PATH} stands and is kept: remove it first, if new secrets are wanted\n")
        sys.exit(2)
    with os.fdopen(handle, "w") as file:
        file.write("\n".join(lines) + "\n")
    sys.stderr.write(f"wrote {PATH}, readable by you alone\n")


if __name__ == "__main__":
    main()
