"""Write a .env file with fresh random secrets for docker-compose.yml; those that stand are kept."""

from __future__ import annotations

import os
import re
import secrets
import sys
from pathlib import Path

# Random too: a store may have holes through which the key alone lets in (docs/deploy.md).
KEYS = ("SEIT_STORE_USER", "SEIT_STORE_WRITER", "SEIT_STORE_READER")
NAMES = (
    *(f"{name.removesuffix('_USER')}_PASSWORD" for name in KEYS),
    "RAY_AUTH_TOKEN",
    "GRAFANA_PASSWORD",
)
PATH = Path(__file__).resolve().parent.parent / ".env"


def main() -> None:
    values = {name: f"seit{secrets.token_hex(8)}" for name in KEYS}
    values |= {name: secrets.token_hex(32) for name in NAMES}
    handle = os.open(PATH, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(handle, "r+") as file:
        text = file.read()
        standing = set(re.findall(r"^\s*(?:export\s+)?(\w+)\s*=", text, re.MULTILINE))
        missing = [name for name in values if name not in standing]
        if not missing:
            sys.stderr.write(f"{PATH} lacks nothing: remove it first, if new secrets are wanted\n")
            sys.exit(2)
        begin = "\n" if text and not text.endswith("\n") else ""
        file.write(begin + "".join(f"{name}={values[name]}\n" for name in missing))
    sys.stderr.write(f"wrote {', '.join(missing)} to {PATH}\n")


if __name__ == "__main__":
    main()
