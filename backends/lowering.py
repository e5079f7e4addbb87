"""Rewrites that leave what a model computes alone and change how fast ONNX Runtime runs it on a processor.

None is taken on faith: the driver measures each on the model at hand and keeps those that are faster there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from graphprune.edit import new_constant


def part_norms_from_sums(model: ir.Model) -> ir.Model:
    """Keep a LayerNormalization apart from the Add before it, by a unit axis put in and taken out between them.

    ONNX Runtime fuses the two into SkipLayerNormalization, whose processor kernel (1.31) is not vectorised: on 128 x
    384 floats it takes seven times as long as LayerNormalization alone. The two reshapes move no data.
    """
    copy = model.clone()
    graph = copy.graph
    for node in [n for n in graph if n.op_type == "LayerNormalization" and not n.domain]:
        x = node.inputs[0]
        axis = node.attributes["axis"].value if "axis" in node.attributes else -1
        made_by = x.producer()
        if made_by is None or made_by.op_type != "Add" or axis >= 0 or len(node.outputs) > 1:
            continue
        zero = new_constant(graph, f"{node.name}.unit", np.zeros(1, np.int64))
        before = ir.node("Unsqueeze", [x, zero], name=f"{node.name}.parted")
        before.outputs[0].name, before.outputs[0].type = f"{x.name}.{node.name}", x.type
        graph.insert_before(node, before)
        node.replace_input_with(0, before.outputs[0])
        y = node.outputs[0]
        after = ir.node("Squeeze", [y, zero], name=f"{node.name}.joined")
        out = after.outputs[0]
        out.shape, out.type = y.shape, y.type
        for use in list(y.uses()):
            if use.node is not after:
                use.node.replace_input_with(use.idx, out)
        for i, value in enumerate(graph.outputs):
            if value is y:
                graph.outputs[i] = out
        out.name, y.name, y.shape = y.name, f"{y.name}.unit", None
        graph.insert_after(node, after)
    return copy


LOWERINGS: Mapping[str, Callable[[ir.Model], ir.Model]] = {"norms apart from sums": part_norms_from_sums}
