"""Real networks: exports of many architectures, and trained models that Python packages carry. What is found in each is
pinned; every group is certified, at other batch and sequence sizes than the ones it was found at."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphprune.canonicalise import canonicalise
from graphprune.groups import Analysis, analyse
from graphprune.oracles import certify
from graphprune.selections import solve
from graphprune.trace import Feed, bind, trace
from models import pp_cls, pp_det, pp_rec
from models.task import package_file
from models.zoo.weights import random_weights
from tests.graphs import failures, run, run_all, some


def shapes_of(model: ir.Model) -> dict[str, list[int | str | None]]:
    return {v.name: [d if isinstance(d, int) else d.value for d in v.shape] for v in model.graph.inputs}


def noise(model: ir.Model, shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Feed:
    """Normal numbers, and small positive integers, for every input that is not a weight."""
    rng = np.random.default_rng(seed)
    return {
        v.name: rng.normal(size=shapes[v.name]).astype(v.dtype.numpy()) if v.dtype.is_floating_point()
        else rng.integers(1, 9, shapes[v.name]).astype(v.dtype.numpy())
        for v in model.graph.inputs if v.name not in model.graph.initializers
    }  # fmt: skip


def typed(model: ir.Model, feed: Feed) -> Analysis:
    model = canonicalise(model)
    return analyse(model, solve(model, trace(model, feed, run)), inexact=True)


def counts(analysis: Analysis) -> tuple[int, int]:
    """How many groups are exact, and how many are not."""
    inexact = sum(g.inexact is not None for g in analysis.groups.values())
    return len(analysis.groups) - inexact, inexact


def check_all(analysis: Analysis, feeds: list[Feed], *, alone: bool) -> None:
    rng = np.random.default_rng(0)
    keeps = {name: some(g.size, rng) for name, g in analysis.groups.items()}
    checks = certify(analysis, keeps, feeds, run_all)
    assert {c.verdict for c in checks} == {"exact"}
    if alone:
        checks += [c for name, keep in keeps.items() for c in certify(analysis, {name: keep}, feeds[:1], run_all)]
    assert not failures(checks)


def share(analysis: Analysis) -> float:
    return analysis.n_prunable / analysis.n_parameters


# Every architecture family, exported here


ZOO = {
    # name: exact groups, inexact groups, least share of the parameters that lies in some group
    "resnet_basic": (7, 0, 0.99),
    "resnet_bottleneck": (11, 0, 0.99),
    "resnext": (15, 0, 0.99),
    "mobilenet_v2": (8, 0, 0.99),
    "mobilenet_v3": (12, 0, 0.99),
    "efficientnet": (12, 0, 0.99),
    "densenet": (12, 0, 0.99),
    "convnext": (3, 2, 0.99),
    "shufflenet_v2": (10, 0, 0.99),
    "bert": (8, 0, 0.6),  # the output is the hidden state, so the embedding axis is frozen
    "bert_sdpa": (8, 0, 0.6),
    "gpt2": (8, 1, 0.99),
    "llama": (10, 1, 0.99),
    "vit": (8, 1, 0.99),
    "swin": (16, 2, 0.95),
}


@pytest.mark.parametrize("name", ZOO)
def test_every_group_of_an_architecture_is_certified(name: str) -> None:
    from models import zoo

    model = ir.load(zoo.build(name))
    shapes = shapes_of(model)
    feed = noise(model, bind(shapes))
    other = noise(model, {n: tuple(d if isinstance(d, int) else {"batch": 2, "sequence": 9}[d] for d in s)
                          for n, s in shapes.items()}, seed=1)  # fmt: skip
    analysis = typed(model, feed)
    *groups, least = ZOO[name]
    assert counts(analysis) == tuple(groups)
    assert share(analysis) >= least
    check_all(analysis, [feed, other], alone=True)


def test_every_architecture_of_the_zoo_is_tested() -> None:
    from models import zoo

    assert {a.name for a in zoo.architectures().values() if a.core} == set(ZOO)


# Graphs that onnx carries, their weights left out: random ones are put in


LIGHT = {"squeezenet": (25, 0, 0.99), "shufflenet": (13, 0, 0.99), "densenet121": (120, 0, 0.99)}


@pytest.mark.parametrize("name", LIGHT)
def test_graphs_of_old_opsets_are_certified(name: str) -> None:
    folder = Path(onnx.__file__).parent / "backend/test/data/light"
    model = random_weights(ir.load(folder / f"light_{name}.onnx"))
    feed = noise(model, bind(shapes_of(model)))
    analysis = typed(model, feed)
    *groups, least = LIGHT[name]
    assert counts(analysis) == tuple(groups)
    assert share(analysis) >= least
    check_all(analysis, [feed], alone=False)


# Trained models inside Python packages


PACKAGED: dict[str, tuple[Callable[[], Path], Callable[[int], list[Feed]], int, int, float]] = {
    "recognition": (pp_rec.model, pp_rec.calibration, 27, 1, 0.99),
    "detection": (pp_det.model, pp_det.calibration, 36, 0, 0.99),
    "direction": (pp_cls.model, pp_cls.calibration, 26, 0, 0.99),
}


@pytest.mark.parametrize("name", PACKAGED)
def test_the_text_networks_are_certified(name: str) -> None:
    path, feeds, exact, inexact, least = PACKAGED[name]
    analysis = typed(ir.load(path()), feeds(1)[0])
    assert counts(analysis) == (exact, inexact)
    assert share(analysis) >= least
    check_all(analysis, feeds(1), alone=False)


def test_a_speech_network_prunes_up_to_its_recurrent_state() -> None:
    """The state of the LSTM is an input of the model and must keep its size."""
    if importlib.util.find_spec("silero_vad") is None:
        pytest.skip("the package silero-vad is not installed: its network was NOT tested")
    path = package_file("silero_vad", "data/silero_vad_16k_sequence.onnx", install="silero-vad")
    model = ir.load(path)
    feed = noise(model, bind(shapes_of(model)))
    analysis = typed(model, feed)
    assert counts(analysis) == (5, 0)
    check_all(analysis, [feed], alone=True)


def test_a_model_whose_weights_all_lie_in_branches_has_no_groups() -> None:
    if importlib.util.find_spec("silero_vad") is None:
        pytest.skip("the package silero-vad is not installed: its network was NOT tested")
    model = ir.load(package_file("silero_vad", "data/silero_vad.onnx", install="silero-vad"))
    feed = {"input": np.zeros((1, 576), np.float32), "state": np.zeros((2, 1, 128), np.float32),
            "sr": np.array(16000, np.int64)}  # fmt: skip
    assert typed(model, feed).groups == {}


def test_a_file_type_network_is_certified() -> None:
    if importlib.util.find_spec("magika") is None:
        pytest.skip("the package magika is not installed: its network was NOT tested")
    model = ir.load(package_file("magika", "models/standard_v3_3/model.onnx", install="magika"))
    feed = noise(model, bind(shapes_of(model)))
    analysis = typed(model, feed)
    assert counts(analysis) == (2, 0)
    check_all(analysis, [feed], alone=True)
