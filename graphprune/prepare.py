"""From a model and its data to something that can be compiled: loaded, canonical, typed, with feeds and a backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.backends.base import Backend
from graphprune.canonicalise import canonicalise, check_finite
from graphprune.errors import GraphpruneError, ModelError
from graphprune.feeds import Feed, InputSpec, common_shapes, load_calibration, parse_shapes, split, synthetic
from graphprune.groups import Analysis, analyse
from graphprune.load import Source, load
from graphprune.oracles import compare
from graphprune.selections import solve
from graphprune.trace import bind, trace

CALIBRATION_LIMIT = 512
_SYNTHETIC = 64


@dataclass(frozen=True)
class Data:
    """What the model is fed. `timing` is one feed of the shapes at which speed is asked for."""

    calibration: Sequence[Feed]
    holdout: Sequence[Feed]
    timing: Feed
    synthetic: bool
    source: str


@dataclass(frozen=True)
class Prepared:
    """A model ready for compiling. `traced_at` are the input shapes under which its types were found."""

    source: Source
    specs: Sequence[InputSpec]
    analysis: Analysis
    traced_at: Mapping[str, tuple[int, ...]]

    @property
    def model(self) -> ir.Model:
        return self.analysis.model


def specs_of(model: ir.Model) -> list[InputSpec]:
    """The inputs a caller must feed."""
    specs = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.shape is None or value.dtype is None:
            raise ModelError(
                f"input {value.name!r} has no declared type and rank", fix="export the model with typed inputs"
            )
        shape = tuple(n if isinstance(n, int) and n > 0 else (getattr(n, "value", None) or None) for n in value.shape)
        specs.append(InputSpec(value.name, np.dtype(value.dtype.numpy()), shape))
    return specs


def runner(backend: Backend):
    """Run a model once, optimisation off."""
    return lambda model, feed: backend.load(model, optimise=False).run(dict(feed))


def run_all(backend: Backend):
    """Run a model on several feeds, optimisation off."""

    def run(model: ir.Model, feeds: Sequence[Feed]) -> list[Mapping[str, np.ndarray]]:
        executable = backend.load(model, optimise=False)
        return [executable.run(dict(feed)) for feed in feeds]

    return run


def loader(backend: Backend):
    """Load a model for many runs; feeds may hold more arrays than it takes."""

    def make(model: ir.Model):
        executable = backend.load(model)
        return lambda feed: executable.run({k: v for k, v in feed.items() if k in executable.inputs})

    return make


def prepare(
    model: Any,
    backend: Backend,
    shapes: Mapping[str, Sequence[int]] | None = None,
    traced_at: Mapping[str, Sequence[int]] | None = None,
) -> Prepared:
    """Load, canonicalise and type a model, and check that it still computes the same.

    shapes: of dynamic inputs, as far as known. traced_at: bind the dynamic axes exactly so (replaying a plan).
    Raises UsageError or ModelError.
    """
    source = load(model)
    specs = specs_of(source.model)
    check_finite(source.model)
    canonical = canonicalise(source.model)
    candidates = [dict(traced_at)] if traced_at else _bindings(specs, shapes or {})
    high = lookup_sizes(canonical)
    run, failure = runner(backend), None
    for bound in candidates:
        (feed,) = synthetic(specs, {k: tuple(v) for k, v in bound.items()}, 1, seed=0, high=high)
        try:
            want = run(source.model, feed)
        except GraphpruneError as e:
            failure = e
            continue
        found = trace(canonical, feed, run)
        have = run(canonical, feed)
        if compare(want, have) > 1e-3:
            raise ModelError(
                "simplifying the graph changed what it computes",
                at=f"relative {compare(want, have):.2g}",
                fix="this is a defect of graphprune or its libraries: please report it with the model",
            )
        analysis = analyse(canonical, solve(canonical, found))
        return Prepared(source, specs, analysis, {k: tuple(v.shape) for k, v in feed.items()})
    raise ModelError(
        f"the model does not run: {failure.what if failure else 'no shapes to try'}",
        at=f"{failure.at}; inputs {', '.join(map(str, specs))}"
        if failure and failure.at
        else f"inputs {', '.join(map(str, specs))}",
        fix="give shapes that it accepts, as --shape "
        + " --shape ".join(
            f"{s.name}={'x'.join(str(n if isinstance(n, int) else 1) for n in s.shape)}"
            for s in specs
            if s.dynamic_axes
        )
        if any(s.dynamic_axes for s in specs)
        else "check the file in the runtime it is meant for",
    )


def _bindings(specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Shapes to try for tracing: distinct primes on dynamic axes; the user's shapes with a batch of three, primes where
    they say nothing; the user's as they are; then common image and sequence sizes."""
    axes = {
        s.name: [n if isinstance(n, int) else n or f"{s.name}.{i}" for i, n in enumerate(s.shape)] for s in specs
    }
    yield bind(axes)
    symbols = {n for own in axes.values() for n in own if isinstance(n, str)}
    if not symbols:
        return
    batches = {own[0] for own in axes.values() if own and isinstance(own[0], str)}
    given = {
        n: size for name, shape in shapes.items() if len(axes.get(name, ())) == len(shape)
        for n, size in zip(axes[name], shape, strict=True) if isinstance(n, str)
    }  # fmt: skip
    if given:
        larger = {n: 3 for n in batches if given.get(n) == 1}
        for sizes in (given | larger, given):
            yield bind({name: [sizes.get(n, n) for n in own] for name, own in axes.items()})
    for side in (32, 64, 224, 320, 640):
        sizes = dict.fromkeys(symbols, side) | dict.fromkeys(batches, 3) | given
        yield {name: tuple(sizes.get(n, n) for n in own) for name, own in axes.items()}


def lookup_sizes(model: ir.Model) -> dict[str, int]:
    """For each integer input, the rows of the smallest table that it indexes directly or through views of itself."""
    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        if value.dtype is None or value.dtype.is_floating_point():
            continue
        reach, rows = [value], []
        for v in reach:
            for use in v.uses():
                if use.node.op_type == "Gather" and use.idx == 1 and use.node.inputs[0].is_initializer():
                    axis = use.node.attributes["axis"].value if "axis" in use.node.attributes else 0
                    rows.append(int(use.node.inputs[0].const_value.shape[axis]))
                elif use.node.op_type in ("Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity"):
                    reach.append(use.node.outputs[0])
        if rows:
            sizes[value.name] = min(rows)
    return sizes


def read_data(prepared: Prepared, calibration: Any, shapes: Mapping[str, Sequence[int]] | None, seed: int) -> Data:
    """Calibration and held-out feeds, and one feed for timing. Raises UsageError where they do not fit the model."""
    specs = prepared.specs
    high = lookup_sizes(prepared.model)
    if calibration is not None:
        feeds = load_calibration(calibration, specs, limit=round(CALIBRATION_LIMIT * 1.25))
        at = parse_shapes(shapes, specs) if shapes else common_shapes(feeds)
        timing = next((f for f in feeds if all(f[n].shape == s for n, s in at.items())), None)
        if timing is None:
            (timing,) = synthetic(specs, at, 1, seed, high)
        fitted, held = split(feeds, seed)
        return Data(fitted, held, timing, False, str(calibration) if isinstance(calibration, str) else "given feeds")
    at = parse_shapes(shapes or {}, specs)
    feeds = synthetic(specs, at, _SYNTHETIC, seed, high)
    fitted, held = split(feeds, seed)
    return Data(fitted, held, feeds[0], True, "synthetic inputs")


def certificate_feeds(prepared: Prepared, data: Data) -> list[Feed]:
    """Feeds of several batch and sequence sizes, as far as the model's axes allow: the shapes of timing with other
    batches, and the binding under which the model was typed."""
    specs = {s.name: s for s in prepared.specs}
    at = {n: a.shape for n, a in data.timing.items()}
    options = [at, dict(prepared.traced_at)]
    if all(0 in s.dynamic_axes for s in specs.values()):
        options.append({n: (2, *s[1:]) for n, s in at.items()})
    high = lookup_sizes(prepared.model)
    unique = list({tuple(sorted(o.items())): o for o in options}.values())
    return [synthetic(prepared.specs, o, 1, seed=i + 1, high=high)[0] for i, o in enumerate(unique)]


def with_inexact(prepared: Prepared) -> Prepared:
    """The same model with the groups offered whose axis is a statistic of a norm or a softmax."""
    return replace(prepared, analysis=analyse(prepared.model, prepared.analysis.types, inexact=True))


def need_groups(prepared: Prepared) -> None:
    """Raises ModelError, saying why, where nothing can be pruned."""
    if not prepared.analysis.groups:
        rows = prepared.analysis.frozen[:3]
        raise ModelError(
            "nothing in this model can be pruned",
            at="; ".join(f"{r.n_parameters:,} parameters (such as {r.example}): {r.reason}" for r in rows)
            or "it has no weights",
            fix="see `graphprune explain` for every axis and its reason",
        )
