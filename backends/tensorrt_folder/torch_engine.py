"""model.engine as a torch module: torch tensors on the GPU in, in the order of the model's inputs, and out.

    pip install torch-tensorrt  # of the version of TensorRT that the engine was built with
    python torch_engine.py

or, in a program: `from torch_engine import load`, `module = load()`, `module(x)`.
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent


def load(folder: Path = HERE):
    """A torch.nn.Module around the engine of a folder; shapes may vary as far as build.json's profile goes."""
    from torch_tensorrt.runtime import PythonTorchTensorRTModule

    plan = json.loads((folder / "build.json").read_text())
    return PythonTorchTensorRTModule(
        serialized_engine=(folder / "model.engine").read_bytes(),
        input_binding_names=plan["inputs"],
        output_binding_names=plan["outputs"],
    )


def main() -> None:
    import torch

    plan = json.loads((HERE / "build.json").read_text())
    types = {"float32": torch.float32, "float16": torch.float16, "int64": torch.int64, "int32": torch.int32,
             "bool": torch.bool}
    given = [torch.zeros(plan["shapes"][name], dtype=types[plan["types"][name]], device="cuda")
             for name in plan["inputs"]]
    found = load()(*given)
    tensors = found if isinstance(found, (tuple, list)) else [found]
    for name, tensor in zip(plan["outputs"], tensors, strict=True):
        print(f"{name}: {tensor.dtype} {list(tensor.shape)}")


if __name__ == "__main__":
    main()
