"""Descriptions of Debian packages: text that apt can fetch everywhere, one short and one long for every package.

Kept are packages whose long description is at least 300 characters, one per name family ("0ad" and "0ad-data" share
theirs) and one per text, in an order fixed by a checksum of the name. The first `N_EVALUATION` are for evaluation,
the rest for calibration, so the two never overlap.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from graphprune.errors import EnvironmentFault
from models.task import cached

N_EVALUATION, N_CALIBRATION = 1000, 4000
LISTS = Path("/var/lib/apt/lists")
UPDATE = "apt-get -o Acquire::Languages=en update"


@dataclass(frozen=True)
class Description:
    package: str
    short: str
    long: str


def _translations() -> Iterator[str]:
    """The text of every downloaded list of English descriptions of the main archive, as apt stored it."""
    helper = shutil.which("apt-helper") or "/usr/lib/apt/apt-helper"
    found = sorted(LISTS.glob("*_main_i18n_Translation-en*")) if LISTS.is_dir() else []
    for path in found:
        read = subprocess.run([helper, "cat-file", str(path)], capture_output=True, check=False)
        if read.returncode:
            raise EnvironmentFault(f"apt-helper cannot read a package list: {read.stderr.decode().strip()}",
                                   at=str(path), fix=UPDATE)
        yield read.stdout.decode("utf-8", errors="replace")


def parse(text: str) -> Iterator[Description]:
    """Stanzas of a Translation-en file. Paragraphs, parted by a line with a dot, are joined."""
    for stanza in text.split("\n\n"):
        name, _, rest = stanza.removeprefix("Package: ").partition("\n")
        _, _, body = rest.partition("Description-en: ")
        short, _, long = body.partition("\n")
        if long:
            yield Description(name, short, " ".join(line.strip() for line in long.split("\n") if line.strip() != "."))


def select(found: Iterator[Description]) -> list[Description]:
    """One description per family and text, in checksum order."""
    chosen, seen = [], set()
    for item in sorted(found, key=lambda d: (zlib.crc32(d.package.encode()), d.package)):
        keys = {("family", item.package.split("-")[0]), ("short", item.short), ("long", item.long[:80])}
        if len(item.long) >= 300 and not keys & seen:
            seen |= keys
            chosen.append(item)
    return chosen[:N_EVALUATION + N_CALIBRATION]


def stored() -> Path:
    """The file of chosen descriptions; EnvironmentFault with the command to run if apt has no lists."""
    def make(path: Path) -> None:
        chosen = select(item for text in _translations() for item in parse(text))
        if len(chosen) < N_EVALUATION + 256:
            raise EnvironmentFault(f"only {len(chosen)} usable package descriptions in apt's lists", at=str(LISTS),
                                   fix=f"on Debian or Ubuntu, as root: {UPDATE}")
        path.write_text(json.dumps([vars(item) for item in chosen], indent=0), encoding="utf-8")

    return cached("debian_descriptions.json", make, Path(__file__))


@cache
def descriptions() -> tuple[Description, ...]:
    """The chosen descriptions, evaluation first."""
    return tuple(Description(**item) for item in json.loads(stored().read_text(encoding="utf-8")))


def evaluation() -> tuple[Description, ...]:
    return descriptions()[:N_EVALUATION]


def calibration() -> tuple[Description, ...]:
    return descriptions()[N_EVALUATION:]
