"""Layered drawing of a directed acyclic graph: where each box goes and how each arrow runs. Knows sizes, no text.

The steps of Sugiyama, Tagawa and Toda (1981): layers by longest paths, an order within each layer by barycentres, then
places. A box wants to be below the middle of those above it, and above the middle of those below; the nearest places
that keep order and distance are an isotonic regression, found by pooling neighbours.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Point = tuple[float, float]
_GAP, _LAYER_GAP = 26.0, 46.0
_LANE = 14.0
"""Width of an arrow that passes a layer without a box."""
_PORT = 24.0
"""Between arrows at one box."""
_SWEEPS = 12


@dataclass(frozen=True)
class Layout:
    """centres: of every box; routes: per arrow, the points it runs through, from box edge to box edge. In pixels."""

    width: float
    height: float
    centres: tuple[Point, ...]
    routes: tuple[tuple[Point, ...], ...]


def layout(sizes: Sequence[tuple[float, float]], arrows: Sequence[tuple[int, int]]) -> Layout:
    """Place boxes of these widths and heights so that arrows (from, to) point down.

    The boxes, one at least, must be in topological order: from < to. Raises ValueError where they are not.
    """
    if any(a >= b for a, b in arrows):
        raise ValueError("boxes are not in topological order")
    layer = _layers(len(sizes), arrows)
    widths, chains = [w for w, _ in sizes], []
    for a, b in arrows:  # a lane in every layer that an arrow passes
        chain = [a]
        for between in range(layer[a] + 1, layer[b]):
            chain.append(len(layer))
            layer.append(between)
            widths.append(_LANE)
        chains.append([*chain, b])
    links = [link for chain in chains for link in pairwise(chain)]
    above, below = _neighbours(links), _neighbours((b, a) for a, b in links)
    rows = _ordered(_rows(layer), above, below)
    x = _places(rows, widths, above, below)
    heights = [max(h for i, (_, h) in enumerate(sizes) if layer[i] == n) for n in range(len(rows))]
    tops = [sum(heights[:n]) + n * _LAYER_GAP for n in range(len(rows))]
    left = min(c - w / 2 for c, w in zip(x, widths, strict=True))
    x = [c - left for c in x]
    middle = [tops[n] + heights[n] / 2 for n in layer]

    starts = _ports(chains, x, widths)
    ends = _ports([chain[::-1] for chain in chains], x, widths)

    def route(n: int, chain: Sequence[int]) -> tuple[Point, ...]:
        a, b = chain[0], chain[-1]
        points = [(starts[n], middle[a] + sizes[a][1] / 2)]
        for i in chain[1:-1]:
            points += [(x[i], tops[layer[i]]), (x[i], tops[layer[i]] + heights[layer[i]])]
        return (*points, (ends[n], middle[b] - sizes[b][1] / 2))

    width = max(c + w / 2 for c, w in zip(x, widths, strict=True))
    centres = tuple((x[i], middle[i]) for i in range(len(sizes)))
    return Layout(width, tops[-1] + heights[-1], centres, tuple(route(n, chain) for n, chain in enumerate(chains)))


def _layers(n: int, arrows: Sequence[tuple[int, int]]) -> list[int]:
    """Longest path from a source; what has no more above it than below moves down to right above the first of these."""
    above, below = _neighbours(arrows), _neighbours((b, a) for a, b in arrows)
    layer = [0] * n
    for i in range(n):
        layer[i] = max((layer[j] + 1 for j in above[i]), default=0)
    for i in reversed(range(n)):
        if below[i] and len(above[i]) <= len(below[i]):
            layer[i] = min(layer[j] for j in below[i]) - 1
    used = sorted(set(layer))
    return [used.index(k) for k in layer]


def _neighbours(links: Iterable[tuple[int, int]]) -> Mapping[int, list[int]]:
    """Where links come from, by where they go."""
    found: dict[int, list[int]] = defaultdict(list)
    for a, b in links:
        found[b].append(a)
    return found


def _rows(layer: Sequence[int]) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(max(layer) + 1)]
    for i, n in enumerate(layer):
        rows[n].append(i)
    return rows


def _ordered(
    rows: list[list[int]], above: Mapping[int, list[int]], below: Mapping[int, list[int]]
) -> list[list[int]]:
    """The order with the fewest crossings that sweeps down and up came by."""
    best, fewest = rows, _crossings(rows, above)
    for sweep in range(_SWEEPS):
        if not fewest:
            break
        rows, down = [list(row) for row in rows], sweep % 2 == 0
        beside = above if down else below
        for row in rows if down else reversed(rows):
            place = {i: k for other in rows for k, i in enumerate(other)}
            row.sort(key=lambda i: _mean([place[j] for j in beside[i]], place[i]))
        crossings = _crossings(rows, above)
        if crossings < fewest:
            best, fewest = rows, crossings
    return best


def _crossings(rows: Sequence[Sequence[int]], above: Mapping[int, list[int]]) -> int:
    """How many pairs of links between neighbouring layers cross: inversions, counted by insertion."""
    total = 0
    for upper, lower in pairwise(rows):
        place = {i: k for k, i in enumerate(upper)}
        seen: list[int] = []
        for i in lower:
            ends = sorted(place[j] for j in above[i])
            total += sum(len(seen) - bisect_right(seen, k) for k in ends)
            for k in ends:
                insort(seen, k)
    return total


def _places(
    rows: Sequence[Sequence[int]], widths: Sequence[float], above: Mapping[int, list[int]],
    below: Mapping[int, list[int]],
) -> list[float]:  # fmt: skip
    """The centre of every box along its layer."""
    x = [0.0] * len(widths)
    for row in rows:
        for i, c in zip(row, _apart([0.0] * len(row), [widths[i] for i in row]), strict=True):
            x[i] = c
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        beside = above if down else below
        for row in rows if down else reversed(rows):
            wanted = [_mean([x[j] for j in beside[i]], x[i]) for i in row]
            for i, c in zip(row, _apart(wanted, [widths[i] for i in row]), strict=True):
                x[i] = c
    return x


def _apart(wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Centres nearest to the wanted ones (least squares) that keep the order and do not overlap."""
    offsets, at = [], 0.0
    for i, w in enumerate(widths):
        at += (widths[i - 1] + w) / 2 + _GAP if i else 0.0
        offsets.append(at)
    pools: list[tuple[float, int]] = []  # (mean, how many), means ascending
    for want, offset in zip(wanted, offsets, strict=True):
        mean, n = want - offset, 1
        while pools and pools[-1][0] > mean:
            other, m = pools.pop()
            mean, n = (mean * n + other * m) / (n + m), n + m
        pools.append((mean, n))
    starts = [mean for mean, n in pools for _ in range(n)]
    return [start + offset for start, offset in zip(starts, offsets, strict=True)]


def _ports(chains: Sequence[Sequence[int]], x: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Where along its first box each chain begins: side by side, in the order of where they go."""
    of_box: dict[int, list[int]] = defaultdict(list)
    for n in sorted(range(len(chains)), key=lambda n: x[chains[n][1]]):
        of_box[chains[n][0]].append(n)
    found = [0.0] * len(chains)
    for box, beginning in of_box.items():
        step = min(_PORT, 0.8 * widths[box] / len(beginning))
        for k, n in enumerate(beginning):
            found[n] = x[box] + (k - (len(beginning) - 1) / 2) * step
    return found


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default
