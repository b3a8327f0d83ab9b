"""The layers of the papers in plain float64 NumPy, written apart from the package, for tests to compare it with.

Shapes: x (..., P, C) tokens; ``w`` maps a cell's parameter names to arrays (``weights``).
"""

import math

import mindspore as ms
import numpy as np

_erf = np.vectorize(math.erf, otypes=[float])


def weights(cell) -> dict:
    return {name: p.asnumpy().astype(np.float64) for name, p in cell.parameters_and_names()}


def randomize(cell, seed: int = 0, scale: float = 0.25):
    """Give every parameter, the biases and gammas too, values that matter; returns the cell, not in training."""
    random = np.random.default_rng(seed)
    for name, parameter in sorted(cell.parameters_and_names(), key=lambda pair: pair[0]):
        value = random.normal(size=parameter.shape) * scale + name.endswith(("gamma", "variance"))
        value = np.maximum(value, 0.1) if name.endswith("variance") else value
        parameter.set_data(ms.Tensor(value.astype(np.float32)))
    return cell.set_train(False)


def below(w: dict, prefix: str) -> dict:
    return {k[len(prefix) + 1:]: v for k, v in w.items() if k.startswith(prefix + ".")}


def linear(w, name, x):
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def norm(w, name, x, eps=1e-5):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w[f"{name}.gamma"] + w[f"{name}.beta"]


def gelu(x):
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def relu(x):
    return np.maximum(x, 0)


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def mlp(w, name, x, act=gelu):
    return linear(w, f"{name}.fc2", act(linear(w, f"{name}.fc1", x)))


def attention(w, queries, keys, values, heads, allowed=None, bias=None):
    """One sample: queries (Pq, C), keys and values (Pk, C); ``allowed`` (Pk,) bool; ``bias`` (h, Pq, Pk)."""
    q, k, v = linear(w, "q", queries), linear(w, "k", keys), linear(w, "v", values)
    width, out = q.shape[-1] // heads, np.zeros_like(q)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width)
        if bias is not None:
            scores = scores + bias[head]
        if allowed is not None:
            scores = np.where(allowed, scores, -np.inf)
        out[:, part] = softmax(scores) @ v[:, part]
    return linear(w, "proj", out)


def assert_near(actual, expected, rtol=1e-4):
    """The largest difference is at most ``rtol`` of the largest expected value."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    assert np.abs(actual - expected).max() <= rtol * np.abs(expected).max()
