"""Which sites can have a say in what the runtime makes of a node: those of the node itself and of its neighbours.

Runtimes fuse, convert and move across an edge or two, never across a network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import onnx_ir as ir

from graphprune.sites import Site

HOPS = 4
_RINGS = (0, 2, HOPS)
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def sites_near(graph: ir.Graph, sites: Iterable[Site]) -> Mapping[str, tuple[tuple[str, ...], ...]]:
    """Names of nodes and of their outputs -> sites in rings around them: their own choices, then those within two and
    within four nodes and not beyond the next linear node; widths last, which seldom decide what kernels there are."""
    nodes = {node.name: node for node in graph}
    found: dict[str, dict[str, int]] = {}
    for site in sites:
        width = site.ordered and not site.replaces
        for node, distance in _around([nodes[name] for name in site.members if name in nodes]).items():
            ring = len(_RINGS) if width else next(i for i, d in enumerate(_RINGS) if distance <= d)
            for name in (node.name, *(y.name for y in node.outputs)):
                own = found.setdefault(name, {})  # a value may be called as a node, even as another one
                own[site.name] = min(ring, own.get(site.name, ring))
    return {
        name: tuple(tuple(site for site, ring in own.items() if ring == i) for i in range(len(_RINGS) + 1))
        for name, own in found.items()
    }


def _around(start: list[ir.Node]) -> dict[ir.Node, int]:
    distance = dict.fromkeys(start, 0)
    waiting = deque(start)
    while waiting:
        node = waiting.popleft()
        d = distance[node]
        if d == HOPS or (d and node.op_type in LINEAR):
            continue
        behind = [use.node for y in node.outputs for use in y.uses()]
        before = [v.producer() for v in node.inputs if v is not None and v.producer() is not None]
        for other in (*behind, *before):
            if other not in distance:
                distance[other] = d + 1
                waiting.append(other)
    return distance
