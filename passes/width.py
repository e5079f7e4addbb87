"""The width pass: keep k of a group's channels, and solve the readers' weights again for what is gone.

Whole heads, dimensions within heads, FFN columns, conv channels, filter banks: whatever the dimension types found to be
one variable. Channels are ranked by second-order scores over all readers of the group; readers get the least-squares
weights for the channels kept, their biases the mean of what was removed. Where every head or filter bank may keep other
channels (`Group.outer`) each is ranked for itself, and all give up equally many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphprune.compensate import least_squares
from graphprune.context import Context, overwrite
from graphprune.dims import leaves
from graphprune.edit import shrink
from graphprune.groups import Group, columns, unit_columns
from graphprune.keeps import Keeps, Ragged, coordinates, kept, narrowed, positions
from graphprune.scores import Reader, Sweep, output_energy, rank
from graphprune.sites import Choice, Site
from graphprune.views import View, find_bias, put_bias, put_weight

_MOST_LEVELS = 24


def width_levels(size: int, kind: str) -> tuple[int, ...]:
    """Widths worth pricing, ascending, ending with `size`: every count of heads; else multiples of 8 (of 4 below 32),
    coarser where there would be more than 24. Vector units make counts in between as slow as the next multiple."""
    if kind.startswith("blocks"):
        step = -(-size // _MOST_LEVELS)
    else:
        grain = 8 if size >= 32 else 4
        step = max(grain, -(-size // _MOST_LEVELS // grain) * grain)
    return (*range(step, size, step), size)


class Width:
    """Structured pruning of every group that has a linear reader. A value of `Pass`; see `sites`."""

    name = "width"

    def __init__(self) -> None:
        self._sweeps: dict[str, Sweep] = {}
        self._solved: dict[tuple, tuple[np.ndarray, dict[str, np.ndarray]]] = {}

    def propose(self, context: Context) -> Sequence[Site]:
        sites = []
        for group in context.analysis.groups.values():
            sweep = self._sweep(context, group)
            levels = width_levels(group.size, group.kind)
            if sweep is not None and len(levels) > 1:
                times = len(sweep.order) // group.size
                prior = tuple(float(sweep.relative[k * times]) for k in levels)
                sites.append(Site(group.name, levels, prior, group.kind, group.nodes))
        return sites

    def _sweep(self, context: Context, group: Group) -> Sweep | None:
        if group.name not in self._sweeps:
            ragged = self._is_ragged(context, group)
            readers = [r for reader in group.readers for r in self._score_readers(context, group, reader.node, ragged)]
            if not readers:
                return self._pair_sweep(context, group)
            energy = output_energy(readers)
            scale = [1 / e if e > 0 else 0.0 for e in energy]
            if not any(scale):
                scale = [1.0] * len(readers)
            n_units = len(readers[0].columns)
            blocks = np.arange(n_units) // group.size
            self._sweeps[group.name] = rank(
                readers, score=context.score, compensation="least-squares" if context.compensate else "none",
                producers=[] if context.score == "second-order" else self._producers(context, group, ragged),
                weights=scale, floor=int(blocks.max()) + 1, blocks=blocks if ragged else None,
            )  # fmt: skip
            context.step()
        return self._sweeps[group.name]

    @staticmethod
    def _is_ragged(context: Context, group: Group) -> bool:
        """Whether each outer index should keep its own channels: it may, and they are not in order already."""
        return bool(group.outer) and group.name not in context.turned

    def _pair_sweep(self, context: Context, group: Group) -> Sweep | None:
        """Channels that two activations are contracted over, ranked by what each adds to the product."""
        share = context.contributions.get(group.name)
        if share is None:
            return None
        order = np.argsort(share, kind="stable")
        loss = np.concatenate([[0.0], np.cumsum(share[order])])[::-1]
        self._sweeps[group.name] = Sweep(order, loss, np.array([loss[0]]), np.ones(1))
        return self._sweeps[group.name]

    def _score_readers(self, context: Context, group: Group, node: str, ragged: bool) -> list[Reader]:
        view = context.views.get(node)
        if view is None:
            return []
        weight = context.model.graph.initializers[view.reader.w].const_value.numpy()
        banks = list(zip(view.matrices(weight), context.moments[view.key()], strict=True))

        def cols(bank: int) -> np.ndarray:
            if ragged:
                return unit_columns(context.analysis, view.reader, group, view.taps, bank, len(banks))
            return columns(context.analysis, view.reader, group, view.taps)

        return [Reader(matrix, moments, cols(i), node) for i, (matrix, moments) in enumerate(banks)]

    def _producers(self, context: Context, group: Group, ragged: bool) -> list[np.ndarray]:
        """Weights that make the group's channels, channel first (where ragged: outer indices, then channels)."""
        read = {(r.w, r.contracted) for r in group.readers}
        found = []
        for name, axis in group.weights:
            array = context.model.graph.initializers[name].const_value.numpy()
            if (name, axis) not in read and array.ndim > 1:
                t = context.analysis.types.axes[name][axis]
                if not ragged:
                    found.append(np.moveaxis(array, axis, 0)[positions(t, group.dim)].reshape(group.size, -1))
                elif all(o in set(leaves(t)) for o in group.outer):
                    unit = np.zeros(t.size, np.int64)
                    for d in (*group.outer, group.dim):
                        unit = unit * d.size + coordinates(t, d)
                    n_units = group.size * int(np.prod([d.size for d in group.outer]))
                    found.append(np.moveaxis(array, axis, 0)[np.argsort(unit, kind="stable")].reshape(n_units, -1))
        return found

    def choose(self, context: Context, levels: Mapping[str, int]) -> Mapping[str, Choice]:
        return {
            name: {"keep": self._keep(context.analysis.groups[name], k)}
            for name, k in levels.items()
            if name in self._sweeps and k < context.analysis.groups[name].size
        }

    def _keep(self, group: Group, k: int) -> list:
        """Indices [k], or where ragged [*outer, k], as plain data."""
        sweep = self._sweeps[group.name]
        times = len(sweep.order) // group.size
        units = sweep.keep(k * times)
        if times == 1:
            return units.tolist()
        return (units % group.size).reshape(*(d.size for d in group.outer), k).tolist()

    def apply(
        self, context: Context, model: ir.Model, choices: Mapping[str, Choice], solve: bool = True
    ) -> ir.Model:
        """Slice; then open a bias for every reader that will need one, so that prices see it too."""
        keeps = context.analysis.keeps({name: np.asarray(c["keep"]) for name, c in choices.items()})
        small = shrink(model, context.analysis.types, keeps)
        if not context.compensate:
            return small
        nodes = {node.name: node for node in small.graph}
        for view in self._readers(context, keeps, nodes):
            node = nodes[view.reader.node]
            weight = node.inputs[1]
            n = self._outputs(view, weight.const_value.shape)
            if len(weight.uses()) > 1:
                put_weight(node, 1, weight.const_value.numpy())
            if view.centred and find_bias(node, n).node is None:
                put_bias(node, np.zeros(n), weight.const_value.dtype)
        return overwrite(small, self._tensors(context, small, keeps)) if solve else small

    def _tensors(self, context: Context, model: ir.Model, keeps: Keeps) -> Mapping[str, np.ndarray]:
        """New weights and biases of the readers of a shrunk model."""
        nodes = {node.name: node for node in model.graph}
        tensors: dict[str, np.ndarray] = {}
        for view in self._readers(context, keeps, nodes):
            weight, shift = self._solution(context, view, keeps)
            axes = context.analysis.types.axes[view.reader.w]
            rows = kept(axes[view.reader.produced], keeps)
            node = nodes[view.reader.node]
            tensors[node.inputs[1].name] = np.take(weight, rows, axis=view.reader.produced)
            place = find_bias(node, len(rows))
            if shift is not None and place.node is not None:
                value = place.node.inputs[place.operand]  # may hold the mean of a dropped branch already
                tensors[value.name] = value.const_value.numpy() + shift[rows].reshape(tuple(value.const_value.shape))
        return tensors

    def _readers(self, context: Context, keeps: Mapping, nodes: Mapping[str, ir.Node]) -> list[View]:
        """Views whose inputs shrink, as far as their weights may differ from the dense ones. nodes: those that other
        passes have left."""
        found = []
        for view in context.views.values():
            value = context.model.graph.initializers[view.reader.w]
            t = context.analysis.types.axes[view.reader.w][view.reader.contracted]
            # A weight that something else reads too (a tied embedding) stays as it is.
            mine = all(u.node.name in context.views and u.idx == 1 for u in value.uses())
            if mine and view.reader.node in nodes and len(kept(t, keeps)) < t.size:
                found.append(view)
        return found

    @staticmethod
    def _outputs(view: View, shape: Sequence[int]) -> int:
        return int(shape[view.reader.produced])

    def _solution(self, context: Context, view: View, keeps: Mapping) -> tuple[np.ndarray, np.ndarray | None]:
        """Least-squares weight (all outputs, kept inputs) of one reader and what its bias changes by; kept for the next
        plan that asks."""
        inputs = self._inputs(context, view, keeps)
        key = (view.reader.node, inputs.tobytes())
        if key not in self._solved:
            weight = context.model.graph.initializers[view.reader.w].const_value.numpy()
            cols = (inputs[:, :, None] * view.taps + np.arange(view.taps)).reshape(view.banks, -1)
            solved = [
                least_squares(matrix, None, moments, own, centre=view.centred)
                for matrix, moments, own in zip(view.matrices(weight), context.moments[view.key()], cols, strict=True)
            ]
            new = view.weight([w for w, _ in solved], weight, inputs.shape[1])
            self._solved[key] = (new, np.concatenate([b for _, b in solved]) if view.centred else None)
        return self._solved[key]

    @staticmethod
    def _inputs(context: Context, view: View, keeps: Keeps) -> np.ndarray:
        """The inputs kept of each bank: int64 [banks, kept]."""
        axes = context.analysis.types.axes[view.reader.w]
        contracted, produced = axes[view.reader.contracted], axes[view.reader.produced]
        ragged = {o for d in leaves(contracted) if isinstance(k := keeps.get(d), Ragged) for o in k.outer}
        elsewhere = {o: coordinates(produced, o) for o in ragged - set(leaves(contracted))}
        rows = produced.size // view.banks
        return np.stack([
            kept(contracted, narrowed(keeps, {o: int(at[bank * rows]) for o, at in elsewhere.items()}))
            for bank in range(view.banks)
        ])  # fmt: skip
