"""Networks of every architecture family, small and with random weights, and files that other frameworks wrote.

`build(name)` gives the ONNX file, exported once into the cache. Nothing of torch is imported before that. No parameter
is left at a value that hides mistakes (a bias of zero, a gamma of one).
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from pathlib import Path

from graphprune.errors import UsageError
from models.task import cached, cached_path
from models.zoo.base import Architecture

CATALOGUES = ("cnn", "text", "decoders", "seq2seq", "moe", "state_space", "vision", "speech", "multimodal", "series",
              "files")
"""Modules of this package that list architectures, each as ARCHITECTURES."""


@cache
def architectures() -> dict[str, Architecture]:
    """Every architecture by name, in the order of the catalogues."""
    found: dict[str, Architecture] = {}
    for catalogue in CATALOGUES:
        for architecture in import_module(f"models.zoo.{catalogue}").ARCHITECTURES:
            if architecture.name in found:
                raise ValueError(f"two architectures are called {architecture.name}")
            found[architecture.name] = architecture
    return found


def get(name: str) -> Architecture:
    """The architecture of that name; UsageError with the nearest name otherwise."""
    known = architectures()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0)[0]
        raise UsageError(f"there is no architecture '{name}'", at=f"there are {len(known)}",
                         fix=f"did you mean '{near}'?")
    return known[name]


def build(name: str) -> Path:
    """Path of the ONNX file of an architecture; exported once for each version of what it is made from.

    Raises UsageError for a name that is not there, EnvironmentFault where torch or the package of a file is missing,
    ModelError where the exported file computes something else than the network.
    """
    architecture = get(name)
    if architecture.path is not None:
        return architecture.path()

    def make(path: Path) -> None:
        import torch

        from models.export import export, quiet
        from models.zoo.base import randomise, settle

        with torch.random.fork_rng():
            torch.manual_seed(0)
            with quiet():
                sample = architecture.make()
            randomise(sample.module, seed=1)
            settle(sample)
            export(sample.module, sample.feed, list(sample.outputs), path, dynamic=sample.dynamic,
                   opset=architecture.opset, exporter=architecture.exporter)

    from models.export import need_torch

    need_torch()
    return cached(f"zoo_{name}.onnx", make, *_sources(architecture))


def exported(name: str) -> Path | None:
    """Path of the ONNX file of an architecture where `build` would have nothing to export; None where it would."""
    architecture = get(name)
    if architecture.path is not None:
        return architecture.path()
    path = cached_path(f"zoo_{name}.onnx", *_sources(architecture))
    return path if path.exists() else None


def _sources(architecture: Architecture) -> tuple[Path | str, ...]:
    """What an exported file is made from."""
    return Path(__file__).with_name("base.py"), f"{architecture.key} {architecture.exporter} {architecture.opset}"


def fast() -> list[Architecture]:
    """The architectures that continuous integration checks: the core ones, and of every family and of every exporter
    at every opset the first in the catalogue that no other stands for."""
    chosen = [a for a in architectures().values() if a.core]
    for trait in (lambda a: a.family, lambda a: (a.exporter, a.opset, a.path is None)):
        seen = {trait(a) for a in chosen}
        for a in architectures().values():
            if trait(a) not in seen:
                seen.add(trait(a))
                chosen.append(a)
    return chosen
