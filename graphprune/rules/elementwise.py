"""Operators that act on each element: matching axes are equal, and a zero that stays a zero is nobody's concern,
because pruning is compared with zeroing the *readers*, not the values."""

from __future__ import annotations

from graphprune.rules.base import Op, Rule, Sample, Types, broadcast

_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitCast BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp "
    "Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu "
    "Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
_BROADCAST = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min "
    "Mod Mul Or PRelu Pow Sub Sum SwiGLU Where Xor"
)

# Samples of operators whose plain form `y = Op(x)` or `y = Op(x, w)` does not stand alone.
_TEXT = {
    "BitwiseNot": "i = Cast<to=7>(x)\nj = BitwiseNot(i)\ny = Cast<to=1>(j)",
    "BitCast": "i = BitCast<to=6>(x)\ny = BitCast<to=1>(i)",
    "Cast": "y = Cast<to=1>(x)",
    "CastLike": "y = CastLike(x, x)",
    "IsInf": "b = IsInf(x)\ny = Cast<to=1>(b)",
    "IsNaN": "b = IsNaN(x)\ny = Cast<to=1>(b)",
    "Not": "b = Greater(x, w)\nc = Not(b)\ny = Cast<to=1>(c)",
    "Pow": "p = Abs(x)\ny = Pow(p, w)",
    "Acosh": "p = Cosh(x)\ny = Acosh(p)",
    "BitShift": 'i = Cast<to=13>(x)\nj = BitShift<direction="LEFT">(i, i)\ny = Cast<to=1>(j)',
    "Mod": "y = Mod<fmod=1>(x, w)",
    "SwiGLU": "r = Relu(x)\ny = SwiGLU(x, r)",
    "Where": "b = Greater(x, w)\ny = Where(b, x, w)",
}
for _op in ("And", "Or", "Xor"):
    _TEXT[_op] = f"a = Greater(x, w)\nb = Less(x, w)\nc = {_op}(a, b)\ny = Cast<to=1>(c)"
for _op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
    _TEXT[_op] = f"i = Cast<to=7>(x)\nj = {_op}(i, i)\ny = Cast<to=1>(j)"
for _op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
    _TEXT[_op] = f"b = {_op}(x, w)\ny = Cast<to=1>(b)"
for _op, _first in (("Acos", "Sin"), ("Asin", "Sin"), ("Atanh", "Sin"), ("Log", "Abs"), ("Sqrt", "Abs")):
    _TEXT[_op] = f"p = {_first}(x)\ny = {_op}(p)"
_OPSET = {"Gelu": 20, "Swish": 24, "BitCast": 26, "SwiGLU": 27}
_OLD = {
    "Clip": (Sample("y = Clip<min=-1.0, max=1.0>(x)", (2, 6, 5), groups=(6,), opset=7),),
    "Dropout": (Sample("y, m = Dropout<ratio=0.5>(x)", (2, 6, 5), groups=(6,), opset=7),),
}


def unary(op: Op, t: Types) -> None:
    """Every output has the axes of the first input (Dropout's mask too); further inputs are scalars."""
    for y in op.outputs:
        t.set(y, t[op.inputs[0]])


def joined(op: Op, t: Types) -> None:
    """The output has the broadcast axes of all inputs."""
    t.set(op.outputs[0], broadcast(t, op, [v for v in op.inputs if v is not None]))


RULES = (
    *(
        Rule(op, unary, (Sample(_TEXT.get(op, f"y = {op}(x)"), (2, 6, 5), weights={"w": (6, 1)} if op == "Not" else {},
                                groups=(6,), opset=_OPSET.get(op, 18)), *_OLD.get(op, ())))
        for op in _UNARY.split()
    ),
    *(
        Rule(op, joined, (Sample(_TEXT.get(op, f"y = {op}(x, w)"), (2, 6, 5), weights={"w": (6, 1)}, groups=(6,),
                                 opset=_OPSET.get(op, 18)),))
        for op in _BROADCAST.split()
    ),
)
