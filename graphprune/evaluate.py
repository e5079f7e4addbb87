"""The user's own measure of quality: a Python function that is given a model to run and says how good it is.

    def accuracy(run):                      # run: feed (input name -> array) -> outputs (output name -> array)
        right = [run({"x": x})["logits"].argmax() == y for x, y in samples()]
        return sum(right) / len(right)      # a number, or several by name; higher is better

Of several numbers the one named "headline" counts, or else the first. Owns finding the function, calling it and
checking what it gives; what it raises is a UsageError that says where.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.errors import GraphpruneError, UsageError
from graphprune.feeds import InputSpec, check_feed, first_line, import_named, working_folder_on_path
from graphprune.report import Metric, number

Run = Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]]
Function = Callable[[Run], Any]
HEADLINE = "headline"
_FIX = "it is called with run(feed) -> outputs and must return a number, or numbers by name; higher is better"


def resolve(source: str | Function) -> tuple[Function, str]:
    """The function that `source` is or names as "module:function", and what to call it. Raises UsageError."""
    if not isinstance(source, str):
        name = getattr(source, "__qualname__", type(source).__name__)
        if not callable(source):
            raise UsageError(f"a {name} cannot be called", at="evaluate", fix=_FIX)
        return source, name
    module, colon, name = source.partition(":")
    if not (module and colon and name) or {"/", "\\"} & set(source):
        fix = "write module:function, as metrics:accuracy for accuracy() in metrics.py of this folder"
        raise UsageError("not the name of a function", at=f"--evaluate {source}", fix=fix)
    with working_folder_on_path():
        try:
            function = import_named(module, name, source)
        except UsageError as error:
            raise _not_found(error, module, name) from error
    if not callable(function):
        what = f"{name!r} is a {type(function).__name__}, not a function"
        raise UsageError(what, at=f"--evaluate {source}", fix=_FIX)
    return function, source


def _not_found(error: UsageError, module: str, name: str) -> UsageError:
    """The error of an import, said of an evaluation and with the nearest module there is."""
    missing = isinstance(error.__cause__, ModuleNotFoundError) and error.what.startswith("there is no module")
    here = [p.stem for p in Path.cwd().iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    near = get_close_matches(module.partition(".")[0], here, n=1, cutoff=0.5) if missing else []
    what = error.what.replace("the calibration source raised", "importing it raised")
    fix = "the module must import on its own" if "raised" in what else error.fix
    fix = f"did you mean {near[0]}:{name}?" if near else fix
    return UsageError(what, at=f"--evaluate {error.at}", fix=fix)


@dataclass
class Evaluation:
    """A function bound to a runtime. load: a model's bytes -> an executable (see `backends.base`); every model is
    evaluated once."""

    function: Function
    where: str
    load: Callable[[bytes], Any] = field(repr=False)
    _known: dict[str, dict[str, float]] = field(default_factory=dict, repr=False)

    def scores(self, model: bytes) -> dict[str, float]:
        """The numbers that the function gives for a model, the one that counts first. NaN is the worst there is."""
        key = hashlib.sha256(model).hexdigest()
        if key not in self._known:
            self._known[key] = self._checked(self._call(_runner(self.load(model), self.where)))
        return self._known[key]

    def headline(self, dense: bytes) -> tuple[str, float]:
        """Name of the number that counts and its value for the dense model, all of whose numbers must be finite."""
        for name, value in self.scores(dense).items():
            if not np.isfinite(value):
                fix = "give a finite number: is it divided by the number of samples it really saw?"
                raise UsageError(f"the evaluation gave {value} for {name!r} of the dense model", at=self.where, fix=fix)
        return next(iter(self.scores(dense).items()))

    def rows(self, dense: bytes, compressed: bytes) -> tuple[Metric, ...]:
        """Rows for a report: each number before and after, and how far it dropped."""
        before, after = self.scores(dense), self.scores(compressed)
        if missing := [name for name in before if name not in after]:
            raise UsageError(
                f"the evaluation gave {missing[0]!r} for the dense model and not for the compressed one",
                at=self.where,
                fix="give the same numbers for every model",
            )
        return tuple(
            Metric(name, after[name], f"{self.where}, higher is better; {_drop(value, after[name])}", value)
            for name, value in before.items()
        )

    def _call(self, run: Run) -> Any:
        try:
            with working_folder_on_path():  # the function may import more of the folder it was found in
                return self.function(run)
        except GraphpruneError:
            raise
        except (Exception, SystemExit) as error:
            frames = traceback.extract_tb(error.__traceback__)
            at = f" ({frames[-1].filename}:{frames[-1].lineno})" if len(frames) > 1 else ""
            what = f"the evaluation raised {type(error).__name__}: {first_line(error)}"
            raise UsageError(what, at=self.where + at, fix=_FIX) from error

    def _checked(self, given: Any) -> dict[str, float]:
        name = self.where.rpartition(":")[2].rpartition(".")[2].strip("<>")
        several = dict(given) if isinstance(given, Mapping) else {name: given}
        if not several:
            raise UsageError("the evaluation gave no numbers", at=self.where, fix=_FIX)
        scores = {str(key): self._number(str(key), value) for key, value in several.items()}
        first = HEADLINE if HEADLINE in scores else next(iter(scores))
        return {first: scores.pop(first), **scores}

    def _number(self, name: str, value: Any) -> float:
        if hasattr(value, "item"):  # numbers of numpy and of tensor libraries
            with suppress(TypeError, ValueError, RuntimeError):
                value = value.item()
        if not isinstance(value, Real) or isinstance(value, bool):
            raise UsageError(f"the evaluation gave a {type(value).__name__} for {name!r}", at=self.where, fix=_FIX)
        return float(value)


def _runner(executable: Any, where: str) -> Run:
    """Run a feed, checked against the model's inputs first."""
    specs = [InputSpec(name, dtype, tuple(shape)) for name, (dtype, shape) in executable.inputs.items()]
    return lambda feed: executable.run(check_feed(feed, specs, where=f"{where}, run(feed)"))


def _drop(before: float, after: float) -> str:
    lost = before - after
    if not np.isfinite(lost):
        return "not finite"
    share = f" ({abs(lost / before):.2%})" if before else ""
    return "unchanged" if lost == 0 else f"{'drops' if lost > 0 else 'rises'} by {number(abs(lost))}{share}"
