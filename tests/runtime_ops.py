"""Operators of ONNX Runtime that it has no processor kernel for, as its documentation states them, for the reference
evaluator: what the tests run samples of such operators on."""

from __future__ import annotations

import math

import numpy as np
from onnx.reference.op_run import OpRun


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class BiasAdd(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, bias, skip):  # noqa: ANN
        return (x + bias + skip,)


class BiasSplitGelu(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, bias):  # noqa: ANN
        left, right = np.split(x + bias, 2, axis=-1)
        return ((left * right * (1 + np.vectorize(math.erf)(right / math.sqrt(2))) / 2).astype(x.dtype),)


class GatedRelativePositionBias(OpRun):
    op_domain = "com.microsoft"

    def _run(self, q, q_bias, positions, weight, bias, factor, num_heads=None):  # noqa: ANN
        batch, tokens, hidden = q.shape
        heads = (q + q_bias).reshape(batch, tokens, num_heads, hidden // num_heads).transpose(0, 2, 1, 3)
        gates = sigmoid((heads @ weight + bias).reshape(batch, num_heads, tokens, 2, -1).sum(-1))
        update, reset = gates[..., :1], gates[..., 1:]
        return ((update * (reset * factor - 1) + 2) * positions,)


def group_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, groups: int, channels_last: int) -> np.ndarray:
    x = x if channels_last else np.moveaxis(x, 1, -1)
    parts = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean, variance = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
    y = ((parts - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * gamma + beta
    return (y if channels_last else np.moveaxis(y, -1, 1)).astype(x.dtype)


class GroupNorm(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, gamma, beta, activation=None, channels_last=1, epsilon=None, groups=None):  # noqa: ANN
        return (group_norm(x, gamma, beta, groups, 1 if channels_last is None else channels_last),)


class SkipGroupNorm(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, gamma, beta, skip, bias=None, activation=None, channels_last=1, epsilon=None, groups=None):  # noqa: ANN
        last = 1 if channels_last is None else channels_last
        space = (slice(None), None, None) if last else (Ellipsis, None, None)
        total = x + (skip[space] if skip.ndim == 2 else skip)
        if bias is not None:
            total = total + (bias if last else bias[:, None, None])
        return group_norm(total, gamma, beta, groups, last), total


class RelativePositionBias(OpRun):
    op_domain = "com.microsoft"

    def _run(self, table, queries, keys, is_bidirectional=None, max_distance=None):  # noqa: ANN
        far = np.arange(int(keys))[None, :] - np.arange(int(queries))[:, None]
        return (table[np.clip(far, 0, len(table) - 1)].transpose(2, 0, 1)[None],)


RUNTIME_OPS = [BiasAdd, BiasSplitGelu, GatedRelativePositionBias, GroupNorm, RelativePositionBias, SkipGroupNorm]
