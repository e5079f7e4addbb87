"""Rings of sites around a node against shortest paths, and on a chain by hand."""

from __future__ import annotations

import networkx as nx
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.nearness import sites_near
from graphprune.sites import Site
from tests.graphs import model_of

laws = settings(derandomize=True, deadline=None, max_examples=60, database=None)


def named(text: str, weights: dict[str, tuple[int, ...]]) -> ir.Graph:
    """The graph of a model; a node is called as its output, in capitals."""
    graph = model_of(text, {"x": (2, 3, 8, 8)}, weights).graph
    for node in graph:
        node.name = node.outputs[0].name.upper()
    return graph


CHAIN = named(
    "c = Conv(x, w)\nr = Relu(c)\ns = Sigmoid(r)\nt = Tanh(s)\nu = Abs(t)\nv = Neg(u)\nd = Conv(v, k)\ne = Relu(d)\n"
    "result = Conv(e, k)", {"w": (4, 3, 1, 1), "k": (4, 4, 1, 1)})  # fmt: skip


def switch(name: str, *members: str) -> Site:
    return Site(name, (0, 1), (1.0, 0.0), members=members, ordered=False)


def rank(name: str, *members: str) -> Site:
    return Site(name, (4, 8), (1.0, 0.0), members=members, replaces=True)


def width(name: str, *members: str) -> Site:
    return Site(name, (4, 8), (1.0, 0.0), members=members)


def ring_of(near, name: str) -> dict[str, int]:
    """Site -> the ring it is in, around a node or value."""
    rings = near.get(name, ())
    found = [(site, i) for i, ring in enumerate(rings) for site in ring]
    assert len(dict(found)) == len(found), "a site is there twice"
    return dict(found)


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        (["R"], {"R": 0, "C": 1, "S": 1, "T": 1, "U": 2, "V": 2}),
        (["T"], {"T": 0, "S": 1, "R": 1, "U": 1, "V": 1, "C": 2, "D": 2}),
        (["D"], {"D": 0, "E": 1, "RESULT": 1, "V": 1, "U": 1, "T": 2, "S": 2}),
        (["E"], {"E": 0, "D": 1, "RESULT": 1}),
        (["C", "D"], {"C": 0, "D": 0, "R": 1, "S": 1, "T": 2, "U": 1, "V": 1, "E": 1, "RESULT": 1}),
        (["gone"], {}),
        ([], {}),
    ],
)
def test_rings_of_a_chain(members: list[str], wanted: dict[str, int]) -> None:
    """Own, within two nodes, within four, none beyond a convolution that is no member."""
    nodes = [node.name for node in CHAIN]
    for site in (switch("site", *members), rank("site", *members)):
        near = sites_near(CHAIN, [site])
        assert {n: ring_of(near, n).get("site") for n in nodes if "site" in ring_of(near, n)} == wanted
    near = sites_near(CHAIN, [width("site", *members)])
    assert {n for n in nodes if "site" in ring_of(near, n)} == set(wanted)
    assert all(ring_of(near, n)["site"] == 3 for n in wanted), "widths come last, whatever the distance"


def test_a_value_has_the_rings_of_the_node_that_makes_it_and_unknown_names_have_none() -> None:
    near = sites_near(CHAIN, [switch("a", "R"), width("b", "C", "D"), rank("c", "D"), switch("nowhere", "missing")])
    for node in CHAIN:
        assert near[node.name] == near[node.outputs[0].name]
        assert len(near[node.name]) == 4
    assert near["S"] == ((), ("a",), ("c",), ("b",))
    assert "missing" not in near and "x" not in near and "w" not in near
    assert not any("nowhere" in ring_of(near, name) for name in near)


def test_a_site_is_there_once_where_a_node_is_called_as_a_value() -> None:
    graph = model_of("c = Conv(x, w)\nr = Relu(c)\nresult = Tanh(r)", {"x": (2, 3, 8, 8)}, {"w": (4, 3, 1, 1)}).graph
    names = ["first", "r", "c"]  # the last node is called as the value of the first
    for node, name in zip(graph, names, strict=True):
        node.name = name
    near = sites_near(graph, [switch("a", "r"), width("b", "r")])
    assert near["r"] == (("a",), (), (), ("b",))
    assert near["c"] == ((), ("a",), (), ("b",))


@laws
@given(st.integers(0, 10_000))
def test_rings_are_those_of_shortest_paths_that_end_at_linear_nodes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, lines = ["x"], []
    for i in range(int(rng.integers(3, 16))):
        a, b = rng.choice(values[-4:], 2)
        op = rng.choice(["MatMul({a}, w)", "Relu({a})", "Tanh({a})", "Add({a}, {b})", "MatMul({a}, {b})"])
        lines.append(f"v{i} = {op.format(a=a, b=b)}")
        values.append(f"v{i}")
    graph = named("\n".join([*lines, f"result = Neg({values[-1]})"]), {"w": (8, 8)})
    nodes = {node.name: node for node in graph}
    sites = []
    for i in range(int(rng.integers(1, 5))):
        make = (switch, rank, width)[rng.integers(3)]
        sites.append(make(f"site {i}", *rng.choice([*nodes, "missing"], int(rng.integers(0, 4)), replace=False)))

    links = nx.Graph()
    links.add_nodes_from(nodes)
    links.add_edges_from((v.producer().name, n.name) for n in graph for v in n.inputs if v.producer() is not None)
    linear = {n.name for n in graph if n.op_type == "MatMul"}
    near = sites_near(graph, sites)
    for name in nodes:
        wanted = {}
        for site in sites:
            lengths = []
            for member in set(site.members) & set(nodes):
                passable = links.subgraph(set(nodes) - (linear - {member, name}))
                if nx.has_path(passable, member, name):
                    lengths.append(nx.shortest_path_length(passable, member, name))
            if lengths and min(lengths) <= 4:
                d = min(lengths)
                wanted[site.name] = 3 if site.ordered and not site.replaces else (0 if d == 0 else 1 if d <= 2 else 2)
        assert ring_of(near, name) == wanted
        if not wanted:
            assert name not in near
    for site in sites:  # what a node is concerned by is what it knows first
        for member in set(site.members) & set(nodes):
            assert ring_of(near, member)[site.name] == (0 if site.replaces or not site.ordered else 3)
