"""Cases that broke a law, as text: the network in ONNX's text syntax, under a header of what to do with it.

    # what went wrong
    # fold: whether to canonicalise the network first
    # seed: of inputs and random keep sets
    # keep: {group: indices kept}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from tests.fuzz.laws import Keep, Tally, examine
from tests.fuzz.programs import build
from tests.fuzz.search import Finding

REGRESSIONS = Path(__file__).parents[1] / "regressions"
SUFFIX = ".onnxtxt"


@dataclass(frozen=True)
class Case:
    model: ir.Model
    fold: bool
    seed: int
    keep: Keep


def write(finding: Finding, path: Path) -> None:
    """Write the network and how to break it. Weights are written out in full."""
    program = finding.program
    header = {
        "fold": program.fold,
        "seed": program.seed,
        "keep": {name: np.asarray(index).tolist() for name, index in finding.keep.items()},
    }
    lines = [*finding.what.splitlines(), *(f"{key}: {json.dumps(value)}" for key, value in header.items())]
    text = onnx.printer.to_text(ir.to_proto(build(program)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"# {line}\n" for line in lines) + text)


def read(path: Path) -> Case:
    text = path.read_text()
    comments = [line[2:] for line in text.splitlines() if line.startswith("# ")]
    fold, seed, keep = (json.loads(line.split(": ", 1)[1]) for line in comments[-3:])
    model = ir.from_proto(onnx.parser.parse_model(text))
    return Case(model, fold, seed, {name: np.array(index, np.int64) for name, index in keep.items()})


def replay(path: Path) -> Tally:
    """Check the laws again, with the keep sets that broke one and with random ones. Raises Broken if one breaks."""
    case = read(path)
    return examine(case.model, case.seed, fold=case.fold, keep=case.keep)
