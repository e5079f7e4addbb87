"""Load model.engine, run it on random inputs and time it (an engine whose outputs have the shapes of build.json's
inputs; where they depend on the data, use an output allocator instead).

    pip install tensorrt torch
    python run_engine.py

Times are of the GPU alone, between CUDA events around a captured graph of one run; inputs stay where they are.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

HERE = Path(__file__).resolve().parent
WARM_RUNS, RUNS = 50, 300


class Engine:
    """An engine and its buffers. `inputs` and `outputs` are torch tensors on the GPU by name."""

    def __init__(self, path: Path, shapes: dict[str, list[int]]) -> None:
        import tensorrt as trt
        import torch

        logger = trt.Logger(trt.Logger.WARNING)
        trt.init_libnvinfer_plugins(logger, "")
        self._engine = trt.Runtime(logger).deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise SystemExit(f"{path} was built for another GPU or version of TensorRT than {trt.__version__}")
        self._context = self._engine.create_execution_context()
        self.stream = torch.cuda.Stream()
        self.inputs, self.outputs = {}, {}
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        given = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        for name in given:
            self._context.set_input_shape(name, shapes[name])
        for name in names:
            dtype = getattr(torch, trt.nptype(self._engine.get_tensor_dtype(name)).__name__.rstrip("_"))
            shape = tuple(self._context.get_tensor_shape(name))
            if min(shape, default=1) < 0:
                raise SystemExit(f"the shape of {name} depends on the data: this program cannot hold it")
            made = torch.zeros(shape, dtype=dtype, device="cuda")
            if name in given:
                made.copy_(torch.randn(shape) if dtype.is_floating_point else torch.randint(0, 2, shape))
            (self.inputs if name in given else self.outputs)[name] = made
            self._context.set_tensor_address(name, made.data_ptr())

    def run(self) -> None:
        """One run on `self.stream`, from `inputs` to `outputs`."""
        if not self._context.execute_async_v3(self.stream.cuda_stream):
            raise SystemExit("TensorRT could not run the engine: see what it said above")

    def __call__(self, feed: dict) -> dict:
        """Numpy arrays in, numpy arrays out."""
        import torch

        for name, array in feed.items():
            if array.shape != tuple(self.inputs[name].shape):
                raise ValueError(f"{name} has shape {array.shape}; this engine was loaded for "
                                 f"{tuple(self.inputs[name].shape)}")
            self.inputs[name].copy_(torch.from_numpy(array))
        torch.cuda.synchronize()
        self.run()
        self.stream.synchronize()
        return {name: tensor.cpu().numpy() for name, tensor in self.outputs.items()}


def captured(engine: Engine):
    """One run as a CUDA graph, after some to warm up."""
    import torch

    for _ in range(WARM_RUNS):
        engine.run()
    engine.stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=engine.stream):
        engine.run()
    return graph


def milliseconds(engine: Engine, graph, runs: int = RUNS) -> list[float]:
    """The times of single runs of the captured graph."""
    import torch

    times = []
    for _ in range(runs):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(engine.stream):
            start.record()
            graph.replay()
            end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times


def main() -> None:
    plan = json.loads((HERE / "build.json").read_text())
    engine = Engine(HERE / "model.engine", plan["shapes"])
    times = milliseconds(engine, captured(engine))
    median = statistics.median(times)
    low, high = statistics.quantiles(times, n=10)[0], statistics.quantiles(times, n=10)[-1]
    print(f"{median:.4f} ms, 80 % of {len(times)} runs between {low:.4f} and {high:.4f} ms; "
          f"expected {plan['expected_ms']:.4f} ms")


if __name__ == "__main__":
    main()
