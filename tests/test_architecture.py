"""The shape of the source tree: who may import whom, and that every module says what it owns."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"graphprune": "graphprune", "passes": "graphprune.passes", "backends": "graphprune.backends"}
"""Folder -> the name it is installed under."""

LAYERS = [
    {"errors"},
    {"target", "dims", "trace", "progress", "repair"},
    {"keeps"},
    {"patches", "files", "feeds", "load", "compensate", "ranges", "report", "plan", "divergence", "standing",
     "report_style", "cover", "parallel", "quiet", "devices.device", "devices.work", "devices.probes"},
    {"devices.fusion", "devices.shapes", "devices.table", "devices.roofline", "rules.base", "rounding", "tableau",
     "tables", "evaluate", "elsewhere", "cost_model", "factor"},
    {"devices", "devices.correction", "report_html", "rules.shapes", "rules.linear", "rules.norms", "cost_presence",
     "price_tables"},
    {"devices.predict", "profiling", "device_tables", "rules.segments", "rules.attention", "cost_fit",
     "descent"},
    {"rules.elementwise", "rules.fused", "rules.indexing", "rules.layout", "rules.pooling",
     "rules.quantised", "rules.recurrent", "rules.reductions", "rules.runtime_attention", "rules.signals"},
    {"rules", "causes", "layout"},
    {"infer", "edit", "groups"},
    {"unrounded"},
    {"half", "oracles", "views", "scores", "cost", "members", "branches"},
    {"calibrate", "eight_bit", "fold", "strided", "selections", "picture"},
    {"context", "align", "canonicalise", "qdq", "recentre", "smoothing"},
    {"sites", "refit", "branch_fit"},
    {"passes", "backends"},
    {"prepare", "solver", "nearness", "approach"},
    {"carry_out", "result", "search", "likeness", "dual", "summary", "inspect", "certificate"},
    {"closed_loop"},
    {"compiler"},
    {"driver"},
    {""},
    {"cli"},
]  # fmt: skip
"""Bottom up. A module imports from layers below its own; modules of passes, and of backends, may share a layer."""

FORBIDDEN = {"onnxruntime": {"backends"}, **{n: {"backends"} for n in ("torch", "tensorrt")},
             **{n: set() for n in ("models", "tools", "tests")}}
"""What the installed packages must not import -> the folders excepted."""


def sources(*folders: str) -> dict[str, Path]:
    """Module name -> file. "graphprune.driver" is called "driver", "graphprune" itself ""."""
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [*PACKAGES[folder].split("."), *path.relative_to(ROOT / folder).with_suffix("").parts]
            if parts[-1] == "__init__":
                parts.pop()
            found[".".join(parts[1:])] = path
    return found


MODULES = sources(*PACKAGES)


def imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Absolute names of everything imported, in functions too; not what only a type checker sees."""
    skipped = {
        id(inner) for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") for inner in ast.walk(node)
    }  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def owner(name: str, modules: Mapping[str, object]) -> str | None:
    """The module that an imported name lives in: "graphprune.rules.base.Op" -> "rules.base"."""
    parts = name.split(".")
    if parts[0] != "graphprune":
        return None
    parts = parts[1:]
    while parts and ".".join(parts) not in modules:
        parts.pop()
    return ".".join(parts)


def edges() -> dict[str, set[str]]:
    """Module -> modules it imports."""
    return {
        module: {o for name, _ in imports(parsed(path)) if (o := owner(name, MODULES)) is not None and o != module}
        for module, path in MODULES.items()
    }


def layer(module: str) -> int | None:
    """The layer of a module, or of the package it is in."""
    while module:
        for i, names in enumerate(LAYERS):
            if module in names:
                return i
        module = module.rpartition(".")[0]
    return next(i for i, names in enumerate(LAYERS) if "" in names)


def arrows_back(graph: Mapping[str, set[str]]) -> list[str]:
    """Imports of a module that is not in a layer below."""
    def together(a: str, b: str) -> bool:
        package = a.split(".")[0]
        return package in ("passes", "backends") and b.split(".")[0] == package

    return [f"{a} imports {b}" for a, others in graph.items() for b in sorted(others)
            if layer(b) >= layer(a) and not together(a, b)]  # fmt: skip


def test_every_module_is_in_a_layer_and_every_layer_is_of_modules_that_exist() -> None:
    named = {name for names in LAYERS for name in names}
    assert sum(map(len, LAYERS)) == len(named), "a module is in two layers"
    assert named <= set(MODULES), "no such module"
    homeless = {m for m in MODULES if m not in named and m.split(".")[0] not in ("passes", "backends")}
    assert not homeless, "say in LAYERS where these belong"


def test_imports_flow_one_way() -> None:
    assert not arrows_back(edges())


def test_no_module_imports_itself_through_others() -> None:
    assert len(list(TopologicalSorter(edges()).static_order())) == len(MODULES)


def test_an_arrow_back_and_a_cycle_are_noticed() -> None:
    assert arrows_back({"dims": {"driver"}, "driver": {"dims"}}) == ["dims imports driver"]
    assert arrows_back({"groups": {"edit"}}) == ["groups imports edit"]
    with pytest.raises(CycleError):
        list(TopologicalSorter({"backends.a": {"backends.b"}, "backends.b": {"backends.a"}}).static_order())
    late = ast.parse("def f():\n    from graphprune.driver import compile\n")
    assert [owner(name, MODULES) for name, _ in imports(late)] == ["driver"]


@pytest.mark.parametrize("library", FORBIDDEN)
def test_only_its_home_imports(library: str) -> None:
    found = [f"{path.relative_to(ROOT)}:{line}" for path in MODULES.values() for name, line in imports(parsed(path))
             if name.split(".")[0] == library and path.relative_to(ROOT).parts[0] not in FORBIDDEN[library]]
    assert not found


@pytest.mark.parametrize("name", ["passes", "backends"])
def test_nobody_makes_a_second_copy_of_an_installed_package(name: str) -> None:
    folders = (*PACKAGES, "models", "tools", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > len(MODULES)
    found = [f"{path.relative_to(ROOT)}:{line}" for path in files for imported, line in imports(parsed(path))
             if imported.split(".")[0] == name]
    assert not found, f"import graphprune.{name} instead"


@pytest.mark.parametrize("module", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in MODULES.values()])
def test_every_module_says_what_it_owns(module: Path) -> None:
    if module.stat().st_size:
        assert ast.get_docstring(parsed(module))


def commands(text: str) -> set[str]:
    """Commands of `graphprune` that a text tells people to type."""
    lines = [line for block in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text)
    return {m[1] for line in lines if (m := re.match(r"\$?\s*graphprune\s+([a-z][a-z-]*)", line))}


def test_commands_are_found_in_prose_and_blocks() -> None:
    assert commands("see `graphprune explain m.onnx`\n```sh\n$ graphprune bench a b\n```\n") == {"explain", "bench"}


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="there is no README yet")
def test_the_readme_names_only_commands_that_exist() -> None:
    import typer.main

    from graphprune.cli import app

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert commands(text), "the README shows no command"
    assert commands(text) <= set(typer.main.get_command(app).commands)
