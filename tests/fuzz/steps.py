"""What networks are made of: steps from a value [n, *s] to another one, for values of any rank from 1 to 4 behind the
batch. They are total: where a step does not fit a value, the value is made to fit or goes on as it is."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from tests import random_graphs as networks
from tests.fuzz.writer import Shape, Value, Writer

LARGEST = 200
"""Elements of a value, per sample of the batch."""
IMAGES: tuple[Shape, ...] = ((4, 2, 2), (6, 3, 2), (8, 2, 2), (12, 1, 2))
TOKENS: tuple[Shape, ...] = ((3, 6), (4, 8), (2, 12))
Step = Callable[[Writer, str, Shape], Value]


def at(s: Shape, axis: int, *new: int) -> Shape:
    """The shape with one axis replaced by others."""
    return (*s[:axis], *new, *s[axis + 1 :])


def an_axis(b: Writer, s: Shape) -> int:
    return b.rng.choice(range(len(s)))


def linear(b: Writer, x: str, s: Shape) -> Value:
    n_out = b.rng.choice(networks.CHANNELS)
    return b.linear(x, s[-1], n_out), (*s[:-1], n_out)


def activation(b: Writer, x: str, s: Shape) -> Value:
    return b.op(f"{b.rng.choice(('Relu', 'Tanh', 'Sigmoid', 'Abs'))}({x})"), s


def join(b: Writer, x: str, s: Shape) -> Value:
    """With an earlier value, element by element."""
    return b.op(f"{b.rng.choice(('Add', 'Mul', 'Max', 'Sub'))}({x}, {b.another(s)})"), s


def broadcast(b: Writer, x: str, s: Shape) -> Value:
    """With an earlier value that has one index on some axis."""
    axis = an_axis(b, s)
    return b.op(f"{b.rng.choice(('Add', 'Mul'))}({x}, {b.another(at(s, axis, 1))})"), s


def concatenate(b: Writer, x: str, s: Shape) -> Value:
    axis = an_axis(b, s)
    n = b.rng.choice((2, 3, s[axis]))
    return b.op(f"Concat<axis={axis + 1}>({x}, {b.another(at(s, axis, n))})"), at(s, axis, s[axis] + n)


def repeat(b: Writer, x: str, s: Shape) -> Value:
    """Side by side with itself."""
    axis = an_axis(b, s)
    return b.op(f"Concat<axis={axis + 1}>({x}, {x})"), at(s, axis, 2 * s[axis])


def transpose(b: Writer, x: str, s: Shape) -> Value:
    i, j = an_axis(b, s), an_axis(b, s)
    perm = list(range(len(s)))
    perm[i], perm[j] = perm[j], perm[i]
    return b.op(f"Transpose<perm={[0, *(p + 1 for p in perm)]}>({x})"), tuple(s[p] for p in perm)


def merge(b: Writer, x: str, s: Shape) -> Value:
    if len(s) == 1:
        return x, s
    i = b.rng.choice(range(len(s) - 1))
    merged = (*s[:i], s[i] * s[i + 1], *s[i + 2 :])
    return b.reshape(x, *merged), merged


def split_axis(b: Writer, x: str, s: Shape) -> Value:
    axis, factor = an_axis(b, s), b.rng.choice((2, 3))
    if s[axis] % factor or len(s) == 4:
        return x, s
    parts = b.rng.choice(((factor, s[axis] // factor), (s[axis] // factor, factor)))
    return b.reshape(x, *at(s, axis, *parts)), at(s, axis, *parts)


def regroup(b: Writer, x: str, s: Shape) -> Value:
    """To tokens and back again, merged and split at other places than before."""
    total = prod(s)
    options = [(a, total // a) for a in (2, 3, 4, 6) if total % a == 0] or [(total,)]
    wanted = b.rng.choice(options)
    return b.reshape(x, *wanted), wanted


def segments(b: Writer, x: str, s: Shape) -> Value:
    """Cut in two at some place and put together the other way round, the first part through an activation."""
    axis = an_axis(b, s)
    if s[axis] < 2:
        return x, s
    n = b.rng.choice(range(1, s[axis]))
    first, rest = b.several(2, f"Split<axis={axis + 1}>({x}, {b.ints(n, s[axis] - n)})")
    return b.op(f"Concat<axis={axis + 1}>({rest}, {b.op(f'Tanh({first})')})"), s


def sliced(b: Writer, x: str, start: int, stop: int, axis: int, step: int = 1) -> str:
    return b.op(f"Slice({x}, {b.ints(start)}, {b.ints(stop)}, {b.ints(axis + 1)}, {b.ints(step)})")


def roll(b: Writer, x: str, s: Shape) -> Value:
    axis = an_axis(b, s)
    if s[axis] < 2:
        return x, s
    n = b.rng.choice(range(1, s[axis]))
    tail, head = sliced(b, x, -n, 2**31, axis), sliced(b, x, 0, -n, axis)
    return b.op(f"Concat<axis={axis + 1}>({tail}, {head})"), s


def strided(b: Writer, x: str, s: Shape) -> Value:
    axis, step = an_axis(b, s), b.rng.choice((2, 3))
    start = b.rng.choice(range(step))
    if s[axis] < 2 * step:
        return x, s
    return sliced(b, x, start, s[axis], axis, step), at(s, axis, len(range(start, s[axis], step)))


def window(b: Writer, x: str, s: Shape) -> Value:
    axis = an_axis(b, s)
    if s[axis] < 3:
        return x, s
    start = b.rng.choice((0, 1))
    stop = b.rng.choice((s[axis], s[axis] - 1))
    return sliced(b, x, start, stop, axis), at(s, axis, stop - start)


def gather(b: Writer, x: str, s: Shape) -> Value:
    """Some indices of an axis, in any order, some of them twice."""
    axis = an_axis(b, s)
    indices = [b.rng.choice(range(s[axis])) for _ in range(b.rng.choice((2, 3, 4)))]
    return b.op(f"Gather<axis={axis + 1}>({x}, {b.ints(*indices)})"), at(s, axis, len(indices))


def pad(b: Writer, x: str, s: Shape) -> Value:
    axis = an_axis(b, s)
    before, after = b.rng.choice(((0, 1), (1, 0), (1, 2)))
    widths = [[n if i == axis + 1 else 0 for i in range(len(s) + 1)] for n in (before, after)]
    return b.op(f"Pad({x}, {b.ints(*widths[0], *widths[1])})"), at(s, axis, s[axis] + before + after)


def statistic(b: Writer, x: str, s: Shape) -> Value:
    """Gated by a reduction over one axis."""
    op, axis = b.rng.choice(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2")), an_axis(b, s)
    return b.op(f"Mul({x}, {b.op(f'Sigmoid({b.reduce(op, x, axis + 1)})')})"), s


def reduced(b: Writer, x: str, s: Shape) -> Value:
    op, axis = b.rng.choice(("ReduceSum", "ReduceMean", "ReduceMin")), an_axis(b, s)
    if len(s) == 1:
        return x, s
    return b.reduce(op, x, axis + 1, 0), at(s, axis)


def softmax(b: Writer, x: str, s: Shape) -> Value:
    return b.op(f"Softmax<axis={an_axis(b, s) + 1}>({x})"), s


def expand(b: Writer, x: str, s: Shape) -> Value:
    """Each index of an axis twice in a row, or the whole axis twice: keys shared by queries."""
    axis, behind = an_axis(b, s), b.rng.choice((1, 0))
    y = b.op(f"Unsqueeze({x}, {b.ints(axis + 1 + behind)})")
    times = [1] * (len(s) + 2)
    times[axis + 1 + behind] = 2
    return b.reshape(b.op(f"Expand({y}, {b.ints(*times)})"), *at(s, axis, 2 * s[axis])), at(s, axis, 2 * s[axis])


def products(b: Writer, x: str, s: Shape) -> Value:
    """Scores against an earlier value, and the sum of it that they weigh: attention without weights."""
    if len(s) < 2:
        return x, s
    other = b.another((*s[:-2], 3, s[-1]))
    axes = list(range(len(s) + 1))
    axes[-2:] = axes[-1], axes[-2]
    scores = b.op(f"MatMul({x}, {b.op(f'Transpose<perm={axes}>({other})')})")
    return b.op(f"MatMul({b.rng.choice((scores, b.op(f'Tanh({scores})')))}, {other})"), s


def tied(b: Writer, x: str, s: Shape) -> Value:
    """An auto-encoder with one weight."""
    w = b.weight(s[-1], b.rng.choice(networks.CHANNELS))
    hidden = b.op(f"Tanh({b.op(f'MatMul({x}, {w})')})")
    return b.op(f"MatMul({hidden}, {b.op(f'Transpose<perm=[1,0]>({w})')})"), s


def twice(b: Writer, x: str, s: Shape) -> Value:
    """The same square weight two times."""
    w = b.weight(s[-1], s[-1])
    y = b.op(f"MatMul({x}, {w})")
    return b.op(f"MatMul({b.op(f'Relu({y})')}, {w})"), s


def standardised(b: Writer, x: str, s: Shape) -> Value:
    """A weight that is computed: less its own mean."""
    n_out, axis = b.rng.choice(networks.CHANNELS), b.rng.choice((0, 1))
    w = b.weight(s[-1], n_out)
    w = b.op(f"Sub({w}, {b.reduce('ReduceMean', w, axis)})")
    return b.op(f"MatMul({x}, {w})"), (*s[:-1], n_out)


def rotary(b: Writer, x: str, s: Shape) -> Value:
    """Halves of the last axis turned by angles of one table, which all such steps of that size share."""
    half = s[-1] // 2
    if s[-1] % 2:
        return x, s
    angles = b.shared.setdefault((half,), b.weight(half))
    angles = b.op(f"Concat<axis=0>({angles}, {angles})")
    left, right = b.several(2, f"Split<axis={len(s)}>({x}, {b.ints(half, half)})")
    turned = b.op(f"Concat<axis={len(s)}>({b.op(f'Neg({right})')}, {left})")
    turned = b.op(f"Mul({turned}, {b.op(f'Sin({angles})')})")
    plain = b.op(f"Mul({x}, {b.op(f'Cos({angles})')})")
    return b.op(f"Add({plain}, {turned})"), s


def recurrent(b: Writer, x: str, s: Shape) -> Value:
    """LSTM, GRU or RNN over the first axis of tokens."""
    tokens, width = s
    hidden, (op, gates) = b.rng.choice((3, 4)), b.rng.choice((("RNN", 1), ("GRU", 3), ("LSTM", 4)))
    ways = b.rng.choice((1, 2))
    weights = [b.weight(ways, gates * hidden, n) for n in (width, hidden)] + [b.weight(ways, 2 * gates * hidden)]
    way = ("forward", "bidirectional")[ways - 1]
    x = b.op(f"Transpose<perm=[1,0,2]>({x})")
    y = b.op(f'{op}<hidden_size={hidden}, direction="{way}">({x}, {", ".join(weights)})')
    y = b.op(f"Transpose<perm=[2,0,1,3]>({y})")  # from [time, direction, batch, hidden]
    return b.reshape(y, tokens, ways * hidden), (tokens, ways * hidden)


def quantised(b: Writer, x: str, s: Shape) -> Value:
    """Through 8 bits and back, one scale each index of an axis, or one for all."""
    axis = an_axis(b, s)
    scale = b.constant(b.weights[b.positive(*b.rng.choice(((s[axis],), ())))] / np.float32(32))
    y = b.op(f"QuantizeLinear<axis={axis + 1}>({x}, {scale})")
    return b.op(f"DequantizeLinear<axis={axis + 1}>({y}, {scale})"), s


def heads(b: Writer, x: str, s: Shape) -> Value:
    """Split into heads, each with its own matrix, and merged again."""
    tokens, width = s
    n, n_out = b.rng.choice((2, 3)), b.rng.choice((2, 3))
    if width % n:
        return x, s
    y = b.op(f"Transpose<perm=[0,2,1,3]>({b.reshape(x, tokens, n, width // n)})")
    y = b.op(f"MatMul({y}, {b.weight(n, width // n, n_out)})")
    return b.reshape(b.op(f"Transpose<perm=[0,2,1,3]>({y})"), tokens, n * n_out), (tokens, n * n_out)


def deconvolve(b: Writer, x: str, s: Shape) -> Value:
    groups, n = b.rng.choice((1, 2)), b.rng.choice((2, 3))
    y = b.op(f"ConvTranspose<group={groups}, strides=[2,2]>({x}, {b.weight(s[0], n, 2, 2)}, {b.weight(groups * n)})")
    return b.op(f"MaxPool<kernel_shape=[2,2], strides=[2,2]>({y})"), (groups * n, *s[1:])


def anywhere(step: Step) -> Step:
    return step


def on_images(step: Step) -> Step:
    """[channels, h, w] with an even number of channels."""

    def act(b: Writer, x: str, s: Shape) -> Value:
        if len(s) != 3 or s[0] % 2:
            wanted = b.rng.choice(IMAGES)
            x, s = b.fit(x, s, wanted), wanted
        return step(b, x, s)

    return act


def on_tokens(step: Step) -> Step:
    """[tokens, features]."""

    def act(b: Writer, x: str, s: Shape) -> Value:
        if len(s) != 2:
            wanted = b.rng.choice(TOKENS)
            x, s = b.fit(x, s, wanted), wanted
        return step(b, x, s)

    return act


_KINDS = (
    (anywhere, (linear, activation, join, transpose, merge, split_axis, concatenate, broadcast, repeat, regroup,
                segments, roll, strided, window, gather, pad, statistic, reduced, softmax, expand, products, tied,
                twice, standardised, rotary, quantised)),
    (on_images, (networks.convolve, networks.grouped, networks.depthwise, deconvolve, networks.shuffle,
                 networks.split_and_gate, networks.squeeze_excite, networks.batch_norm, networks.group_norm,
                 networks.up_and_down)),
    (on_tokens, (networks.mlp, networks.layer_norm, networks.rms_norm, networks.attention, networks.mix_tokens,
                 networks.contract, recurrent, heads)),
)  # fmt: skip
STEPS: dict[str, Step] = {step.__name__: where(step) for where, steps in _KINDS for step in steps}
"""By name, the simplest first: that is where shrinking goes."""
