"""Photographs found inside Python packages, cut into many pictures: a stand-in where there is no ImageNet.

Calibration pictures are cut from the left two thirds of each photograph, evaluation pictures from the right third: no
pixel is in both, but the scenes are the same few. Numbers on them compare a network with its dense self on natural
image statistics; they are no accuracy.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from models.task import package_file
from models.text import SEEDS, Part

PHOTOGRAPHS = (("sklearn", "datasets/images/china.jpg", "--no-deps scikit-learn"),
               ("sklearn", "datasets/images/flower.jpg", "--no-deps scikit-learn"),
               ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "--no-deps matplotlib"))


@cache
def photographs() -> tuple[np.ndarray, ...]:
    """uint8 [h, w, 3], red green blue."""
    from PIL import Image

    return tuple(np.asarray(Image.open(package_file(module, path, install=install)).convert("RGB"))
                 for module, path, install in PHOTOGRAPHS)


def pictures(n: int, part: Part, side: int) -> np.ndarray:
    """uint8 [n, side, side, 3]: random squares of the photographs, mirrored, tinted and lit at random; seeded."""
    from PIL import Image

    rng = np.random.default_rng(SEEDS[part] + 300)
    made = []
    for i in range(n):
        photograph = photographs()[i % len(PHOTOGRAPHS)]
        edge = photograph.shape[1] * 2 // 3
        area = photograph[:, :edge] if part == "calibration" else photograph[:, edge:]
        size = int(rng.uniform(0.5, 1.0) * min(area.shape[:2]))
        y, x = int(rng.integers(0, area.shape[0] - size + 1)), int(rng.integers(0, area.shape[1] - size + 1))
        cut = Image.fromarray(area[y:y + size, x:x + size]).resize((side, side), Image.Resampling.BICUBIC)
        pixels = np.asarray(cut, np.float64)[:, ::rng.choice((-1, 1))]
        lit = (pixels - 128) * rng.uniform(0.8, 1.2) + 128 + rng.uniform(-20, 20) + rng.uniform(-8, 8, 3)
        made.append(np.clip(lit, 0, 255).astype(np.uint8))
    return np.stack(made)
