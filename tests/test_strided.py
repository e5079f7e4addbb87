"""Gathers that read a tensor from front to back are taken out, and no others."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphprune.canonicalise import canonicalise
from graphprune.oracles import compare
from tests.graphs import model_of, run, sizes, typed

TEXT = """
h = MatMul(x, w)
t = Transpose<perm=[0,2,1]>(h)
m = ReduceMean(t, last)
flat = Reshape(m, all)
b = Shape<start=0, end=1>(x)
n = Squeeze(b)
r = Range(start, n, step)
s = Mul(r, stride)
u = Unsqueeze(s, behind)
i = Add(u, places)
y = Gather<axis=0>(flat, i)
z = Reshape(y, rows)
result = MatMul(z, v)
"""
FEED = {"x": np.random.default_rng(0).normal(size=(3, 5, 6)).astype(np.float32)}


def model(**changed: object) -> ir.Model:
    """x [n, 5, 6] -> 8 features, averaged over the five, read as a strided view -> 4."""
    weights = {
        "w": (6, 8), "v": (8, 4), "last": [-1], "all": [-1], "start": 0, "step": 1, "stride": 8, "behind": [1, 2],
        "places": np.arange(8).reshape(1, 8, 1), "rows": [0, 8], **changed,
    }  # fmt: skip
    arrays = {k: v if isinstance(v, tuple) else np.asarray(v, np.int64) for k, v in weights.items()}
    return model_of(TEXT, {"x": ("N", 5, 6)}, arrays)


def test_what_lies_in_order_is_read_directly_and_its_axis_is_free() -> None:
    plain = model()
    canonical = canonicalise(plain)
    assert not any(node.op_type in ("Gather", "Range") for node in canonical.graph)
    assert compare(run(plain, FEED), run(canonical, FEED)) < 1e-6
    assert sizes(typed(model(), FEED)) == ([8], [])


@pytest.mark.parametrize("changed", [
    {"places": np.arange(8)[::-1].reshape(1, 8, 1)}, {"stride": 0}, {"places": np.zeros((1, 8, 1))},
    {"step": 1, "stride": 4, "places": np.arange(8).reshape(1, 8, 1)},
], ids=["reversed", "the first row again and again", "one column", "overlapping rows"])  # fmt: skip
def test_what_is_read_in_another_order_stays(changed: dict) -> None:
    plain = model(**changed)
    canonical = canonicalise(plain)
    assert any(node.op_type == "Gather" for node in canonical.graph)
    assert compare(run(plain, FEED), run(canonical, FEED)) < 1e-6
