"""Dimension types and their unification: what an axis of a tensor is made of, and which axes shrink together.

A type is a `Dim` (a variable: a run of indices free to shrink unless frozen), a `Sum` (segments side by side)
or a `Prod` (a row-major merge, outer factor first). `unify` makes two types the same by binding variables, cutting
them into segments, or splitting them into factors. Everything is monotone: variables are only refined, merged and
frozen, so the order of equations matters only where they conflict, and a conflict freezes what is left.

This file knows nothing of operators or tensors: `rules/` states the equations, `infer` runs them over a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

KINDS = ("boundary", "denied", "operator", "conflict")
"""Sorts of reasons, from what nobody can change to what follows from something else: the axis is one of the graph's
own; nothing is known of an operator; an operator says so; two axes that must be equal do not line up."""


@dataclass(frozen=True)
class Reason:
    """Why an axis cannot shrink (or cannot shrink exactly).

    node: the node that said so; of a boundary, the name of the graph's input or output. detail: of a conflict, both
    sides.
    """

    text: str
    node: str = ""
    kind: str = "operator"
    detail: str = ""

    def __str__(self) -> str:
        where = f"{self.text} {'' if self.kind == 'boundary' else 'at '}{self.node}" if self.node else self.text
        return f"{where} ({self.detail})" if self.detail else where


def root_cause(a: Reason | None, b: Reason | None) -> Reason | None:
    """Which of two reasons for the same axis to give: the one that would stay if the other went; else the first."""
    if a is None or b is None:
        return a or b
    return b if KINDS.index(b.kind) < KINDS.index(a.kind) else a


class Dim:
    """A variable over `size` indices. Flags say what is known of it; a bound Dim stands for what it is bound to.

    frozen: why it must keep its size (None: free). inexact: why removing an index is not the same as zeroing it.
    contracted: some operator sums over it, so removing indices has a meaning. dynamic: the size varies by feed.
    """

    __slots__ = ("bound", "contracted", "dynamic", "frozen", "inexact", "size")

    def __init__(self, size: int, *, like: Dim | None = None) -> None:
        self.size = size
        self.bound: Type | None = None
        self.frozen: Reason | None = like.frozen if like else None
        self.inexact: Reason | None = like.inexact if like else None
        self.contracted: bool = like.contracted if like else False
        self.dynamic: bool = like.dynamic if like else False

    def __repr__(self) -> str:
        if self.bound is not None:
            return repr(norm(self))
        return f"{self.size}{'!' if self.frozen else ''}{'~' if self.inexact else ''}#{id(self) % 9973}"


class Sum:
    """Segments side by side along one axis."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: Sequence[Type]) -> None:
        self.parts = tuple(parts)
        self.size = sum(p.size for p in self.parts)

    def __repr__(self) -> str:
        return "(" + " + ".join(map(repr, self.parts)) + ")"


class Prod:
    """A row-major merge of factors, outer first. `Prod(())` is the axis of size one."""

    __slots__ = ("factors", "size")

    def __init__(self, factors: Sequence[Type]) -> None:
        self.factors = tuple(factors)
        size = 1
        for f in self.factors:
            size *= f.size
        self.size = size

    def __repr__(self) -> str:
        return "(" + " x ".join(map(repr, self.factors)) + ")"


Type = Dim | Sum | Prod
ONE = Prod(())


def norm(t: Type) -> Type:
    """Normal form: bindings followed, nested sums and products flattened, units dropped, and an *outer* sum
    distributed over its product. An inner sum stays: `Prod(H, Sum(E, E))` is not a sum of two segments."""
    if type(t) is Dim:
        chain = []
        while type(t) is Dim and t.bound is not None:  # not by recursion: a residual stream binds thousands in a row
            chain.append(t)
            t = t.bound
        t = t if type(t) is Dim else norm(t)
        for d in chain:
            d.bound = t  # path compression; later refinements are met by the next call
        return t
    if type(t) is Sum:
        parts: list[Type] = []
        changed = False
        for part in t.parts:
            p = norm(part)
            changed |= p is not part
            if type(p) is Sum:
                parts.extend(p.parts)
                changed = True
            elif p.size:
                parts.append(p)
            else:
                changed = True
        return parts[0] if len(parts) == 1 else (Sum(parts) if changed else t)
    factors: list[Type] = []
    changed = False
    for factor in t.factors:
        f = norm(factor)
        changed |= f is not factor
        if f.size == 1:
            changed = True
        elif type(f) is Prod:
            factors.extend(f.factors)
            changed = True
        else:
            factors.append(f)
    if len(factors) == 1:
        return factors[0]
    if factors and type(factors[0]) is Sum:
        return norm(Sum([Prod((p, *factors[1:])) for p in factors[0].parts]))
    return Prod(factors) if changed else t


def leaves(t: Type) -> Iterator[Dim]:
    """The unbound variables of a type, left to right, outer first."""
    t = norm(t)
    if type(t) is Dim:
        yield t
    else:
        for child in t.parts if type(t) is Sum else t.factors:
            yield from leaves(child)


def freeze(t: Type, why: Reason, *, dynamic: bool = False) -> None:
    """Forbid every variable of `t` to shrink. Of several reasons the root cause stays."""
    for d in leaves(t):
        d.frozen = root_cause(d.frozen, why)
        d.dynamic = d.dynamic or dynamic


def mark_inexact(t: Type, why: Reason) -> None:
    """Say that removing an index of `t` changes a statistic over the axis, so it differs from zeroing."""
    for d in leaves(t):
        d.inexact = d.inexact or why


def mark_contracted(t: Type) -> None:
    for d in leaves(t):
        d.contracted = True


def wholly_frozen(t: Type) -> bool:
    return all(d.frozen for d in leaves(t))


def sizes_text(t: Type, marked: Dim | None = None) -> str:
    """How an axis is made up, in sizes: "12 x 32", "64 + 64"; one variable in brackets: "[12] x 32"."""
    t = norm(t)
    if type(t) is Dim:
        return f"[{t.size}]" if t is marked else str(t.size)
    parts = [(norm(c), sizes_text(c, marked)) for c in (t.parts if type(t) is Sum else t.factors)]
    texts = [f"({text})" if type(c) is Sum else text for c, text in parts]
    return (" + " if type(t) is Sum else " x ").join(texts) or str(t.size)


def cut(t: Type, offset: int) -> tuple[Type, Type]:
    """The first `offset` indices of `t` and the rest. Refines variables where the cut falls inside them."""
    t = norm(t)
    if offset <= 0:
        return Sum(()), t
    if offset >= t.size:
        return t, Sum(())
    if type(t) is Dim:
        left, right = Dim(offset, like=t), Dim(t.size - offset, like=t)
        t.bound = Sum((left, right))
        return left, right
    if type(t) is Sum:
        seen = 0
        for i, part in enumerate(t.parts):
            if offset < seen + part.size:
                left, right = cut(part, offset - seen)
                return norm(Sum((*t.parts[:i], left))), norm(Sum((right, *t.parts[i + 1 :])))
            seen += part.size
        raise AssertionError("offset within size")
    outer, inner = t.factors[0], Prod(t.factors[1:])
    whole, uneven = divmod(offset, inner.size)
    if not uneven:
        left, right = cut(outer, whole)
        return norm(Prod((left, inner))), norm(Prod((right, inner)))
    # An uneven cut isolates the outer index it falls into, cuts the inner type everywhere, and looks again:
    # the isolated index now contributes the inner type's own segments.
    _, rest = cut(outer, whole)
    cut(rest, 1)
    cut(inner, uneven)
    return cut(t, offset)


def unify(a: Type, b: Type, why: Reason) -> None:
    """Make `a` and `b` the same type. Sizes must be equal. A conflict freezes what is left with `why`."""
    a, b = norm(a), norm(b)
    if a is b or a.size <= 1:
        return
    if a.size != b.size:
        raise ValueError(f"sizes differ: {a!r} against {b!r} ({why})")
    if type(a) is Dim:
        _bind(a, b)
    elif type(b) is Dim:
        _bind(b, a)
    elif wholly_frozen(a) and wholly_frozen(b):
        return
    elif type(a) is Sum or type(b) is Sum:
        _unify_segments(a, b, why)
    else:
        _unify_factors(a, b, why)


def _bind(a: Dim, b: Type) -> None:
    # No occurs check: sizes are equal, and any proper tree around a Dim is larger than it.
    for d in leaves(b):
        d.frozen = root_cause(d.frozen, a.frozen)
        d.inexact = d.inexact or a.inexact
        d.contracted = d.contracted or a.contracted
        d.dynamic = d.dynamic or a.dynamic
    a.bound = b


def _unify_segments(a: Type, b: Type, why: Reason) -> None:
    left, right = [a], [b]  # stacks, next segment last
    while left and right:
        x, y = _pop_segment(left), _pop_segment(right)
        if x.size < y.size:
            y, rest = cut(y, x.size)
            right.append(rest)
        elif y.size < x.size:
            x, rest = cut(x, y.size)
            left.append(rest)
        unify(x, y, why)


def _pop_segment(stack: list[Type]) -> Type:
    t = norm(stack.pop())
    while type(t) is Sum and t.parts:
        stack.extend(reversed(t.parts))
        t = norm(stack.pop())
    return t


def _unify_factors(a: Prod, b: Prod, why: Reason) -> None:
    x, y = a.factors[0], b.factors[0]
    if x.size == y.size:
        unify(x, y, why)
        unify(Prod(a.factors[1:]), Prod(b.factors[1:]), why)
        return
    if y.size < x.size:
        a, b, x, y = b, a, y, x
    if x.size > 1 and y.size % x.size == 0 and type(y) is Dim:
        _split(y, x.size)
        unify(a, b, why)
        return
    x, y = a.factors[-1], b.factors[-1]
    if x.size == y.size and len(a.factors) > 1 and len(b.factors) > 1:
        unify(x, y, why)
        unify(Prod(a.factors[:-1]), Prod(b.factors[:-1]), why)
        return
    _conflict(a, b, why)


def _conflict(a: Type, b: Type, why: Reason) -> None:
    """Freeze two types that should be equal and cannot be made so. Where one was frozen before, that is the cause."""
    clash = Reason(why.text, why.node, "conflict", f"{sizes_text(a)} against {sizes_text(b)}")
    before = [next(leaves(t)).frozen if wholly_frozen(t) else clash for t in (a, b)]
    freeze(a, before[1])
    freeze(b, before[0])


def _split(d: Dim, outer: int) -> None:
    d.bound = Prod((Dim(outer, like=d), Dim(d.size // outer, like=d)))
