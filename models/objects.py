"""Photographs of single objects, cut out: some 300 animals, plants, foods, vehicles, tools and buildings.

They are stamps of the drawing program Tux Paint (Debian package tuxpaint-stamps-default, public domain or free
licences), fetched by apt. Each is put before a plain backdrop, as in a catalogue. Calibration and evaluation have
different objects. No picture comes with a class: what a network says of them is compared with what it said when dense.
"""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from graphprune.errors import EnvironmentFault
from models.task import cached, read_npz
from models.text import SEEDS, Part, part_of

PACKAGE = "tuxpaint-stamps-default"
FETCH = f"on Debian or Ubuntu, as root: apt-get update, and then anywhere: apt-get download {PACKAGE}"
STAMPS = "usr/share/tuxpaint/stamps"
KINDS = ("animals", "clothes", "food", "hobbies", "household", "military", "plants", "sports", "town/houses",
         "town/monuments", "vehicles")
"""Folders of photographs; others hold drawings, letters and signs."""
FEWEST = 200
LARGEST = 224


def _unpacked(folder: Path) -> Path:
    """The package's files, fetched into a folder. Raises EnvironmentFault with the commands that would."""
    _run("apt-get", "download", PACKAGE, cwd=folder)
    fetched = list(folder.glob(f"{PACKAGE}_*.deb"))
    if not fetched:
        raise EnvironmentFault(f"apt-get fetched no {PACKAGE}", fix=FETCH)
    _run("dpkg-deb", "-x", fetched[0].name, "files", cwd=folder)
    return folder / "files" / STAMPS


def _run(*command: str, cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise EnvironmentFault(f"{command[0]} is not there", fix=FETCH) from error
    if done.returncode:
        raise EnvironmentFault(f"{command[0]} cannot give the photographs of {PACKAGE}",
                               at=done.stderr.strip().split("\n")[-1], fix=FETCH)  # fmt: skip


def _make(path: Path) -> None:
    from PIL import Image

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        stamps = _unpacked(Path(folder))
        for file in sorted(f for kind in KINDS for f in (stamps / kind).rglob("*.png")):
            name = file.relative_to(stamps).with_suffix("").as_posix()
            if "cartoon" not in name:
                stamp = Image.open(file).convert("RGBA")
                stamp.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
                found[name] = np.asarray(stamp)
    if len(found) < FEWEST:
        raise EnvironmentFault(f"only {len(found)} photographs in {PACKAGE}", fix=f"another version of {PACKAGE}")
    with path.open("wb") as file:
        np.savez_compressed(file, **{name.replace("/", " "): pixels for name, pixels in found.items()})


@cache
def objects() -> dict[str, np.ndarray]:
    """Name -> uint8 [h, w, 4], red green blue and opacity, the longer side at most LARGEST."""
    return read_npz(cached("objects.npz", _make, Path(__file__)))


def pictures(n: int, part: Part, side: int) -> np.ndarray:
    """uint8 [n, side, side, 3]: the objects of a part in turn, each time at another place, size and light; seeded."""
    from PIL import Image

    rng = np.random.default_rng(SEEDS[part] + 400)
    own = [pixels for name, pixels in sorted(objects().items()) if part_of(name) == part]
    order, made = rng.permutation(len(own)), []
    for i in range(n):
        pixels = own[order[i % len(own)]][:, ::rng.choice((-1, 1))]
        scale = side * rng.uniform(0.7, 1.0) / max(pixels.shape[:2])
        height, width = (max(1, min(side, round(scale * m))) for m in pixels.shape[:2])
        stamp = Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.Resampling.BICUBIC)
        colour, darker = rng.uniform(90, 250) + rng.uniform(-25, 25, 3), rng.uniform(-40, 40)
        backdrop = colour + np.linspace(0, darker, side)[:, None, None] + rng.normal(0, 3, (side, side, 1))
        picture = Image.fromarray(np.clip(backdrop, 0, 255).astype(np.uint8))
        y, x = int(rng.integers(0, side - height + 1)), int(rng.integers(0, side - width + 1))
        picture.paste(stamp, (x, y), stamp)
        lit = (np.asarray(picture, np.float64) - 128) * rng.uniform(0.8, 1.2) + 128
        lit += rng.uniform(-20, 20) + rng.uniform(-8, 8, 3)
        made.append(np.clip(lit, 0, 255).astype(np.uint8))
    return np.stack(made)
