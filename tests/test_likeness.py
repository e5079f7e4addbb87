"""Roles of sites as seen from nodes: equal in blocks that are equal, different where something around them is."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graphprune.cost_presence import Surroundings
from graphprune.likeness import surroundings
from graphprune.nearness import sites_near
from graphprune.sites import Site
from tests.graphs import model_of

BLOCK = """
n{i} = LayerNormalization(x{i}, g, g)
q{i} = MatMul(n{i}, wq{i})
k{i} = MatMul(n{i}, wk{i})
t{i} = Transpose<perm=[0, 2, 1]>(k{i})
s{i} = MatMul(q{i}, t{i})
o{i} = MatMul(s{i}, wo{i})
x{j} = Add(x{i}, o{i})
"""
N = 9


def network(blocks: list[str]) -> ir.Graph:
    text = "x0 = Add(x, x)" + "".join(block.format(i=i, j=i + 1) for i, block in enumerate(blocks))
    weights = {"g": (8,)} | {f"w{w}{i}": (6, 8) if w == "o" else (8, 8) for i in range(len(blocks)) for w in "qko"}
    graph = model_of(f"{text}\nresult = Neg(x{len(blocks)})", {"x": (2, 6, 8)}, weights).graph
    for node in graph:
        node.name = f"node of {node.outputs[0].name}"
    return graph


def sites_of(n: int) -> list[Site]:
    found = [Site(f"precision {w}{i}", (0, 2, 4), (1.0, 0.5, 0.0), "precision", (f"node of {w}{i}",), ordered=False)
             for i in range(n) for w in "qko"]  # fmt: skip
    found += [Site(f"rank {w}{i}", (4, 8), (1.0, 0.0), "rank of 8 x 8", (f"node of {w}{i}",), replaces=True)
              for w in "qk" for i in range(n)]  # fmt: skip
    return found + [Site(f"width {i}", (4, 8), (1.0, 0.0), "width", (f"node of q{i}", f"node of k{i}"))
                    for i in range(n)]  # fmt: skip


def by_name(graph: ir.Graph, sites: list[Site]) -> dict[str, Surroundings]:
    return {around.names[0].removeprefix("node of "): around for around in surroundings(graph, sites)}


def test_nodes_of_equal_blocks_have_the_same_kin_and_roles() -> None:
    found = by_name(network([BLOCK] * N), sites_of(N))
    for i in range(4, N - 3):
        for w in "qkotns":
            one, other = found[f"{w}{i}"], found[f"{w}4"]
            assert one.kin == other.kin
            assert set(one.roles.values()) == set(other.roles.values())
            there = {role: site for site, role in other.roles.items()}
            for site, role in one.roles.items():  # the same site of the block that is as far away
                own, far = int(site[-1]) - i, int(there[role][-1]) - 4
                assert there[role][:-1] == site[:-1] and own == far
        assert len({found[f"{w}{i}"].kin for w in "qko"}) == 3, "what a node does tells it from its neighbours"
    assert found["q0"].kin == found["q1"].kin != found["o1"].kin


def test_a_node_is_called_by_itself_and_its_outputs_and_sees_what_is_near_and_nothing_else() -> None:
    graph, sites = network([BLOCK] * N), sites_of(N)
    near = sites_near(graph, sites)
    for around in surroundings(graph, sites):
        assert around.names[1:] == (around.names[0].removeprefix("node of "),)
        assert set(around.roles) == {site for ring in near[around.names[0]] for site in ring}
        assert len(set(around.roles.values())) == len(around.roles), "no two sites in one role"


@pytest.mark.parametrize(
    ("old", "new"),
    [("s2 = MatMul(q2, t2)", "z2 = Relu(q2)\ns2 = MatMul(z2, t2)"),
     ("t2 = Transpose<perm=[0, 2, 1]>(k2)", "t2 = Transpose<perm=[0, 2, 1]>(q2)")],
)  # fmt: skip
def test_another_operator_or_way_around_a_node_makes_another_kin(old: str, new: str) -> None:
    changed = BLOCK.format(i=2, j=3).replace(old, new)
    assert changed != BLOCK.format(i=2, j=3)
    found = by_name(network([BLOCK, BLOCK, changed, *[BLOCK] * (N - 3)]), sites_of(N))
    assert found["q1"].kin == found["q0"].kin != found["q2"].kin


def test_sites_with_other_levels_are_in_other_roles() -> None:
    """Unless they are sizes, where only whole or not is asked for."""
    sites = sites_of(N)
    fewer = [Site(s.name, s.levels[1:], s.prior[1:], s.about, s.members, s.ordered, s.labels, s.replaces)
             if s.name in ("precision q2", "rank k1") else s for s in sites]  # fmt: skip
    found = by_name(network([BLOCK] * N), fewer)
    assert found["q2"].kin != found["q1"].kin
    assert found["k1"].kin == found["k3"].kin and found["k1"].roles["rank k1"] == found["k3"].roles["rank k3"]
