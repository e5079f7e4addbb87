"""A random network as plain data, drawn and shrunk by hypothesis, and the model it stands for."""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import prod

import onnx_ir as ir
from hypothesis import strategies as st

from tests.fuzz.samples import SAMPLES, Key, apply
from tests.fuzz.steps import LARGEST, STEPS
from tests.fuzz.writer import Dice, Shape, Writer
from tests.graphs import model_of

WIDTH, CLASSES = 5, 3
"""Of the input x0 [batch, 5] and of the output `result` [batch, 3]."""
SLICES = 100
STARTS: tuple[Shape, ...] = ((6,), (4, 6), (4, 2, 2), (12,), (2, 3, 2, 2))


@dataclass(frozen=True)
class Program:
    """start: shape of the first value. steps: name of a step or key of a sample, with its decisions. seed: of weights,
    inputs and keep sets. fold: whether the model is canonicalised. alone: whether groups are pruned alone too."""

    start: Shape = STARTS[0]
    steps: tuple[tuple[str | Key, tuple[int, ...]], ...] = ()
    seed: int = 0
    fold: bool = True
    alone: bool = False


_numbers = st.lists(st.integers(0, Dice.FACES - 1), max_size=5).map(tuple)


def samples_of(seed: int) -> list[Key]:
    """The slice of the samples that this seed gets."""
    shuffled = random.Random(seed // SLICES).sample(list(SAMPLES), len(SAMPLES))
    return shuffled[seed % SLICES :: SLICES]


def programs(seed: int) -> st.SearchStrategy[Program]:
    """Programs of all steps and of one slice of the samples: seeds in a row go through all slices, and shuffle anew
    after each round. (One search repeats and varies what it drew, and would not get around the whole table.)"""
    kinds = st.sampled_from(list(STEPS)) | st.sampled_from(samples_of(seed))
    return st.builds(
        Program,
        start=st.sampled_from(STARTS),
        steps=st.lists(st.tuples(kinds, _numbers), min_size=1, max_size=6).map(tuple),
        seed=st.integers(0, 2**16),
        fold=st.sampled_from((True, False)),
        alone=st.sampled_from((False, False, True)),
    )


def build(program: Program) -> ir.Model:
    """The network from x0 [batch, 5] to result [batch, 3], its batch axis dynamic."""
    b = Writer(Dice(()), opset=opset_of(program), seed=program.seed)
    s = program.start
    x = b.fit("x0", (WIDTH,), s)
    for kind, numbers in program.steps:
        b.rng = Dice(numbers)
        b.seen.append((x, s))
        if isinstance(kind, tuple):
            y, after = apply(b, x, s, kind)
        else:  # written in operators of opset 18
            y, after = STEPS[kind](b, x, s) if b.opset >= 18 else (x, s)
        if prod(after) <= LARGEST:
            x, s = y, after
    b.lines.append(f"result = MatMul({x if len(s) == 1 else b.reshape(x, -1)}, {b.weight(prod(s), CLASSES)})")
    return model_of("\n".join(b.lines), {"x0": ("batch", WIDTH)}, b.weights, opset=b.opset)


def opset_of(program: Program) -> int:
    """The opset of the first sample: the others have to do with it."""
    return next((SAMPLES[kind].opset for kind, _ in program.steps if isinstance(kind, tuple)), 18)
