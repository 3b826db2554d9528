"""The second oracle: the equations, one sequence and one step at a time, with no thought of speed.

Nothing is shared with the library. Written against a NumPy-like module, so that HIPS autograd can
differentiate the very same code (the third oracle).
"""

from types import SimpleNamespace


def activation(np, name, z):
    if name == "tanh":
        return np.tanh(z)
    if name == "relu":
        return np.where(z > 0, z, 0.0)
    if name == "sigmoid":
        return 1 / (1 + np.exp(-z))
    if name == "softmax":
        e = np.exp(z)
        return e / np.sum(e)
    assert name == "identity"
    return z


def step_loss(np, name, y, v, target):
    """L_t of one step of one sequence, from ``y = g(v)`` or, where that loses digits, from ``v``."""
    if name == "mse":
        return 0.5 * np.sum((y - target) ** 2)
    if name == "cross_entropy":
        log_y = v - np.max(v) - np.log(np.sum(np.exp(v - np.max(v))))
        return -log_y[target] if target.ndim == 0 else -np.sum(target * log_y)
    if name == "binary_cross_entropy":  # -t log(s(v)) - (1 - t) log(1 - s(v))
        return np.sum(np.logaddexp(0.0, v) - target * v)
    assert name == "cubic"  # the tests' own loss
    return np.sum((y - target) ** 3) / 3


def forward(
    np,
    params,
    x,
    h_0,
    *,
    cell="tanh",
    output="identity",
    readout="every",
    lengths=None,
    frozen=None,
    stop_gradient=lambda h: h,
    truncate=None,
):
    """Outputs, last states and pre-activations of every sequence.

    ``frozen[n, t]``: a state to use in place of the computed one at the start of a window (for truncation);
    otherwise ``stop_gradient`` is applied there.
    """
    T, N = x.shape[:2]
    outputs, before_g, last, pre, starts = [], [], [], [], {}
    for n in range(N):
        h = h_0[n]
        ys, vs = [], []
        for t in range(T if lengths is None else lengths[n]):
            if truncate is not None and t and t % truncate == 0:
                h = stop_gradient(h) if frozen is None else frozen[n, t]
                starts[n, t] = h
            x_t = x[t, n] if x.ndim == 3 else np.eye(params["l0.W_xh"].shape[1])[x[t, n]]
            z = np.dot(params["l0.W_xh"], x_t) + np.dot(params["l0.W_hh"], h) + params["l0.b_h"]  # (1.1)
            h = activation(np, cell, z)
            pre.append(z)
            v = np.dot(params["W_hy"], h) + params["b_y"] if "W_hy" in params else h
            vs.append(v)
            ys.append(activation(np, output, v))  # (1.2)
        before_g.append(vs if readout == "every" else vs[-1:])
        outputs.append(ys if readout == "every" else ys[-1:])
        last.append(h)
    return SimpleNamespace(outputs=outputs, before_g=before_g, last=last, pre=pre, starts=starts)


def loss(np, params, x, h_0, target, *, loss="mse", weights=None, reduction="mean", **options):
    """(2.1)"""
    result = forward(np, params, x, h_0, **options)
    total, count = 0.0, 0
    for n, ys in enumerate(result.outputs):
        for t, y in enumerate(ys):
            where = (t, n) if options.get("readout", "every") == "every" else (n,)
            weight = 1.0 if weights is None else weights[where]
            total = total + weight * step_loss(np, loss, y, result.before_g[n][t], target[where])
            count += 1
    return total / max(count, 1) if reduction == "mean" else total


def probe(np, params, x, h_0, dy, d_last, **options):
    """``sum <dy, y> + <d_last, h_last>``: the scalar whose gradient backward(dy, dstate) is."""
    result = forward(np, params, x, h_0, **options)
    total = 0.0
    for n, ys in enumerate(result.outputs):
        if dy is not None:
            for t, y in enumerate(ys):
                total = total + np.sum(y * (dy[t, n] if options.get("readout", "every") == "every" else dy[n]))
        if d_last is not None:
            total = total + np.sum(result.last[n] * d_last[n])
    return total
