"""Random weights for graphs that came without their own, and the statistics that go with them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from models.task import onnx_runner


def random_weights(model: ir.Model, seed: int = 0) -> ir.Model:
    """The same network with random weights in place of constant ones and of fills computed by ConstantOfShape: equal
    numbers (gammas of one, shifts of zero) would hide what pruning changes. Changes the model it is given.

    Vectors become 0.5 to 1.5, matrices and kernels normal with variance 1 / fan-in.
    """
    rng = np.random.default_rng(seed)

    def fill(shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        return rng.standard_normal(shape, np.float32) * np.float32(max(np.prod(shape[1:]), 1) ** -0.5)

    graph = model.graph
    for node in list(graph):
        constant = node.op_type == "ConstantOfShape" and node.inputs[0].is_initializer()
        if constant and (shape := tuple(int(n) for n in node.inputs[0].const_value.numpy())):
            y = node.outputs[0]
            value = ir.Value(name=f"{y.name}.random", const_value=ir.tensor(fill(shape), name=f"{y.name}.random"),
                             shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))  # fmt: skip
            graph.register_initializer(value)
            y.replace_all_uses_with(value)
            graph.remove(node, safe=True)
    for value in graph.initializers.values():
        array = value.const_value.numpy()
        if value.dtype == ir.DataType.FLOAT and array.size > 1 and array.ndim and np.ptp(array) == 0:
            value.const_value = ir.tensor(fill(array.shape), name=value.name)
    return model


def settle(model: ir.Model, seed: int = 0) -> ir.Model:
    """The same network with the BatchNorm statistics that its own signals have for one noise image, as training would
    leave them: without, signals grow from layer to layer until a softmax at the end is all one class. Changes the
    model it is given; its inputs must have fixed sizes.
    """
    live = model.clone()  # normalises by the statistics of what passes through
    norms = [node for node in live.graph if node.op_type == "BatchNormalization"]
    if not norms:
        return model
    live.graph.outputs.clear()
    for node in norms:
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        y = ir.node("InstanceNormalization", node.inputs[:3], {"epsilon": epsilon})
        live.graph.insert_before(node, y)
        node.outputs[0].replace_all_uses_with(y.outputs[0])
        live.graph.remove(node, safe=True)
        if y.inputs[0] not in live.graph.outputs:
            live.graph.outputs.append(y.inputs[0])
    RemoveUnusedNodesPass()(live)
    rng, inputs = np.random.default_rng(seed), [v for v in live.graph.inputs if not v.is_initializer()]
    feed = {v.name: rng.standard_normal(tuple(v.shape), np.float32) for v in inputs}
    signals = onnx_runner(ir.to_proto(live).SerializeToString())(feed)
    for node in model.graph:
        if node.op_type == "BatchNormalization":
            x = signals[node.inputs[0].name].astype(np.float64)
            axes = (0, *range(2, x.ndim))
            for value, statistic in ((node.inputs[3], x.mean(axes)), (node.inputs[4], x.var(axes))):
                value.const_value = ir.tensor(statistic.astype(np.float32), name=value.name)
    return model
