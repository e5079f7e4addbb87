"""A group's members drawn: plain SVG, or the SVG in an HTML page. Boxes are nodes, coloured by what they do with the
group; arrows are values, labelled with the axis that holds it. No script, no outside resource; names are escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from graphprune.layout import layout
from graphprune.members import BOTH, LOOKS, MAKES, OUTSIDE, PASSES, READS, Edge, Member, Members, collapsed
from graphprune.report import printable

LARGEST = 150
"""With more nodes than this, chains of nodes that only pass the group on are drawn as one."""

_COLOURS = {MAKES: ("#d7ecd9", "#2f7d3b"), PASSES: ("#eef1f6", "#8493ad"), READS: ("#fbe3c4", "#b9680c"),
            BOTH: ("#e9dcf5", "#7a46ab"), LOOKS: ("#fbdde0", "#b3404d"), OUTSIDE: ("#fafafa", "#c4c4c4")}  # fmt: skip
_WORDS = {MAKES: "makes the channels", PASSES: "passes them on", READS: "sums over them",
          BOTH: "sums over them and makes them", LOOKS: "takes a statistic or the size", OUTSIDE: "beside the group",
          }  # fmt: skip
_CHARACTER, _LINE, _PADDING, _MARGIN, _HEAD = 6.7, 15.0, 7.0, 16.0, 58.0
_LONGEST = 34
_STYLE = """
text{font:11px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#1c2430}
.title{font-size:14px;font-weight:600}.op{font-weight:700}.dim{fill:#69727f}.outside text{fill:#8d8d8d}
.arrow{fill:none;stroke:#5d6b82;stroke-width:1.3}.beside{stroke:#c4c4c4;stroke-dasharray:3 3}
.axis{font-size:10px;fill:#3f4c63;paint-order:stroke;stroke:#fff;stroke-width:4px;stroke-linejoin:round}
"""


def svg(graph: Members, title: str) -> str:
    """One picture, as the text of an .svg file; what does not fit into a box is in its hover title."""
    graph = collapsed(graph, LARGEST)
    lines = [_lines(node) for node in graph.nodes]
    sizes = [(max(len(text) for text, _ in box) * _CHARACTER + 2 * _PADDING, len(box) * _LINE + 2 * _PADDING)
             for box in lines]  # fmt: skip
    placed = layout(sizes, [(e.source, e.target) for e in graph.edges])
    legend = _legend(dict.fromkeys(node.role for node in graph.nodes))
    width = max(placed.width, len(title) * 8.6, legend[1]) + 2 * _MARGIN
    height = placed.height + 2 * _MARGIN + _HEAD
    arrows = "".join(_arrow(e, route) for e, route in zip(graph.edges, placed.routes, strict=True))
    boxes = "".join(map(_box, graph.nodes, lines, sizes, placed.centres))
    labels = _labels(graph.edges, [route[0] for route in placed.routes])
    shift = _MARGIN + max(0.0, (width - 2 * _MARGIN - placed.width) / 2)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">\n<title>{_t(title)}</title>\n<style>{_STYLE}</style>\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#5d6b82"/></marker></defs>\n<rect width="100%" height="100%" fill="#fff"/>\n'
        f'<text class="title" x="{_MARGIN}" y="{_MARGIN + 14}">{_t(title)}</text>\n{legend[0]}\n'
        f'<g transform="translate({shift:.1f} {_MARGIN + _HEAD:.1f})">\n{arrows}{boxes}{labels}</g>\n</svg>\n'
    )


def html(graph: Members, title: str) -> str:
    """The picture in a page of its own."""
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_t(title)}</title>'
            "<style>body{margin:0;background:#fff}svg{display:block;margin:auto}</style></head>\n"
            f"<body>{svg(graph, title)}</body></html>\n")  # fmt: skip


def _lines(node: Member) -> list[tuple[str, str]]:
    """What a box says: (text, style)."""
    if node.count > 1:
        return [(f"{node.count} nodes", "op"), (_short(", ".join(dict.fromkeys(node.operators)), at_end=True), "dim")]
    operators = [(op, "op") for op in node.operators]
    weights = [(str(w), "") for w in node.weights[:3]]
    more = [(f"and {len(node.weights) - 3} more", "dim")] if len(node.weights) > 3 else []
    return [*operators, (_short(node.name), "dim"), *weights, *more]


def _short(name: str, *, at_end: bool = False) -> str:
    """A name that fits into a box: the end of a name tells more than its beginning, that of a list less."""
    name = printable(name)
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 1]}…" if at_end else f"…{name[1 - _LONGEST :]}"


def _box(
    node: Member, lines: Sequence[tuple[str, str]], size: tuple[float, float], centre: tuple[float, float]
) -> str:
    fill, line = _COLOURS[node.role]
    (w, h), (x, y) = size, centre
    texts = "".join(
        f'<text class="{style}" x="{x:.1f}" y="{y - h / 2 + _PADDING + _LINE * (i + 0.76):.1f}" text-anchor="middle">'
        f"{_t(text)}</text>" for i, (text, style) in enumerate(lines)
    )  # fmt: skip
    about = [f"{node.name}: {', '.join(node.operators)}" if node.operators else node.name, _WORDS[node.role],
             *(f"{weight.name} {weight}" for weight in node.weights)]  # fmt: skip
    return (f'<g class="{"outside" if node.role == OUTSIDE else "member"}"><title>{_t(about)}</title>'
            f'<rect x="{x - w / 2:.1f}" y="{y - h / 2:.1f}" width="{w:.1f}" height="{h:.1f}" rx="5" fill="{fill}" '
            f'stroke="{line}"/>{texts}</g>\n')  # fmt: skip


def _arrow(edge: Edge, route: Sequence[tuple[float, float]]) -> str:
    """A curve that leaves and enters boxes and passes layers vertically."""
    path = f"M{route[0][0]:.1f} {route[0][1]:.1f}"
    for n, ((x0, y0), (x1, y1)) in enumerate(pairwise(route)):
        bend = (y1 - y0) / 2
        path += f"L{x1:.1f} {y1:.1f}" if n % 2 else (
            f"C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}")
    shape = " x ".join(map(str, edge.shape))
    return (f'<path class="arrow{"" if edge.axis else " beside"}" marker-end="url(#tip)" d="{path}">'
            f"<title>{_t([f'{edge.value}: {shape}', edge.axis])}</title></path>\n")  # fmt: skip


def _labels(edges: Sequence[Edge], starts: Sequence[tuple[float, float]]) -> str:
    """The axis below the box that a value leaves, once for all its users."""
    places: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for edge, start in zip(edges, starts, strict=True):
        if edge.axis:
            places.setdefault((edge.source, edge.axis), []).append(start)
    return "".join(
        f'<text class="axis" x="{sum(x for x, _ in at) / len(at):.1f}" y="{at[0][1] + 17:.1f}" text-anchor="middle">'
        f"{_t(text)}</text>\n" for (_, text), at in places.items()
    )  # fmt: skip


def _legend(roles: Sequence[str]) -> tuple[str, float]:
    """Small boxes with the meaning of their colours, and how wide all that is."""
    parts, x, y = [], _MARGIN, _MARGIN + 26
    for role in (r for r in _WORDS if r in roles):
        fill, line = _COLOURS[role]
        parts.append(f'<rect x="{x:.1f}" y="{y}" width="14" height="11" rx="2" fill="{fill}" stroke="{line}"/>'
                     f'<text class="dim" x="{x + 19:.1f}" y="{y + 10}">{_WORDS[role]}</text>')  # fmt: skip
        x += 19 + len(_WORDS[role]) * _CHARACTER + 18
    return "".join(parts), x


def _t(text: str | Sequence[str]) -> str:
    """Text for the picture; several lines where it is a sequence."""
    lines = [text] if isinstance(text, str) else [line for line in text if line]
    return "\n".join(escape(printable(line)) for line in lines)
