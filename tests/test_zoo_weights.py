"""Weights for graphs that came without: nothing stays constant, and norms fit what passes through them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from models.zoo.weights import random_weights, settle
from tests.graphs import model_of, run

TWO_NORMS = """
w = ConstantOfShape<value = float[1] {1.0}>(w_shape)
a = Conv<pads = [1, 1, 1, 1]>(x, w)
b = BatchNormalization(a, g1, b1, m1, v1)
c = Relu(b)
d = Conv(c, w2)
result = BatchNormalization<epsilon = 0.001>(d, g2, b2, m2, v2)
"""


def bare() -> ir.Model:
    """Two convolutions, each with a BatchNorm, whose weights are all constant."""
    norm = {f"{name}{i}": np.ones(n, np.float32) for i, n in ((1, 6), (2, 4)) for name in "gbmv"}
    return model_of(TWO_NORMS, {"x": (1, 3, 9, 9)}, {"w_shape": np.array([6, 3, 3, 3]), **norm,
                                                    "w2": np.zeros((4, 6, 1, 1), np.float32)}, opset=9)


def test_no_weight_stays_constant_and_none_is_computed() -> None:
    model = random_weights(bare())
    assert "ConstantOfShape" not in {node.op_type for node in model.graph}
    floats = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT]
    assert len(floats) == 10 and all(np.ptp(v.const_value.numpy()) > 0 for v in floats)


def test_settled_norms_give_their_own_mean_and_scale() -> None:
    model = settle(random_weights(bare()), seed=3)
    noise = np.random.default_rng(3).standard_normal((1, 3, 9, 9), np.float32)
    y = run(model, {"x": noise})["result"]
    weights = {name: v.const_value.numpy() for name, v in model.graph.initializers.items()}
    assert np.allclose(y.mean((0, 2, 3)), weights["b2"], atol=1e-4)
    assert np.allclose(y.std((0, 2, 3)), weights["g2"], rtol=1e-2)


def test_a_network_without_norms_is_left_as_it_is() -> None:
    model = model_of("result = MatMul(x, w)", {"x": (2, 3)}, {"w": (3, 4)})
    before = model.graph.initializers["w"].const_value.numpy().copy()
    assert np.array_equal(settle(model).graph.initializers["w"].const_value.numpy(), before)
