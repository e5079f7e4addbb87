"""Build a TensorRT engine as build.json says.

    pip install tensorrt        # 10.12 or newer
    python build_engine.py

Needs the GPU that the engine is for; engines of another GPU, driver or version of TensorRT do not load. The times of
tactics are kept in timing.cache, so that the next build is faster and the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def network_flags(trt) -> int:
    """Types are those of the ONNX file: asked for in TensorRT 10, always so from 11 on."""
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0


def parsed(trt, builder, logger, onnx: Path):
    """The network, and its parser, which has to stay alive. Exits with what the parser says."""
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        sys.exit("\n".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    return network, parser


def configured(trt, builder, plan: dict, cache: Path):
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan["workspace_mib"] << 20)
    config.builder_optimization_level = plan["optimization_level"]
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    timing = config.create_timing_cache(cache.read_bytes() if cache.exists() else b"")
    if timing is None or not config.set_timing_cache(timing, ignore_mismatch=False):  # of another GPU or version
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    if plan["profile"]:
        profile = builder.create_optimization_profile()
        for name, shapes in plan["profile"].items():
            profile.set_shape(name, shapes["min"], shapes["opt"], shapes["max"])
        config.add_optimization_profile(profile)
    return config


def main() -> None:
    import tensorrt as trt

    plan, cache = json.loads((HERE / "build.json").read_text()), HERE / "timing.cache"
    logger = trt.Logger(trt.Logger.WARNING)
    trt.init_libnvinfer_plugins(logger, "")
    try:
        builder = trt.Builder(logger)
    except TypeError as error:
        sys.exit(f"TensorRT {trt.__version__} finds no GPU or no driver: {error}")
    network, _parser = parsed(trt, builder, logger, HERE / plan["onnx"])
    config = configured(trt, builder, plan, cache)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        sys.exit("no engine was built: see what TensorRT said above")
    (HERE / "model.engine").write_bytes(bytes(engine))
    cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    print(f"wrote {HERE / 'model.engine'}, TensorRT {trt.__version__}; time it with python run_engine.py")


if __name__ == "__main__":
    main()
