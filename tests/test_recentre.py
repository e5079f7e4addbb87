"""Mean outputs of rounded layers: what they were in floating point, front to back, and nothing else is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import pytest

from graphprune import recentre as module
from graphprune.calibrate import Load
from graphprune.context import Context
from graphprune.edit import set_constant
from graphprune.eight_bit import MOST_BIAS
from graphprune.passes.quantise import Quantise
from graphprune.recentre import recentre
from graphprune.trace import Feed, exposed
from tests.test_quantise import CONVS, LOAD, PRODUCTS, Case, bytes_of, choices_of, error, number, structure


def depthwise(seed: int, n_blocks: int = 4, channels: int = 12) -> Case:
    """Blocks of a depthwise and a pointwise convolution, both clipped, and a classifier."""
    rng = np.random.default_rng(seed)

    def weight(*shape: int, scale: float) -> np.ndarray:
        return (scale * rng.normal(size=shape)).astype(np.float32)

    lines = ["h0 = Conv<pads=[1,1,1,1]>(x, w0, b0)", "a0 = Clip(h0, low, high)"]
    weights = {"w0": weight(channels, 3, 3, 3, scale=0.4), "b0": weight(channels, scale=1.0),
               "low": number(0), "high": number(6), "v": (channels, 5), "u": (5,)}  # fmt: skip
    for i in range(1, n_blocks):
        lines += [f"d{i} = Conv<group={channels}, pads=[1,1,1,1]>(a{i - 1}, w{i}, b{i})",
                  f"e{i} = Clip(d{i}, low, high)", f"p{i} = Conv(e{i}, v{i}, c{i})",
                  f"a{i} = Clip(p{i}, low, high)"]  # fmt: skip
        weights |= {f"w{i}": weight(channels, 1, 3, 3, scale=0.5), f"v{i}": weight(channels, channels, 1, 1, scale=0.4),
                    f"b{i}": weight(channels, scale=1.0), f"c{i}": weight(channels, scale=1.0)}  # fmt: skip
    lines += [f"g = GlobalAveragePool(a{n_blocks - 1})", "r = Flatten(g)", "result = Gemm(r, v, u)"]
    return Case("\n".join(lines), (4, 3, 8, 8), weights)


def deep(n: int) -> Case:
    """A chain of convolutions whose last gives the model's output, in 8 bits too."""
    lines = ["h0 = Conv<pads=[1,1,1,1]>(x, w0, b0)"]
    weights: dict[str, tuple[int, ...]] = {"w0": (6, 3, 3, 3), "b0": (6,)}
    for i in range(1, n):
        lines += [f"a{i} = Relu(h{i - 1})", f"h{i} = Conv<pads=[1,1,1,1]>(a{i}, w{i}, b{i})"]
        weights |= {f"w{i}": (6, 6, 3, 3), f"b{i}": (6,)}
    return Case("\n".join([*lines, f"s = Relu(h{n - 1})", "result = Conv(s, w, b)"]), (2, 3, 8, 8),
                {**weights, "w": (5, 6, 1, 1), "b": (5,)})  # fmt: skip


CASES = {
    "depthwise blocks": depthwise(0),
    "a deep chain": deep(6),
    "branches": Case(
        "h = Conv(x, w, b)\na = Relu(h)\nd = Conv<pads=[1,1,1,1]>(a, v, c)\ne = Conv(a, u, f)\ns = Add(d, e)\n"
        "t = Relu(s)\nresult = Conv(t, u, g)", (2, 3, 8, 8),
        {"w": (8, 3, 3, 3), "b": (8,), "v": (8, 8, 3, 3), "c": (8,), "u": (8, 8, 1, 1), "f": (8,), "g": (8,)}),
    "pooled and classified": CONVS["pooled and classified"],
    "weights next to nothing": CONVS["weights next to nothing, a bias"],
    "Gemm": PRODUCTS["Gemm"],
    "MatMul and Add of two axes": PRODUCTS["MatMul and Add of two axes"],
    "MatMul and Add, all sizes known": PRODUCTS["MatMul and Add, all sizes known"],
}  # fmt: skip


def mended(context: Context, rounded: ir.Model, feeds: Sequence[Feed] | None = None, load: Load = LOAD) -> ir.Model:
    copy = rounded.clone()
    recentre(context.model, copy, context.feeds if feeds is None else feeds, load)
    return copy


def rounded_of(case: Case, precision: str | Mapping[str, str] = "static") -> tuple[Context, ir.Model]:
    context = case.context(13)
    return context, Quantise().apply(context, context.model, choices_of(context, precision))


def biases(model: ir.Model) -> dict[str, tuple[str, np.ndarray]]:
    """8-bit node -> the name of its bias and the size of a step of it [out] (of floats next to nothing)."""
    found = {}
    for node in model.graph:
        if node.op_type == "MatMulIntegerToFloat":
            found[node.name] = (node.inputs[6].name, np.zeros(node.inputs[6].const_value.size))
        elif node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2 and not node.inputs[2].is_initializer():
            whole, step = node.inputs[2].producer().inputs[:2]
            found[node.name] = (whole.name, step.const_value.numpy())
    return found


def means(model: ir.Model, names: Sequence[str], feeds: Sequence[Feed], conv: bool) -> list[np.ndarray]:
    """Channel means of values over all rows of all feeds."""
    run = LOAD(exposed(model, names))
    rows = [[], *([] for _ in names[1:])]
    for feed in feeds:
        found = run(feed)
        for own, name in zip(rows, names, strict=True):
            y = found[name]
            own.append((np.moveaxis(y, 1, -1) if conv else y).reshape(-1, y.shape[1 if conv else -1]))
    return [np.concatenate(own).astype(np.float64).mean(axis=0) for own in rows]


def shifts(context: Context, model: ir.Model, feeds: Sequence[Feed]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """8-bit node with a bias -> how far its channel means are from the float model's, and how far rounding lets them
    be: half a step and the noise of float32."""
    nodes, dense = {n.name: n for n in model.graph}, {n.name: n for n in context.model.graph}
    given = {y.name for n in dense.values() for y in n.outputs}
    found = {}
    for name, (_, step) in biases(model).items():
        y, conv = nodes[name].outputs[0].name, nodes[name].op_type == "Conv"
        was = y if y in given else dense[name].outputs[0].name
        (have,), (want,) = means(model, [y], feeds, conv), means(context.model, [was], feeds, conv)
        found[name] = (np.abs(have - want), 0.5 * step + 1e-5 * (np.abs(want).max() + 1e-3))
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_layer_gives_the_means_that_it_did_to_within_a_rounding_step_of_its_bias(name: str) -> None:
    context, rounded = rounded_of(CASES[name])
    found = shifts(context, mended(context, rounded), context.feeds)
    linear = {n.name for n in context.model.graph if n.op_type in ("Conv", "Gemm", "MatMul")}
    assert found and found.keys() <= linear
    for node, (shift, most) in found.items():
        assert (shift <= most).all(), node
    before = shifts(context, rounded, context.feeds)
    assert any((shift > most).any() for shift, most in before.values()), "there was nothing to mend"


def test_the_last_layer_of_a_deep_chain_is_mended_though_its_output_is_the_models() -> None:
    context, rounded = rounded_of(deep(6))
    before, after = (shifts(context, model, context.feeds) for model in (rounded, mended(context, rounded)))
    *_, last = after
    assert len(after) == 7
    worse = {n: float((shift / most).max()) for n, (shift, most) in before.items()}
    assert worse[last] > 2 and (after[last][0] <= after[last][1]).all()


def test_means_are_over_rows_whatever_the_batches_of_the_feeds() -> None:
    context, rounded = rounded_of(deep(3))
    feeds = [*deep(3).feeds(3, seed=4, batch=1), *deep(3).feeds(1, seed=5, batch=9)]
    feeds[-1]["x"] *= 2  # the mean of the feeds' means is another one
    one = [{"x": np.concatenate([feed["x"] for feed in feeds])}]
    model = mended(context, rounded, feeds)
    assert all((shift <= most).all() for shift, most in shifts(context, model, feeds).values())
    assert close(model, mended(context, rounded, one), 1)


def close(a: ir.Model, b: ir.Model, n_steps: float) -> bool:
    """Whether all biases are the same to within some steps and float32's noise."""
    found = []
    for name, _ in biases(a).values():
        x, y = (m.graph.initializers[name].const_value.numpy().astype(np.float64) for m in (a, b))
        whole = a.graph.initializers[name].dtype == ir.DataType.INT32
        most = n_steps + 2e-6 * np.abs(x) if whole else 1e-4 * (n_steps > 0) * (np.abs(x).max() + 1)
        found.append((np.abs(x - y) <= most).all())
    return bool(found) and all(found)


@pytest.mark.parametrize("name", CASES)
def test_a_planted_shift_is_taken_out(name: str) -> None:
    context, rounded = rounded_of(CASES[name])
    wanted = mended(context, rounded)
    planted = wanted.clone()
    rng = np.random.default_rng(3)
    for bias, _ in biases(planted).values():
        value = planted.graph.initializers[bias]
        now = value.const_value.numpy()
        by = np.rint(0.1 * now + 20) if now.dtype.kind == "i" else rng.normal(size=now.shape)
        set_constant(value, (now + by).astype(now.dtype))
    assert not close(planted, wanted, 2)
    assert close(mended(context, planted), wanted, 2)


@pytest.mark.parametrize("name", CASES)
def test_only_biases_change(name: str) -> None:
    context, rounded = rounded_of(CASES[name])
    dense = bytes_of(context.model)
    model = mended(context, rounded)
    assert structure(model) == structure(rounded) and bytes_of(context.model) == dense
    own = {bias for bias, _ in biases(rounded).values()}
    changed = {n for n, v in model.graph.initializers.items()
               if v.const_value.tobytes() != rounded.graph.initializers[n].const_value.tobytes()}  # fmt: skip
    assert changed and changed <= own


@pytest.mark.parametrize("precision", ["dynamic", "int8 weights", "int4 weights"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_layers_whose_ranges_are_found_while_running_and_weights_alone_are_left(name: str, precision: str) -> None:
    context, rounded = rounded_of(PRODUCTS[name], precision)
    assert bytes_of(mended(context, rounded)) == bytes_of(rounded)


def test_only_layers_that_have_a_constant_bias_are_mended() -> None:
    text = "h = Conv(x, w)\na = Relu(h)\nd = Conv(a, v, c)\ne = Relu(d)\nf = Conv(e, u, y)\nresult = Conv(f, t, g)"
    case = Case(text, (2, 3, 8, 8), {"w": (8, 3, 1, 1), "v": (8, 8, 1, 1), "c": (8,), "u": (8, 8, 1, 1), "y": (8,),
                                     "t": (5, 8, 1, 1), "g": (5,)})  # fmt: skip
    context = case.context(13)
    bare, second, third, last = (n.name for n in context.model.graph if n.op_type == "Conv")
    model = Quantise().apply(context, context.model, choices_of(context, dict.fromkeys((bare, second, last), "static")))
    after = mended(context, model)
    assert biases(model).keys() == {second, last}
    changed = {n for n, v in after.graph.initializers.items()
               if v.const_value.tobytes() != model.graph.initializers[n].const_value.tobytes()}  # fmt: skip
    assert changed == {f"{second}.bias.q", f"{last}.bias.q"}
    assert third not in biases(after)
    computed = model.clone()
    node = next(n for n in computed.graph if n.name == second)
    same = ir.node("Identity", [node.inputs[2]], name="same")
    same.outputs[0].name, same.outputs[0].type = "same.y", ir.TensorType(ir.DataType.FLOAT)
    computed.graph.insert_before(node, same)
    node.replace_input_with(2, same.outputs[0])
    changed = {n for n, v in mended(context, computed).graph.initializers.items()
               if v.const_value.tobytes() != computed.graph.initializers[n].const_value.tobytes()}  # fmt: skip
    assert changed == {f"{last}.bias.q"}


@pytest.mark.parametrize("shared", ["what is dequantised", "the numbers themselves"])
def test_a_bias_that_somebody_else_takes_too_is_left_as_it_is(shared: str) -> None:
    context, rounded = rounded_of(deep(4))
    a, b = (n for n in rounded.graph if n.name in list(biases(rounded))[1:3])
    back, other = a.inputs[2].producer(), b.inputs[2].producer()
    if shared == "what is dequantised":
        b.replace_input_with(2, back.outputs[0])
    else:
        other.replace_input_with(0, back.inputs[0])
    model = mended(context, rounded)
    now, was = (m.graph.initializers[back.inputs[0].name].const_value.numpy() for m in (model, rounded))
    np.testing.assert_array_equal(now, was)
    assert not close(model, rounded, 0), "the others are mended"


def test_a_bias_of_a_whole_product_that_is_added_elsewhere_too_is_left_as_it_is() -> None:
    context, rounded = rounded_of(PRODUCTS["MatMul and Add, all sizes known"])
    assert not close(mended(context, rounded), rounded, 0)
    first, last = (n for n in rounded.graph if n.op_type == "MatMulIntegerToFloat")
    bias, y = last.inputs[6], last.outputs[0]
    add = ir.node("Add", [first.outputs[0], first.inputs[6]], name="again")
    add.outputs[0].name, add.outputs[0].type = "again.y", y.type
    rounded.graph.insert_after(first, add)
    model = mended(context, rounded)
    changed = {n for n, v in model.graph.initializers.items()
               if v.const_value.tobytes() != rounded.graph.initializers[n].const_value.tobytes()}  # fmt: skip
    assert changed == {bias.name}


def test_outputs_on_feeds_that_were_not_seen_get_closer() -> None:
    gains = []
    for seed in range(8):
        case = depthwise(seed, 5)
        context = case.context(13)
        quantise = Quantise()
        choices = choices_of(context, "static")
        plain = quantise.apply(context, context.model, choices)
        best = quantise.finish(context, context.model, choices)
        dense, fresh = LOAD(context.model), case.feeds(6, seed=99)
        far, near = (np.mean([error(LOAD(m)(x), dense(x)) for x in fresh]) for m in (plain, best))
        gains.append(np.log(near / far))
    assert np.mean(gains) < np.log(0.75) and max(gains) < np.log(1.25)


def test_numbers_that_are_not_finite_in_the_model_itself_shift_nothing() -> None:
    context, rounded = rounded_of(deep(3))
    feed = {"x": context.feeds[0]["x"].copy()}
    feed["x"][0, 0, 0, 0] = np.nan
    assert bytes_of(mended(context, rounded, [feed])) == bytes_of(rounded)


def test_a_bias_stays_below_what_a_sum_of_32_bits_has_room_for() -> None:
    context, rounded = rounded_of(deep(2))
    first = next(n for n in rounded.graph if n.name in biases(rounded))
    step = first.inputs[2].producer().inputs[1]
    set_constant(step, np.full(step.shape.numpy(), 1e-12, np.float32))
    now = mended(context, rounded).graph.initializers[f"{first.name}.bias.q"].const_value.numpy()
    assert np.abs(now.astype(np.int64)).max() == MOST_BIAS


class Counted:
    """A loader that notes, for every run, the bytes that were exposed and how many values; and of every model how many
    nodes were run."""

    def __init__(self) -> None:
        self.n_bytes: list[int] = []
        self.n_values: list[int] = []
        self.n_nodes: list[int] = []

    def __call__(self, model: ir.Model):
        run = LOAD(model)
        self.n_nodes.append(sum(n.op_type == "Conv" for n in model.graph))

        def counted(feed: Feed) -> Mapping[str, np.ndarray]:
            found = run(feed)
            self.n_bytes.append(sum(y.nbytes for y in found.values()))
            self.n_values.append(len(found))
            return found

        return counted


@pytest.mark.parametrize("known", ["sizes and the name of the batch", "sizes but for the batch", "nothing"])
def test_no_more_is_exposed_at_once_than_there_is_room_for(known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    context, rounded = rounded_of(deep(5))
    feeds = [*context.feeds[:2], *deep(5).feeds(1, seed=8, batch=7)]
    wanted = mended(context, rounded, feeds)
    for node in context.model.graph if known != "sizes and the name of the batch" else ():
        for y in node.outputs:
            y.shape = None if known == "nothing" else ir.Shape([None, *list(y.shape)[1:]])
    largest = 4 * 7 * 6 * 8 * 8
    room = {"sizes and the name of the batch": 3 * largest}.get(known, 9 * largest)
    monkeypatch.setattr(module, "_VALUES_BYTES", room)
    counted = Counted()
    model = mended(context, rounded, feeds, counted)
    assert max(counted.n_bytes) <= room and max(counted.n_values) == 3
    assert bytes_of(model) == bytes_of(wanted)
    monkeypatch.setattr(module, "_VALUES_BYTES", 1)
    counted = Counted()
    assert bytes_of(mended(context, rounded, feeds, counted)) == bytes_of(wanted)
    assert set(counted.n_values) == {1}


def test_for_a_layer_only_what_is_before_it_is_run() -> None:
    context, rounded = rounded_of(deep(5))
    counted = Counted()
    mended(context, rounded, load=counted)
    assert counted.n_nodes == [6, 1, 2, 3, 4, 5, 6], "all of the float model in one go, then front to back"


def test_nothing_is_run_where_nothing_is_to_be_mended() -> None:
    context, rounded = rounded_of(PRODUCTS["MatMul"])
    counted = Counted()
    mended(context, rounded, feeds=[], load=counted)
    assert not counted.n_nodes
