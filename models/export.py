"""torch module -> one quiet .onnx file: the only place of models/ that calls the torch exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.errors import EnvironmentFault, ModelError
from models.task import onnx_runner

if TYPE_CHECKING:
    import torch

OPSET = 18


def need_torch() -> None:
    """Raise EnvironmentFault unless torch can be imported."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise EnvironmentFault("this model is exported from torch, which is not installed",
                               fix="pip install 'graphprune[torch]'") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporters print, log and warn about; errors still rise."""
    level = logging.root.manager.disable
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)


def export(module: torch.nn.Module, feed: dict[str, torch.Tensor], outputs: list[str], path: Path, *,
           dynamic: Mapping[str, Mapping[int, str]] | None = None, opset: int = OPSET,
           exporter: str = "dynamo") -> None:
    """Write `module` in eval mode, called with feed's tensors by position, as one file at `path`.

    dynamic: input name -> axis -> symbol of that axis; axes with the same symbol have the same size. exporter:
    "dynamo" (torch.export), or "torchscript", the one before it, which still writes old opsets.
    Raises ModelError if ONNX Runtime does not compute from the file what torch computes from the module.
    """
    import torch

    # One tensor object given for two inputs would be exported as one input feeding both.
    arguments = tuple(value.clone() for value in feed.values())
    with quiet(), torch.no_grad():
        expected = module.eval()(*arguments)
        names = {"input_names": list(feed), "output_names": outputs, "opset_version": opset, "verbose": False}
        if exporter == "torchscript":
            axes = {name: dict(symbols) for name, symbols in (dynamic or {}).items()}
            torch.onnx.export(module, arguments, path, dynamo=False, dynamic_axes=axes, **names)
        else:
            program = torch.onnx.export(module, arguments, dynamo=True, dynamic_shapes=_symbols(feed, dynamic), **names)
            program.save(path, external_data=False)
    got = onnx_runner(path)({name: value.numpy() for name, value in feed.items()})
    wanted = [expected] if isinstance(expected, torch.Tensor) else list(expected)
    for name, value in zip(outputs, wanted, strict=True):
        if not np.allclose(got[name], value.numpy(), rtol=1e-3, atol=1e-3 * float(value.abs().max())):
            raise ModelError(f"the exported file computes another '{name}' than the torch module",
                             at=type(module).__name__, fix="report this with the versions of torch and onnxscript")


def _symbols(feed: dict[str, torch.Tensor], dynamic: Mapping[str, Mapping[int, str]] | None) -> Any:
    """The dynamic axes as torch.export takes them: for each argument, axis -> symbol."""
    import torch

    if not dynamic:
        return None
    symbols = {s: torch.export.Dim(s, min=1, max=1 << 16) for axes in dynamic.values() for s in axes.values()}
    return tuple({axis: symbols[s] for axis, s in dynamic.get(name, {}).items()} or None for name in feed)
