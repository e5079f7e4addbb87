"""The command line: what each option becomes, and for every kind of mistake the exit code and the words."""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import graphprune
from graphprune import files, progress
from graphprune.cli import main
from graphprune.errors import EnvironmentFault, InfeasibleTarget, ModelError, UsageError
from graphprune.report import Report
from graphprune.tables import Explanation, FrozenReason, GroupRow, OutputRow, Reach
from graphprune.target import Timing
from tests.test_report import sample


@dataclass
class Result:
    report: Report = field(default_factory=sample)

    def save(self, folder: Path) -> None:
        files.publish(folder, {"model.onnx": b"model", "plan.json": b"{}", "report.json": b"{}", "report.html": b""})


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working folder with a model in it."""
    (tmp_path / "net.onnx").write_bytes(b"onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def api(monkeypatch):
    """Stands in for the Python API: gathers the calls; `api.does[name]` is what a call returns or raises."""

    @dataclass
    class Api:
        does: dict = field(default_factory=lambda: {
            "compile": Result(), "compile_family": [Result(), Result()], "replay": b"again",
            "explain": Explanation("net", 12, 34_567, 8.0, Reach(1, 0.27, 0.5), Reach(2, 0.37, 0.6), (
                GroupRow("conv1", "channels", 64, ("conv1", "bn1", "conv2", "fc"), 9408, 0.27, 0.5, True),
                GroupRow("norm", "hidden", 32, ("ln",), 64, 0.1, None, False, "statistic of LayerNormalization at ln")),
                (FrozenReason("graph output", "nothing", 2, 0.05, 0.1, 0.3, "logits", nodes=("fc",)),)),
            "bench": [Timing((10.0, 10.0)), Timing((5.0, 5.0))],
            "verify": [OutputRow("logits", 1e-6, 2e-7, 1.0)]})
        calls: list = field(default_factory=list)

    api = Api()

    def stand_in(name):
        def call(*args, **options):
            api.calls.append((name, args, options))
            if isinstance(api.does[name], BaseException):
                raise api.does[name]
            return api.does[name]
        return call

    for name in api.does:
        monkeypatch.setattr(graphprune, name, stand_in(name), raising=False)
    return api


def error(capsys, *args: str) -> tuple[int, str]:
    """Run, expect nothing on standard output; the exit code and what is on standard error."""
    code = main(list(args))
    out, err = capsys.readouterr()
    assert out == ""
    return code, err


# -- what options become

def test_compile_hands_everything_on_and_saves(place, api, capsys):
    assert main(["compile", "net.onnx", "--target-speedup", "2x", "--device", "host", "--calibration", "data", "--seed",
                 "3", "--shape", "a=1x128", "--shape", "b=1", "--threads", "2", "--score", "magnitude",
                 "--axes", "all", "--passes", "width,quantise"]) == 0
    (name, args, options), = api.calls
    assert (name, args) == ("compile", (Path("net.onnx"),))
    assert isinstance(options.pop("progress"), progress.Lines)
    assert options == {"target_speedup": 2.0, "target_latency_ms": None, "device": "host", "calibration": "data",
                       "shapes": {"a": (1, 128), "b": (1,)}, "seed": 3, "threads": 2, "score": "magnitude",
                       "axes": "all", "passes": "width,quantise"}
    out = capsys.readouterr().out
    assert out.startswith("2.03x faster")
    assert "written to net-compressed: model.onnx, plan.json, report.html, report.json" in out
    assert (place / "net-compressed" / "model.onnx").read_bytes() == b"model"


def test_compile_takes_a_latency(place, api):
    assert main(["compile", "net.onnx", "--target-latency", "800us", "--out", "deep/er"]) == 0
    assert api.calls[0][2]["target_latency_ms"] == pytest.approx(0.8)
    assert api.calls[0][2]["target_speedup"] is None
    assert (place / "deep" / "er" / "model.onnx").exists()


def test_a_family_is_saved_a_folder_each(place, api):
    assert main(["compile", "net.onnx", "--family", "1.5x, 3x"]) == 0
    assert api.calls[0][0] == "compile_family" and api.calls[0][2]["targets"] == [1.5, 3.0]
    assert sorted(p.name for p in (place / "net-compressed").iterdir()) == ["1.5x", "3x"]


def test_quiet_prints_nothing(place, api, capsys):
    assert main(["compile", "net.onnx", "--target-speedup", "2x", "--quiet"]) == 0
    assert isinstance(api.calls[0][2]["progress"], progress.Silent)
    assert capsys.readouterr() == ("", "")


def test_explain_prints_tables_and_writes_json(place, api, capsys):
    assert main(["explain", "net.onnx", "--no-time", "--json", "e.json"]) == 0
    assert api.calls[0][2] == {"shapes": {}, "measure": False, "threads": 1}
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["net: 12 nodes, 34.6 k parameters, 8.00 ms", "1 group that could shrink, with 27.0 % of the "
                         "parameters and 50.0 % of the time; with 1 inexact one 37.0 % of the parameters and 60.0 % of "
                         "the time"]
    assert any("conv1, bn1, conv2 and 1 more" in line and "50.0 %" in line for line in lines)
    assert any(line.startswith("norm") and "LayerNormalization" in line for line in lines)
    frozen = next(i for i, line in enumerate(lines) if line.startswith("graph output"))
    assert lines[frozen].split()[2:] == ["2", "5.0", "%", "10.0", "%", "30.0", "%", "logits"]
    assert lines[frozen + 1].strip() == "-> nothing"
    assert json.loads((place / "e.json").read_text())["groups"][0]["size"] == 64


def test_bench_prints_the_speedup(place, api, capsys):
    assert main(["bench", "net.onnx", "net.onnx", "--seconds", "1", "--threads", "2"]) == 0
    assert api.calls[0][1:] == (([Path("net.onnx")] * 2,), {"shapes": {}, "threads": 2, "seconds": 1.0,
                                                                "device": "host"})  # fmt: skip
    assert capsys.readouterr().out.splitlines()[2].split() == [
        "net.onnx", "5.00", "ms", "±", "0.0", "%", "2", "2.00x", "±", "0.0", "%"]


def test_bench_says_where_nothing_was_measured(place, api, capsys):
    api.does["bench"] = [Timing((10.0, 10.0), "analytic"), Timing((5.0, 5.0), "analytic")]
    assert main(["bench", "net.onnx", "net.onnx", "--device", "a100"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing was measured: these times are analytic, of a100"


@pytest.mark.parametrize(("relative", "code", "verdict"), [
    (2e-7, 0, "same"), (0.01, 1, "differs by more than 0.001"), (float("nan"), 1, "differs by more than 0.001")])
def test_verify_tells_by_its_exit_code(place, api, capsys, relative, code, verdict):
    api.does["verify"] = [OutputRow("a", 0, 0, 1), OutputRow("logits", 0.1, relative, 0.9)]
    assert main(["verify", "net.onnx", "net.onnx"]) == code
    assert api.calls[0][2] == {"shapes": {}, "samples": 8, "calibration": None}
    assert capsys.readouterr().out.splitlines()[-1].endswith(verdict)


def test_replay_writes_the_model(place, api):
    (place / "plan.json").write_text("{}")
    assert main(["replay", "plan.json", "net.onnx", "--out", "again.onnx"]) == 0
    assert api.calls == [("replay", (Path("plan.json"), Path("net.onnx")), {})]
    assert (place / "again.onnx").read_bytes() == b"again"


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("graphprune 0.")
    assert main(["compile", "--help"]) == 0
    assert "--target-speedup" in capsys.readouterr().out


def test_help_loads_nothing_heavy():
    code = ("import sys; from graphprune.cli import main; main(['--help']); "
            "print(*sorted({'numpy', 'onnx', 'onnxruntime', 'scipy', 'torch'} & sys.modules.keys()), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "\n") and "compile" in done.stdout


# -- every kind of mistake: exit code and words

TARGET = ("--target-speedup", "2x")


@pytest.mark.parametrize(("args", "message"), [
    (("compile", "nte.onnx", *TARGET), "the model does not exist\n  at:  nte.onnx\n  fix: did you mean net.onnx?"),
    (("compile", "no/net.onnx", *TARGET), "the model does not exist\n  at:  no/net.onnx\n  fix: check the path"),
    (("compile", ".", *TARGET), "the model is a folder, not a file\n  at:  .\n  fix: did you mean net.onnx?"),
    (("explain", "nope"), "the model does not exist\n  at:  nope\n  fix: check the path"),
    (("bench", "net.onnx", "."), "the model is a folder, not a file\n  at:  .\n  fix: did you mean net.onnx?"),
    (("verify", "net.onnx", "b"), "the model does not exist\n  at:  b\n  fix: check the path"),
    (("replay", "plan.json", "net.onnx"), "the plan does not exist\n  at:  plan.json\n  fix: check the path"),
    (("compile", "net.onnx"), "no target was given\n  at:  graphprune compile\n"
     "  fix: give one of --target-speedup 2x, --target-latency 5ms, --family 1.5x,2x,3x"),
    (("compile", "net.onnx", *TARGET, "--target-latency", "5ms"),
     "--target-speedup and --target-latency cannot be combined\n  at:  graphprune compile\n"
     "  fix: give one of --target-speedup 2x, --target-latency 5ms, --family 1.5x,2x,3x"),
    (("compile", "net.onnx", *TARGET, "--family", "2x"), "--target-speedup and --family cannot be combined\n"),
    (("compile", "net.onnx", "--target-speedup", "2"),
     "the target '2' has no unit\n  at:  --target-speedup 2\n  fix: did you mean 2x"),
    (("compile", "net.onnx", "--target-speedup", "0.5x"),
     "a speed-up of 0.5x makes nothing faster\n  at:  --target-speedup 0.5x\n  fix: ask for more than 1x, as 2x"),
    (("compile", "net.onnx", "--target-speedup", "1x"),
     "a speed-up of 1x makes nothing faster\n  at:  --target-speedup 1x\n  fix: ask for more than 1x, as 2x"),
    (("compile", "net.onnx", "--target-speedup", "fast"),
     "'fast' is not a target\n  at:  --target-speedup fast\n  fix: write a speed-up as 2x or a latency as 5ms"),
    (("compile", "net.onnx", "--target-latency", "-3ms"),
     "'-3ms' is not a target\n  at:  --target-latency -3ms\n  fix: write a speed-up as 2x or a latency as 5ms"),
    (("compile", "net.onnx", "--target-speedup", "5ms"),
     "--target-speedup takes a factor, not '5ms'\n  at:  --target-speedup 5ms\n"
     "  fix: did you mean --target-latency 5ms?"),
    (("compile", "net.onnx", "--target-latency", "2x"),
     "--target-latency takes a time, not '2x'\n  at:  --target-latency 2x\n  fix: did you mean --target-speedup 2x?"),
    (("compile", "net.onnx", "--family", "2x,,3x"), "'' is not a target\n  at:  --family 2x,,3x\n"),
    (("compile", "net.onnx", "--family", "2x,5ms"), "--family takes a factor, not '5ms'\n"),
    (("compile", "net.onnx", "--family", "2x,2.0x"),
     "2x is asked for twice\n  at:  --family 2x,2.0x\n  fix: name each factor once"),
    (("compile", "net.onnx", *TARGET, "--shape", "x=axb"),
     "not a shape: 'x=axb'\n  at:  --shape\n  fix: write name=1x128, one number per axis"),
    (("explain", "net.onnx", "--shape", "x"), "not a shape: 'x'\n"),
    (("compile", "net.onnx", *TARGET, "--out", "net.onnx"), "a folder is needed here, but this is a file\n"),
    (("compile", "net.onnx", *TARGET, "--threads", "0"), "Invalid value for '--threads': "),
    (("compile", "net.onnx", *TARGET, "--score", "best"), "Invalid value for '--score': "),
    (("compile", "net.onnx", "--target-spedup", "2x"), "No such option: --target-spedup"),
    (("compil", "net.onnx"), "No such command 'compil'. Did you mean 'compile'?\n"),
    (("compile",), "Missing argument 'model'\n  at:  graphprune compile\n  fix: see graphprune compile --help"),
])
def test_a_mistake_in_the_options_is_told(place, api, capsys, args, message):
    code, err = error(capsys, *args)
    assert code == 2 and err.startswith(f"error: {message}")
    assert api.calls == []
    assert [p.name for p in place.iterdir()] == ["net.onnx"]


def test_a_mistyped_option_gets_the_nearest_name(capsys):
    assert "--target-speedup" in error(capsys, "compile", "net.onnx", "--target-spedup", "2x")[1]


@pytest.mark.parametrize("out", [".", "deep/.."])
def test_the_model_is_never_written_over(place, api, capsys, out):
    (place / "deep").mkdir()
    (place / "net.onnx").rename(place / "model.onnx")
    (place / "plan.json").write_text("{}")
    for args in (("compile", "model.onnx", *TARGET, "--out", out), ("replay", "plan.json", "model.onnx")):
        code, err = error(capsys, *args)
        assert code == 2 and err.startswith("error: the result would be written over the model itself\n")
    assert (place / "model.onnx").read_bytes() == b"onnx" and api.calls == []


@pytest.mark.parametrize(("raised", "code", "message"), [
    (UsageError("unknown device 'a1000'", at="--device a1000", fix="did you mean 'a100'?"), 2,
     "error: unknown device 'a1000'\n  at:  --device a1000\n  fix: did you mean 'a100'?\n"),
    (UsageError("the model has no input 'imag'", at="x.npz, array 'imag'", fix="did you mean 'image'?"), 2,
     "error: the model has no input 'imag'\n  at:  x.npz, array 'imag'\n  fix: did you mean 'image'?\n"),
    (ModelError("not an ONNX file", at="net.onnx"), 3, "error: not an ONNX file\n  at:  net.onnx\n"),
    (InfeasibleTarget("2x is out of reach", best=1.4, fix="ask for 1.4x"), 4,
     "error: 2x is out of reach\n  fix: ask for 1.4x\n"),
    (EnvironmentFault("no runtime"), 5, "error: no runtime\n"),
    (ModelError("bad node \x1b[2J\nname [red]"), 3, "error: bad node \\x1b[2J\\nname [red]\n"),
    (MemoryError(), 5, "error: out of memory\n  fix: give smaller shapes or fewer calibration samples\n"),
    (OSError(28, "No space left on device", "/tmp/x"), 5,
     "error: no space left to write: No space left on device\n  at:  /tmp/x\n"),
    (KeyboardInterrupt(), 130, "interrupted: nothing half-written was left behind\n"),
    (FileNotFoundError(2, "No such file or directory", "weights.bin"), 5,
     "error: the system refused: No such file or directory\n  at:  weights.bin\n"),
    (RuntimeError("oops"), 1, "error: RuntimeError: oops\n  fix: this is a defect in graphprune, please report it; "
     "--debug shows the stack trace\n"),
])
def test_an_error_of_the_run_has_its_exit_code(place, api, capsys, raised, code, message):
    api.does["compile"] = raised
    got, err = error(capsys, "compile", "net.onnx", *TARGET)
    assert got == code and err.startswith(message) and "Traceback" not in err
    assert [p.name for p in place.iterdir()] == ["net.onnx"]


def test_debug_shows_the_stack_trace(place, api, capsys):
    api.does["compile"] = ModelError("not an ONNX file")
    code, err = error(capsys, "compile", "net.onnx", *TARGET, "--debug")
    assert code == 3 and "Traceback" in err and err.endswith("error: not an ONNX file\n")


def test_an_unwritable_place_is_told_before_the_work(place, api, capsys, monkeypatch):
    def refuse(self, data):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    code, err = error(capsys, "compile", "net.onnx", *TARGET, "--out", "there")
    assert code == 5 and err.startswith("error: not allowed here: Permission denied\n")
    assert api.calls == []


def test_a_full_disk_leaves_nothing(place, api, capsys, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, err = error(capsys, "compile", "net.onnx", *TARGET)
    assert code == 5 and err.startswith("error: no space left to write: No space left on device\n")
    assert [p.name for p in place.iterdir()] == ["net.onnx"]


def test_ctrl_c_of_a_real_process_exits_with_130(place):
    # A process started in the background of a script inherits an ignored SIGINT; a terminal's does not.
    code = ("import signal, sys, time, graphprune\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "def compile(*args, progress, **options):\n"
            "    with progress.stage('calibrate', 9):\n        print('ready', flush=True)\n        time.sleep(60)\n"
            "graphprune.compile = compile\n"
            "from graphprune.cli import main\n"
            "sys.exit(main(['compile', 'net.onnx', '--target-speedup', '2x']))\n")
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (130, "", "interrupted: nothing half-written was left behind\n")
    assert [p.name for p in place.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("n_rows", [1, 1500])  # fewer and more than a pipe holds
def test_a_reader_that_leaves_gets_no_stack_trace(place, n_rows):
    code = ("import sys, graphprune\nfrom graphprune.tables import *\n"
            f"rows = tuple(GroupRow(f'g{{i}}', 'channels', 8, (), 8, .1, None, True) for i in range({n_rows}))\n"
            "none = Reach(0, 0, None)\n"
            "graphprune.explain = lambda *a, **k: sys.stdin.read() or Explanation('net', 1, 1, None, none, none, rows, "
            "())\n"
            "from graphprune.cli import main\nsys.exit(main(['explain', 'net.onnx']))\n")
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, env=buffered)
    child.stdout.close()
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (1, b"")


# -- progress

def test_lines_say_when_a_stage_ends_and_what_is_left(capsys):
    now = iter([0.0, 1.0, 20.0, 21.0, 100.0])
    stream = io.StringIO()
    with progress.Lines(stream, clock=lambda: next(now)).stage("calibrate", total=4) as step:
        step()
        step()
        step()
    assert stream.getvalue() == "calibrate: 2 of 4, about 20 s left\ncalibrate: done in 1 min 40 s\n"


def test_a_stage_that_fails_is_not_called_done():
    stream = io.StringIO()
    lines = progress.Lines(stream)
    with pytest.raises(ValueError, match="x"), lines.stage("calibrate"):
        raise ValueError("x")
    lines.note("next")
    assert stream.getvalue() == "next\n"


def test_bars_work_nested_and_with_unknown_totals():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    bars = progress.choose(stream=stream)
    assert isinstance(bars, progress.Bars)
    with bars.stage("solve") as outer, bars.stage("[red]build", total=2) as inner:
        inner(2)
        bars.note("attempt [1]: 1.9x")
        outer()
    with bars.stage("certify", total=1) as step:
        step()
    for word in ("solve", "[red]build", "2/2", "attempt [1]: 1.9x", "certify", "1/1"):
        assert word in stream.getvalue()


def test_silence_is_a_progress_too():
    silent = progress.choose(quiet=True)
    with silent.stage("x", total=3) as step:
        step()
        step(2)
    silent.note("x")
