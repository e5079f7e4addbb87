"""What kernels have to compute and to move, against counts made by hand."""

from __future__ import annotations

import pytest

from graphprune.devices.work import Tensor, work_of


def t(*shape: int, bits: int = 32, w: bool = False) -> Tensor:
    return Tensor(shape, bits, w)


# name: (operator, attributes, inputs, outputs) -> (kind, products, precision, the op of a table)
CASES = {
    "matrix": ("MatMul", {}, [t(128, 384), t(384, 99, w=True)], [t(128, 99)], 2 * 128 * 384 * 99, "fp32", "MatMul"),
    "matrix of many rows": ("MatMul", {}, [t(4, 128, 384), t(384, 64, w=True)], [t(4, 128, 64)],
                            2 * 4 * 128 * 384 * 64, "fp32", "MatMul"),
    "scores": ("MatMul", {}, [t(2, 12, 50, 32), t(2, 12, 32, 70)], [t(2, 12, 50, 70)], 2 * 2 * 12 * 50 * 70 * 32,
               "fp32", "MatMul of activations"),
    "gemm": ("Gemm", {"transB": 1}, [t(7, 100), t(30, 100, w=True), t(30, w=True)], [t(7, 30)], 2 * 7 * 100 * 30,
             "fp32", "Gemm"),
    "turned gemm": ("Gemm", {"transA": 1}, [t(100, 7), t(100, 30, w=True)], [t(7, 30)], 2 * 7 * 100 * 30, "fp32",
                    "Gemm"),
    "8 bits": ("MatMulInteger", {}, [t(128, 64, bits=8), t(64, 32, bits=8, w=True)], [t(128, 32)], 2 * 128 * 64 * 32,
               "int8", "MatMulInteger"),
    "4-bit weights": ("MatMulNBits", {"K": 64, "N": 32, "bits": 4}, [t(128, 64), t(32, 2, 16, bits=8, w=True)],
                      [t(128, 32)], 2 * 128 * 64 * 32, "fp32", "MatMulNBits 4 bits"),
    "convolution": ("Conv", {}, [t(2, 16, 20, 20), t(32, 16, 3, 3, w=True)], [t(2, 32, 18, 18)],
                    2 * 2 * 18 * 18 * 32 * 16 * 9, "fp32", "Conv k x k"),
    "pointwise": ("Conv", {}, [t(1, 16, 5, 5), t(32, 16, 1, 1, w=True)], [t(1, 32, 5, 5)], 2 * 25 * 32 * 16,
                  "fp32", "Conv 1x1"),
    "grouped": ("Conv", {"group": 4}, [t(1, 16, 5, 5), t(32, 4, 1, 1, w=True)], [t(1, 32, 5, 5)],
                2 * 25 * 32 * 4, "fp32", "Conv grouped"),
    "stem": ("Conv", {}, [t(1, 3, 9, 9), t(8, 3, 3, 3, w=True)], [t(1, 8, 7, 7)], 2 * 49 * 8 * 27, "fp32",
             "Conv few channels"),
    "turned convolution": ("ConvTranspose", {}, [t(1, 16, 5, 5), t(16, 8, 2, 2, w=True)], [t(1, 8, 10, 10)],
                           2 * 25 * 16 * 8 * 4, "fp32", "ConvTranspose k x k"),
    "recurrent": ("LSTM", {}, [t(10, 2, 16), t(1, 32, 16, w=True), t(1, 32, 8, w=True)], [t(10, 1, 2, 8)],
                  2 * 10 * 2 * 32 * (16 + 8), "fp32", "LSTM"),
    "attention": ("MultiHeadAttention", {"num_heads": 4}, [t(2, 50, 64), t(2, 70, 64), t(2, 70, 64)], [t(2, 50, 64)],
                  4 * 2 * 4 * 50 * 70 * 16, "fp32", "MultiHeadAttention"),
}  # fmt: skip


@pytest.mark.parametrize("op, attributes, inputs, outputs, products, precision, label", CASES.values(), ids=CASES)
def test_products(op, attributes, inputs, outputs, products, precision, label) -> None:
    work = work_of(op, attributes, inputs, outputs)
    assert (work.kind, work.products, work.precision, work.op) == ("matrix", products, precision, label)
    assert work.weights == sum(x.bytes for x in inputs if x.constant)
    assert work.inputs == sum(x.bytes for x in inputs if not x.constant)
    assert work.outputs == sum(y.bytes for y in outputs)


def test_a_depthwise_convolution_is_no_matrix_product() -> None:
    work = work_of("Conv", {"group": 16}, [t(1, 16, 8, 8), t(16, 1, 3, 3, w=True)], [t(1, 16, 6, 6)])
    assert (work.kind, work.operations, work.products) == ("vector", 2 * 16 * 36 * 9, 0)


def test_what_is_fused_into_a_product_is_computed_besides() -> None:
    plain = work_of("Conv", {}, [t(1, 16, 5, 5), t(32, 16, 1, 1, w=True)], [t(1, 32, 5, 5)])
    fused = work_of("Conv", {"activation": "Sigmoid"}, [t(1, 16, 5, 5), t(32, 16, 1, 1, w=True)], [t(1, 32, 5, 5)])
    assert (plain.operations, fused.operations) == (0, 16 * 32 * 25)


@pytest.mark.parametrize("op, each", [("Add", 1), ("Erf", 25), ("Softmax", 16), ("NobodyKnows", 1)])
def test_operations_of_each_number(op: str, each: int) -> None:
    work = work_of(op, {}, [t(3, 4), t(4)], [t(3, 4)])
    assert (work.kind, work.operations, work.bytes) == ("vector", 12 * each, 4 * (12 + 4 + 12))


def test_views_move_nothing_and_what_is_left_out_counts_for_nothing() -> None:
    assert work_of("Reshape", {}, [t(3, 4), t(2, bits=64, w=True)], [t(12)]).kind == "view"
    assert work_of("Clip", {}, [t(3), None, t(w=True)], [t(3), None]).operations == 6


def test_half_the_bits_are_half_the_bytes() -> None:
    x, w, y = t(1, 10), t(10, 2, w=True), t(1, 2)
    single, half = (work_of("MatMul", {}, [a.at(bits) for a in (x, w)], [y.at(bits)]) for bits in (32, 16))
    assert (half.precision, half.bytes, half.products) == ("fp16", single.bytes / 2, single.products)
    assert t(3, bits=8).at(16).bits == 8 and Tensor((3,), 32, floating=False).at(16).bits == 32


def test_a_lookup_reads_the_rows_it_is_asked_for() -> None:
    table, ids = t(30000, 64, w=True), Tensor((1, 8), 64, floating=False)
    work = work_of("Gather", {"axis": 0}, [table, ids], [t(1, 8, 64)])
    assert (work.inputs, work.outputs, work.weights) == (4 * 8 * 64 + 8 * 8, 4 * 8 * 64, 0)


def test_channels_may_come_last() -> None:
    x, w = t(1, 7, 7, 64, bits=8), t(32, 64, 1, 1, bits=8, w=True)
    scales = [t(1, w=True)] * 2
    inputs = [x, *scales, w, *scales, *scales]
    work = work_of("QLinearConv", {"channels_last": 1}, inputs, [t(1, 7, 7, 32, bits=8)])
    assert (work.op, work.products, work.precision) == ("QLinearConv 1x1", 2 * 49 * 64 * 32, "int8")
