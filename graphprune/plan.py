"""The plan: every decision and every number that was not computed from the model alone, as data that can be replayed.

`plan.json` holds the choices; the weights that were solved for lie beside it in `plan.npz`, named by its digest.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.errors import UsageError

SCHEMA = 1


@dataclass(frozen=True)
class Plan:
    """model_sha256: of the model it was made for. traced_at: input shapes its types were found under.
    choices: pass -> site -> what was decided. lowerings: names of the backend's rewrites that were taken.
    integer: how its engine has values of few bits (`target.IntegerKernels`).
    tensors: initialiser of the result -> new contents.
    predicted_ms, measured_ms, dense_ms: what was promised and what came out, for the record.
    """

    model_sha256: str
    traced_at: Mapping[str, tuple[int, ...]]
    choices: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, np.ndarray] = field(repr=False)
    compensate: bool = True
    axes: str = "exact"
    lowerings: tuple[str, ...] = ()
    integer: str = "onnxruntime"
    target: str = ""
    device: str = "host"
    seed: int = 0
    predicted_ms: float = 0.0
    measured_ms: float = 0.0
    dense_ms: float = 0.0

    def files(self) -> dict[str, bytes]:
        """plan.json and plan.npz."""
        weights = io.BytesIO()
        np.savez(weights, **{f"t{i}": self.tensors[name] for i, name in enumerate(self.tensors)})
        data = weights.getvalue()
        plain = {k: v for k, v in asdict(self).items() if k != "tensors"}
        plain |= {"schema": SCHEMA, "tensors": list(self.tensors), "tensors_sha256": hashlib.sha256(data).hexdigest()}
        return {"plan.json": (json.dumps(plain, indent=1) + "\n").encode(), "plan.npz": data}

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read a plan and the weights beside it. Raises UsageError for what is not one, or does not belong together."""
        path = Path(path)
        fix = "give the plan.json that a compilation wrote, with its plan.npz beside it"
        try:
            plain = json.loads(path.read_bytes())
            data = path.with_suffix(".npz").read_bytes()
        except FileNotFoundError as e:
            raise UsageError(f"there is no file {e.filename}", at=str(path), fix=fix) from e
        except (ValueError, OSError, RecursionError) as e:
            raise UsageError(f"not a plan: {e}", at=str(path), fix=fix) from e
        if not isinstance(plain, dict) or plain.pop("schema", None) != SCHEMA:
            raise UsageError(f"not a plan of schema {SCHEMA}", at=str(path), fix=fix)
        if hashlib.sha256(data).hexdigest() != plain.pop("tensors_sha256", None):
            raise UsageError("plan.npz is not the one this plan was written with", at=str(path), fix=fix)
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                tensors = {name: arrays[f"t{i}"] for i, name in enumerate(plain.pop("tensors"))}
            plain["lowerings"] = tuple(plain["lowerings"])
            plain["traced_at"] = {k: tuple(v) for k, v in plain["traced_at"].items()}
            plain["choices"] = {p: {s: dict(c) for s, c in sites.items()} for p, sites in plain["choices"].items()}
            return cls(tensors=tensors, **plain)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise UsageError(f"the plan has fields missing or unknown: {e}", at=str(path), fix=fix) from e
