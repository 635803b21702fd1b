"""What the image is made of: a CycloneDX list of parts, and a table of their licences.

`python deploy/sbom.py dist` writes dist/sbom.cdx.json and dist/licences.md. Names, versions and
hashes are those of deploy/image.lock. Licences are what the installed packages say of themselves;
one that is not installed here (another platform's) stands without.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
UNKNOWN = "not known here"
_PIN = re.compile(r"([A-Za-z0-9._-]+)==([^ ;\\]+)")
_EXPRESSION = re.compile(r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*")
_SPDX = {  # what packages of before PEP 639 call the licences that most of them have
    "Apache Software License": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "BSD 3-Clause": "BSD-3-Clause",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "ISC License (ISCL)": "ISC",
    "Python Software Foundation License": "PSF-2.0",
}


@dataclass(frozen=True)
class Part:
    """A pinned package. hashes: sha256 of each file that may be installed."""

    name: str
    version: str
    hashes: tuple[str, ...]
    licence: str

    @property
    def purl(self) -> str:
        return f"pkg:pypi/{self.name}@{self.version}"


def pinned(lock: str) -> Iterator[Part]:
    """The parts of a lock file's text."""
    for block in re.split(r"\n(?=[A-Za-z0-9])", lock.strip()):
        found = _PIN.match(block)
        if found is None:
            raise ValueError(f"not a pinned requirement: {block[:80]!r}")
        hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", block))
        yield Part(found[1], found[2], hashes, _licence(found[1]))


def _licence(name: str) -> str:
    try:
        about: PackageMetadata = metadata(name)
    except PackageNotFoundError:
        return UNKNOWN
    if expression := about.get("License-Expression"):
        return str(expression)
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in about.get_all("Classifier") or ()
        if text.startswith("License :: ") and text != "License :: OSI Approved"
    ]
    said = (about.get("License") or "").strip()
    short = said if said and "\n" not in said and len(said) < 60 else ""
    # A classifier such as "BSD License" names a family; the field is often exact.
    if short and _EXPRESSION.fullmatch(_SPDX.get(short, short)):
        return _SPDX.get(short, short)
    if classifiers:
        return " AND ".join(_SPDX.get(text, text) for text in classifiers)
    return short or UNKNOWN


def bom(parts: list[Part], version: str) -> dict[str, Any]:
    """The list as CycloneDX 1.6."""
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "seitpp",
                "name": "seitpp",
                "version": version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": [_component(part) for part in parts],
        "dependencies": [{"ref": "seitpp", "dependsOn": [part.purl for part in parts]}],
    }


def _component(part: Part) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": part.purl,
        "name": part.name,
        "version": part.version,
        "purl": part.purl,
        "externalReferences": [
            {
                "type": "distribution",
                "url": f"https://pypi.org/project/{part.name}/{part.version}/",
                "hashes": [{"alg": "SHA-256", "content": digest} for digest in part.hashes],
            }
        ],
    }
    if part.licence != UNKNOWN:
        component["licenses"] = [{"license": {"name": part.licence}}]
    return component


def table(parts: list[Part]) -> str:
    """The licences as a table of Markdown, those that most parts have first."""
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(part.licence, []).append(part)
    rows = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    lines = ["| licence | parts |", "|---|---|"]
    for licence, members in rows:
        named = ", ".join(f"{part.name} {part.version}" for part in members)
        lines.append(f"| {licence} | {named} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for sbom.cdx.json and licences.md")
    out: Path = parser.parse_args().out
    parts = list(pinned((ROOT / "deploy/image.lock").read_text()))
    about = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    if about is None:
        sys.exit("pyproject.toml has no version")
    out.mkdir(parents=True, exist_ok=True)
    (out / "sbom.cdx.json").write_text(json.dumps(bom(parts, about[1]), indent=1) + "\n")
    (out / "licences.md").write_text(table(parts))
    unknown = sum(part.licence == UNKNOWN for part in parts)
    sys.stderr.write(f"{len(parts)} parts in {out}, {unknown} of them of a licence {UNKNOWN}\n")


if __name__ == "__main__":
    main()
