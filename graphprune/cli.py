"""The command line: a thin skin over the Python API. Owns options, exit codes and how an error is printed, no more.

Everything heavy is imported inside the command that needs it, so that `graphprune --help` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.errors import GraphpruneError, UsageError

if TYPE_CHECKING:
    from graphprune.target import Target

INTERRUPTED = 130
_MOST_ROWS = 40
"""Rows of a table that fit a person; files and pipes get all."""
app = typer.Typer(name="graphprune", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="Make a trained network as fast as you ask, measured, with the least loss of quality.")


class Axes(StrEnum):
    exact = "exact"
    all = "all"


class Score(StrEnum):
    second_order = "second-order"
    magnitude = "magnitude"
    activation = "activation"


Model = Annotated[Path, typer.Argument(help="An ONNX file.", show_default=False)]
Shapes = Annotated[list[str] | None, typer.Option(
    "--shape", metavar="INPUT=1x128", help="Shape of an input with dynamic axes; repeatable.", show_default=False)]
Threads = Annotated[int, typer.Option(min=1, help="Threads the model will run on.")]
Calibration = Annotated[str | None, typer.Option(
    help="A folder of .npz feeds, one .npz of stacked samples, or module:function.", show_default=False)]
Outputs = Annotated[list[str] | None, typer.Option(
    "--output", metavar="NAME=KIND", help="What an output is, so that quality is measured as such: auto, distribution, "
    "logits, embedding or relative; repeatable.", show_default=False)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the stack trace of an error.")]


@app.command("compile")
def compile_(
    model: Model,
    target_speedup: Annotated[str | None, typer.Option(metavar="2x", help="How many times faster.",
                                                       show_default=False)] = None,
    target_latency: Annotated[str | None, typer.Option(metavar="5ms", help="Or the time it may take.",
                                                       show_default=False)] = None,
    family: Annotated[str | None, typer.Option(metavar="1.5x,2x,3x", help="Or several speed-ups from one calibration, "
                                               "each in its own folder.", show_default=False)] = None,
    max_drop: Annotated[str | None, typer.Option(
        metavar="1%", help="Or as fast as it can be with quality down by no more than this: of --evaluate as a share "
        "(1%) or in points (0.01), otherwise output divergence.", show_default=False)] = None,
    evaluate: Annotated[str | None, typer.Option(
        metavar="MODULE:FUNCTION", help="Your own metric: function(run) gives a number or several by name, higher is "
        "better, where run(feed) gives outputs.", show_default=False)] = None,
    output: Outputs = None,
    device: Annotated[str, typer.Option(help="What it must be fast on: host (this machine, measured; or "
                                             "host:openvino, tensorrt), one of `graphprune devices`, a file, or "
                                             "several: a100,t4,host.")] = "host",
    precision: Annotated[str | None, typer.Option(
        metavar="fp16", help="Floating-point numbers of the result on that device.  [default: what is usual there]",
        show_default=False)] = None,
    baseline_precision: Annotated[str | None, typer.Option(
        metavar="fp32", help="Floating-point numbers of the dense model that speed is promised over.  [default: what "
        "is usual on the device]", show_default=False)] = None,
    calibration: Calibration = None,
    shape: Shapes = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the result.  [default: MODEL-compressed]",
                                             show_default=False)] = None,
    passes: Annotated[str | None, typer.Option(
        metavar="width,quantise", help="Only these passes, of depth, width, low-rank, quantise.  [default: all]",
        show_default=False)] = None,
    score: Annotated[Score, typer.Option(help="How channels are ranked.")] = Score.second_order,
    axes: Annotated[Axes, typer.Option(help="Where channels may go: only where that is the same as zeroing them, or "
                                            "also where a norm runs over them (residual widths).")] = Axes.exact,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same plan.")] = 0,
    threads: Threads = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    debug: Debug = False,
) -> int:
    """Make MODEL faster by a factor, or as fast as a time, or as fast as quality allows."""
    targets = _targets(target_speedup, target_latency, family, max_drop, evaluate is not None)
    path = _model_file(model)
    out = out or Path(f"{path.stem}-compressed")
    _not_over(path, out / "model.onnx", "another --out")
    from graphprune.divergence import read_kinds
    from graphprune.feeds import read_shapes
    from graphprune.files import check_writable

    shapes = read_shapes(shape or [])
    given = {"outputs": read_kinds(output or []), "evaluate": evaluate, "precision": precision,
             "baseline_precision": baseline_precision}
    check_writable(out)
    import graphprune
    from graphprune import progress
    from graphprune.report import render_text

    options: dict[str, Any] = {
        "device": device, "calibration": calibration, "shapes": shapes, "seed": seed, "threads": threads,
        "passes": passes, "score": score.value, "axes": axes.value, "progress": progress.choose(quiet),
        **{name: value for name, value in given.items() if value}}
    missed: GraphpruneError | None = None
    if "," in device:
        if not all(target.speedup for target in targets) or not targets:
            raise UsageError("several devices are compiled for by a factor", at=f"--device {device}",
                             fix="give --target-speedup 2x or --family 1.5x,2x")
        names = [name.strip() for name in device.split(",")]
        found = graphprune.compile_for(path, **{**options, "devices": names,
                                                "targets": [target.speedup for target in targets]})
        results, folders = [], []
        for name, made in found.items():
            for target, result in zip(targets, made, strict=True):
                if isinstance(result, GraphpruneError):
                    missed = result
                    _print_error(f"{name}: {result.what}", result.at, result.fix)
                else:
                    results.append(result)
                    folders.append(out / _folder(name, names) / (str(target) if family else ""))
    elif max_drop is not None:
        results, folders = [graphprune.compile(path, max_drop=max_drop, **options)], [out]
    elif family is None:
        results = [graphprune.compile(path, target_speedup=targets[0].speedup, target_latency_ms=targets[0].latency_ms,
                                      **options)]
        folders = [out]
    else:
        results = graphprune.compile_family(path, targets=[target.speedup for target in targets], **options)
        folders = [out / str(target) for target in targets]
    for result, folder in zip(results, folders, strict=True):
        result.save(folder)
        if not quiet:
            _print(render_text(result.report))
            _print(f"written to {folder}: {', '.join(sorted(os.listdir(folder)))}\n")
    if "," in device and not quiet:
        from graphprune.device_tables import choices_table

        for target in targets:
            reports = [r.report for r in results if r.report.asked.target == str(target)]
            if len(reports) > 1:
                _print(f"{target}, where devices differ:")
                _print(choices_table(reports))
    return missed.exit_code if missed else 0


@app.command()
def explain(
    model: Model,
    shape: Shapes = None,
    time: Annotated[bool, typer.Option(help="Measure the share of time of each group.")] = True,
    threads: Threads = 1,
    json: Annotated[Path | None, typer.Option(help="Write the tables to this file too.", show_default=False)] = None,
    group: Annotated[str | None, typer.Option(help="Tell all about this group instead.", show_default=False)] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.svg|FILE.html", help="Draw that group.",
                                                 show_default=False)] = None,
    debug: Debug = False,
) -> None:
    """Show what could shrink in MODEL, what it would give, and what is frozen and why."""
    path = _model_file(model)
    _drawable(picture, group)
    import graphprune
    from graphprune import tables
    from graphprune.feeds import read_shapes

    options: dict[str, Any] = {"shapes": read_shapes(shape or []), "measure": time, "threads": threads}
    if group is None:
        found = graphprune.explain(path, **options)
        shown = tables.explanation_tables(found, most=_MOST_ROWS if sys.stdout.isatty() else None)
    else:
        found = graphprune.explain_group(path, group, **options)
        shown = tables.group_tables(found)
    from graphprune.files import atomic_write

    if json:
        from graphprune.report import json_text

        atomic_write(json, json_text(found).encode())
    if picture:
        from graphprune import picture as drawing

        draw = drawing.html if picture.suffix == ".html" else drawing.svg
        atomic_write(picture, draw(found.members, found.title).encode())
    _print(shown)


@app.command()
def certify(
    model: Model,
    shape: Shapes = None,
    groups: Annotated[int | None, typer.Option(min=1, help="How many groups, drawn at random.  [default: all]",
                                               show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the groups and what they keep.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write every check to this file too.", show_default=False)] = None,
    threads: Threads = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    debug: Debug = False,
) -> int:
    """Prune random channels of MODEL, group by group and all at once, and prove each correct by running it; exit code 1
    on any mismatch. Needs no data."""
    path = _model_file(model)
    import graphprune
    from graphprune import progress
    from graphprune.feeds import read_shapes
    from graphprune.tables import certificate_tables

    found = graphprune.certify(path, shapes=read_shapes(shape or []), groups=groups, seed=seed, threads=threads,
                               progress=progress.choose(quiet))
    if json:
        from graphprune.files import atomic_write
        from graphprune.report import json_text

        atomic_write(json, json_text(found.to_dict()).encode())
    _print(certificate_tables(found))
    return 1 if found.failed else 0


@app.command()
def devices(
    show: Annotated[str | None, typer.Option(metavar="NAME", help="All figures of one device, with their sources.",
                                             show_default=False)] = None,
    debug: Debug = False,
) -> None:
    """List the devices that can be compiled for without having them."""
    from graphprune.device_tables import device_figures, device_table
    from graphprune.devices import HOST, find, known

    if show == HOST:
        raise UsageError("host is this machine: what it takes is measured, not described", at=f"--show {show}",
                         fix="graphprune profile -o host.json measures a table of it")
    _print(device_figures(find(show)) if show else device_table(known().values()))


@app.command()
def profile(
    out: Annotated[Path, typer.Option("--out", "-o", help="The table to write.", show_default=False)],
    device: Annotated[str, typer.Option(help="What to measure: host, this processor in ONNX Runtime; or cuda, the "
                                             "GPU in PyTorch.")] = "host",
    precision: Annotated[str | None, typer.Option(metavar="fp16", help="Of the kernels of a GPU.",
                                                  show_default=False)] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long to measure; an interrupted run goes on.")] = 180.0,
    seed: Annotated[int, typer.Option(min=0, help="Draws the networks.")] = 0,
    threads: Threads = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    debug: Debug = False,
) -> None:
    """Measure what kernels take on this machine: a table that other machines can compile with (--device TABLE.json)."""
    from graphprune import progress
    from graphprune.backends import open_profiler
    from graphprune.device_tables import measured_table
    from graphprune.files import check_writable
    from graphprune.profiling import profile as run

    check_writable(out.parent)
    measured = run(open_profiler(device, threads, precision), out, progress.choose(quiet), seconds=seconds, seed=seed)
    _print(measured_table(measured))
    _print(f"written to {out}")


@app.command()
def bench(
    a: Annotated[Path, typer.Argument(help="The model to compare with.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="The model that should be faster.", show_default=False)],
    shape: Shapes = None,
    threads: Threads = 1,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure.")] = 10.0,
    device: Annotated[str, typer.Option(help="On what: host, host:openvino, or another that compile takes.")] = "host",
    debug: Debug = False,
) -> None:
    """Time A and B in turns, A B A B, with the spread."""
    paths = [_model_file(a), _model_file(b)]
    import graphprune
    from graphprune.feeds import read_shapes
    from graphprune.tables import timing_table

    timings = graphprune.bench(paths, shapes=read_shapes(shape or []), threads=threads, seconds=seconds, device=device)
    _print(timing_table([str(path) for path in (a, b)], timings))
    if sources := {timing.source for timing in timings} - {"measured"}:
        _print(f"nothing was measured: these times are {', '.join(sorted(sources))}, of {device}")


@app.command()
def verify(
    a: Annotated[Path, typer.Argument(help="The reference.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="The model that should compute the same.", show_default=False)],
    shape: Shapes = None,
    samples: Annotated[int, typer.Option(min=1, help="How many inputs to run.")] = 8,
    rtol: Annotated[float, typer.Option(min=0.0, help="Largest relative L2 error of an output that passes.")] = 1e-3,
    calibration: Calibration = None,
    debug: Debug = False,
) -> int:
    """Compare the outputs of A and B; exit code 1 if they differ by more than --rtol."""
    paths = [_model_file(a), _model_file(b)]
    import graphprune
    from graphprune.feeds import read_shapes
    from graphprune.tables import verification_table

    rows = graphprune.verify(*paths, shapes=read_shapes(shape or []), samples=samples, calibration=calibration)
    _print(verification_table(rows, rtol))
    return 0 if all(row.relative_l2 <= rtol for row in rows) else 1


@app.command()
def replay(
    plan: Annotated[Path, typer.Argument(help="A plan.json that compile wrote.", show_default=False)],
    model: Model,
    out: Annotated[Path, typer.Option(help="Where to write the model.")] = Path("model.onnx"),
    debug: Debug = False,
) -> None:
    """Apply a plan to MODEL again, without calibrating or measuring: the same bytes come out."""
    paths = [_file(plan, "plan", ".json"), _model_file(model)]
    _not_over(model, out, "--out other.onnx")
    import graphprune
    from graphprune.files import atomic_write

    atomic_write(out, graphprune.replay(*paths))
    _print(f"written to {out}")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        _print(f"graphprune {installed('graphprune')}")
        raise typer.Exit


def main(args: list[str] | None = None) -> int:
    """Run the command line on `args` (sys.argv without the program); returns the exit code, prints every error."""
    args = sys.argv[1:] if args is None else args
    debug = "--debug" in args
    for library in ("onnx_ir", "onnx_shape_inference", "onnxscript"):  # what is wrong with a model we say ourselves
        logging.getLogger(library).setLevel(logging.NOTSET if debug else logging.CRITICAL)
    try:
        code = app(args, prog_name="graphprune", standalone_mode=False) or 0
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):  # the runner turns Ctrl-C into one of these or into the exit code
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough; typer and rich exit with 1 then, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        known = _as_graphprune_error(error)
        if known is None:
            _print_error(f"{type(error).__name__}: {error}", "", "this is a defect in graphprune, please report it"
                         + (" with the trace above" if debug else "; --debug shows the stack trace"))
            return 1
        _print_error(known.what, known.at, known.fix)
        return known.exit_code
    if code == INTERRUPTED:
        print("interrupted: nothing half-written was left behind", file=sys.stderr)
    return code


def _as_graphprune_error(error: Exception) -> GraphpruneError | None:
    """The error as one meant for the user, or None for a defect of ours."""
    if isinstance(error, GraphpruneError):
        return error
    if isinstance(error, typer.BadParameter.__mro__[2]):  # ClickException, whichever package this typer has it from
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "graphprune"
        return UsageError(error.format_message().rstrip("."), at=command, fix=f"see {command} --help")
    if isinstance(error, MemoryError):
        from graphprune.errors import EnvironmentFault

        return EnvironmentFault("out of memory", fix="give smaller shapes or fewer calibration samples")
    if isinstance(error, OSError):
        from graphprune.files import as_fault

        return as_fault(error, error.filename or "")
    return None


def _targets(
    speedup: str | None, latency: str | None, family: str | None, max_drop: str | None, metric: bool
) -> list[Target]:
    """What was asked for, as one target or several factors; none where it is a quality."""
    given = {"--target-speedup": speedup, "--target-latency": latency, "--family": family, "--max-drop": max_drop}
    named = [name for name, text in given.items() if text is not None]
    if len(named) != 1:
        what = f"{' and '.join(named)} cannot be combined" if named else "no target was given"
        fix = "give one of --target-speedup 2x, --target-latency 5ms, --family 1.5x,2x,3x, --max-drop 1%"
        raise UsageError(what, at="graphprune compile", fix=fix)
    from graphprune.target import Target

    if max_drop is not None:
        from graphprune.dual import MaxDrop

        MaxDrop.of(max_drop, metric=metric)
        return []
    name, text = named[0], given[named[0]]
    targets: list[Target] = []
    for part in text.split(",") if family is not None else [text]:
        try:
            target = Target.parse(part.strip())
        except UsageError as error:
            raise UsageError(error.what, at=f"{name} {text}", fix=error.fix) from error
        if (target.latency_ms is None) == (name == "--target-latency"):
            kind, other = ("time", "--target-speedup") if target.latency_ms is None else ("factor", "--target-latency")
            raise UsageError(f"{name} takes a {kind}, not {part.strip()!r}", at=f"{name} {text}",
                             fix=f"did you mean {other} {part.strip()}?")
        if target in targets:
            raise UsageError(f"{target} is asked for twice", at=f"{name} {text}", fix="name each factor once")
        targets.append(target)
    return targets


def _folder(device: str, devices: list[str]) -> str:
    """What the folder of a device is called: as the device, or as its file, if that tells it from the others."""
    stem = Path(device).stem if device.endswith((".toml", ".json")) else device
    stems = [Path(d).stem if d.endswith((".toml", ".json")) else d for d in devices]
    plain = stem if stems.count(stem) == 1 else device
    safe = "".join(c if c.isalnum() or c in "-._" else "-" for c in plain).strip(".-")
    return safe or f"device{devices.index(device)}"


def _model_file(path: Path) -> Path:
    return _file(path, "model", ".onnx")


def _file(path: Path, what: str, suffix: str) -> Path:
    """`path` if it is a file; the error names the nearest file there is."""
    if os.path.isfile(path):
        return path
    folder = path if os.path.isdir(path) else path.parent
    names = sorted(n for n in os.listdir(folder) if n.endswith(suffix)) if os.path.isdir(folder) else []
    if folder == path:
        fix = f"did you mean {path / names[0]}?" if len(names) == 1 else f"give a {suffix} file" + (
            f" in it: {', '.join(names[:5])}" if names else "")
        raise UsageError(f"the {what} is a folder, not a file", at=str(path), fix=fix)
    close = get_close_matches(path.name, names, n=1, cutoff=0.5)
    raise UsageError(f"the {what} does not exist", at=str(path),
                     fix=f"did you mean {folder / close[0]}?" if close else "check the path")


def _drawable(picture: Path | None, group: str | None) -> None:
    if picture is not None and group is None:
        raise UsageError("a picture shows one group", at=f"--picture {picture}",
                         fix="give --group NAME; explain without --picture lists the names")
    if picture is not None and picture.suffix not in (".svg", ".html"):
        raise UsageError(f"cannot draw a {picture.suffix or 'file without a suffix'}", at=f"--picture {picture}",
                         fix="give a file that ends in .svg or .html")


def _not_over(model: Path, out: Path, other: str) -> None:
    """Refuse to write the result over the model it was made from."""
    if os.path.exists(out) and os.path.samefile(model, out):
        raise UsageError("the result would be written over the model itself", at=str(out), fix=f"give {other}")


def _print(what: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 4096  # a file has no edge: nothing is wrapped or cut
    console.print(what, markup=False, soft_wrap=isinstance(what, str))


def _print_error(what: str, at: str, fix: str) -> None:
    """error: what / at / fix on standard error, with terminal control characters of hostile names spelled out."""
    from rich.console import Console
    from rich.text import Text

    from graphprune.report import printable

    text = Text.assemble(("error", "bold red"), f": {printable(what)}")
    for word, detail in (("at", at), ("fix", fix)):
        if detail:
            text.append(f"\n  {word + ':':5}", style="dim").append(printable(detail))
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
