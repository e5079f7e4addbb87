"""Models with 8-bit layers are certified without their rounding: what is exact without it is exact with it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphprune.oracles import TOLERANCE, certify
from graphprune.unrounded import rounds, unrounded
from tests.graphs import model_of, run, run_all, typed

SCALE, ZERO = np.asarray(0.05, np.float32), np.asarray(128, np.uint8)
PAIR = "{y}q = QuantizeLinear({y}, s, z)\n{y}d = DequantizeLinear({y}q, s, z)\n"


def layers(n: int = 4, width: int = 24) -> ir.Model:
    """A chain of layers with an 8-bit value between each two."""
    rng = np.random.default_rng(3)
    weights = {"s": SCALE, "z": ZERO} | {
        f"w{i}": (rng.normal(size=(width, width)) / width**0.5 * 1.6).astype(np.float32) for i in range(n)
    }
    text, y = "", "x"
    for i in range(n):
        text += f"m{i} = MatMul({y}, w{i})\na{i} = Relu(m{i})\n" + PAIR.format(y=f"a{i}")
        y = f"a{i}d"
    model = model_of(text + f"result = Identity({y})", {"x": (5, width)}, weights)
    for i, node in enumerate(model.graph):
        node.name = f"n{i}"
    return model


FEED = {"x": np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32)}


def test_without_rounding_values_are_those_of_the_plain_network() -> None:
    model = layers()
    plain = unrounded(model)
    assert rounds(model) and not rounds(plain)
    assert not any(n.op_type.endswith("QuantizeLinear") for n in plain.graph)
    y = FEED["x"]
    for i in range(4):
        y = np.maximum(y @ model.graph.initializers[f"w{i}"].const_value.numpy(), 0)
    np.testing.assert_allclose(run(plain, FEED)["result"], y, rtol=1e-4, atol=1e-5)
    assert np.abs(run(model, FEED)["result"] - y).max() > 0.01, "rounding showed"
    assert rounds(model), "the model itself is left alone"


def test_a_value_that_is_given_out_keeps_its_name() -> None:
    text = "m = MatMul(x, w)\n" + PAIR.format(y="m") + "result = Relu(m)"
    model = model_of(text, {"x": (5, 24)}, {"s": SCALE, "z": ZERO, "w": (24, 3)}, ("result", "md"))
    assert run(unrounded(model), FEED).keys() == {"result", "md"}
    np.testing.assert_allclose(run(unrounded(model), FEED)["md"], run(model, FEED)["md"], atol=10)


def test_what_was_rounded_by_another_scale_stays() -> None:
    text = "q = QuantizeLinear(x, s, z)\nresult = DequantizeLinear(q, other, z)"
    model = model_of(text, {"x": (5, 24)}, {"s": SCALE, "z": ZERO, "other": np.asarray(0.1, np.float32)})
    assert rounds(unrounded(model))
    np.testing.assert_array_equal(run(unrounded(model), FEED)["result"], run(model, FEED)["result"])


@pytest.mark.parametrize("biased", [False, True])
def test_products_of_8_bit_values_are_taken_of_the_values(biased: bool) -> None:
    rng = np.random.default_rng(1)
    weights = {"s": SCALE, "z": ZERO, "w": rng.integers(-90, 90, (24, 6)).astype(np.int8), "b": (6,),
               "ws": rng.uniform(0.01, 0.02, 6).astype(np.float32), "wz": np.zeros(6, np.int8)}  # fmt: skip
    last = ", b" if biased else ""
    text = f"q = QuantizeLinear(x, s, z)\nresult = com.microsoft.MatMulIntegerToFloat(q, w, s, ws, z, wz{last})"
    model = model_of(text, {"x": (5, 24)}, weights)
    want = FEED["x"] @ (weights["w"] * weights["ws"])
    if biased:
        want += model.graph.initializers["b"].const_value.numpy()
    np.testing.assert_allclose(run(unrounded(model), FEED)["result"], want, rtol=1e-4, atol=1e-4)
    assert not rounds(unrounded(model))


def test_the_certificate_of_a_rounded_network_is_as_sharp_as_of_a_plain_one() -> None:
    analysis = typed(layers(), FEED)
    groups = {n: g for n, g in analysis.groups.items() if g.size == 24}
    assert groups
    rng = np.random.default_rng(0)
    for name in groups:
        keep = {name: np.sort(rng.choice(24, 9, replace=False))}
        for check in certify(analysis, keep, [FEED], run_all):
            assert check.verdict == "exact" and check.difference < TOLERANCE / 10
