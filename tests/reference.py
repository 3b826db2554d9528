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


def step(np, cell, W, x, h, c, mask, pre):
    """h and c after one step of one sequence; ``mask`` multiplies the h that goes into ``W_hh``."""
    of_x, of_h = np.dot(W["W_xh"], x) + W["b_h"], np.dot(W["W_hh"], h * mask)
    if cell in ("tanh", "relu"):
        pre.append(of_x + of_h)
        return activation(np, cell, of_x + of_h), c  # (1.1)
    H = len(c) if cell == "lstm" else len(h)
    gate = [slice(k * H, (k + 1) * H) for k in range(4)]

    def sigmoid(k):
        return activation(np, "sigmoid", of_x[gate[k]] + of_h[gate[k]])

    if cell == "lstm":  # i, f, g, o
        c = sigmoid(1) * c + sigmoid(0) * np.tanh(of_x[gate[2]] + of_h[gate[2]])
        out = sigmoid(3) * np.tanh(c)
        return (np.dot(W["W_hr"], out) if "W_hr" in W else out), c
    if cell == "gru":  # r, z, n
        n = np.tanh(of_x[gate[2]] + sigmoid(0) * (of_h[gate[2]] + W["b_hn"]))
        return (1 - sigmoid(1)) * n + sigmoid(1) * h, c
    if cell == "gru_reset_before":
        n = np.tanh(of_x[gate[2]] + np.dot(W["W_hn"], sigmoid(0) * h * mask))
        return (1 - sigmoid(1)) * n + sigmoid(1) * h, c
    assert cell == "update gate"  # the tests' own cell
    u = sigmoid(0)
    return u * h + (1 - u) * np.tanh(of_x[gate[1]] + of_h[gate[1]]), c


def forward(
    np,
    params,
    x,
    h_0,
    c_0,
    *,
    cell="tanh",
    layers=1,
    bidirectional=False,
    output="identity",
    readout="every",
    lengths=None,
    masks=None,
    frozen=None,
    stop_gradient=lambda h: h,
    truncate=None,
):
    """Outputs, last states and pre-activations of every sequence, of one member.

    ``h_0, c_0 (L, D, N, H)``. ``masks``: of dropout, ``between[l] (T, N, K)`` and ``recurrent[l] (D, N, H)``, or None
    for those that there are not. ``frozen[n, l, t]``: states to use in place of the computed ones at the start of a
    window (for truncation); otherwise ``stop_gradient`` is applied there.
    """
    T, N = x.shape[:2]
    outputs, before_g, last, pre, starts = [], [], [], [], {}
    for n in range(N):
        valid = T if lengths is None else lengths[n]
        inputs = params["l0.W_xh"].shape[-1]
        below = [x[t, n] if x.ndim == 3 else np.eye(inputs)[x[t, n]] for t in range(valid)]
        ends = []
        for k in range(layers):
            if masks and masks["between"][k] is not None:
                below = [a * masks["between"][k][t, n] for t, a in enumerate(below)]
            above = []
            for d in range(1 + bidirectional):
                names = [name for name in params if name.startswith(f"l{k}.")]
                W = {name.partition(".")[2]: params[name][d] if bidirectional else params[name] for name in names}
                mask = masks["recurrent"][k][d, n] if masks and masks["recurrent"][k] is not None else 1.0
                h, c, hs = h_0[k, d, n], c_0[k, d, n], {}
                for t in reversed(range(valid)) if d else range(valid):
                    if truncate is not None and t and t % truncate == 0:
                        h, c = (stop_gradient(h), stop_gradient(c)) if frozen is None else frozen[n, k, t]
                        starts[n, k, t] = h, c
                    h, c = step(np, cell, W, below[t], h, c, mask, pre)
                    hs[t] = h
                above.append(hs)
                ends.append((h, c))
            below = [np.concatenate([hs[t] for hs in above]) for t in range(valid)]
        tops = [h for h, _ in ends[-(1 + bidirectional) :]]
        read = below if readout == "every" else [np.concatenate(tops)] if valid else []
        vs = [np.dot(params["W_hy"], h) + params["b_y"] if "W_hy" in params else h for h in read]
        before_g.append(vs)
        outputs.append([activation(np, output, v) for v in vs])  # (1.2)
        last.append(ends)
    return SimpleNamespace(outputs=outputs, before_g=before_g, last=last, pre=pre, starts=starts)


def loss(np, params, x, h_0, c_0, target, *, loss="mse", weights=None, reduction="mean", **options):
    """(2.1)"""
    result = forward(np, params, x, h_0, c_0, **options)
    total, count = 0.0, 0
    for n, ys in enumerate(result.outputs):
        for t, y in enumerate(ys):
            where = (t, n) if options.get("readout", "every") == "every" else (n,)
            weight = 1.0 if weights is None else weights[where]
            total = total + weight * step_loss(np, loss, y, result.before_g[n][t], target[where])
            count += 1
    return total / max(count, 1) if reduction == "mean" else total


def probe(np, params, x, h_0, c_0, dy, dh_last, dc_last, **options):
    """``sum <dy, y> + <d_last, last>``: the scalar whose gradient backward(dy, dstate) is."""
    result = forward(np, params, x, h_0, c_0, **options)
    sides = 1 + options.get("bidirectional", False)
    total = 0.0
    for n, ys in enumerate(result.outputs):
        if dy is not None:
            for t, y in enumerate(ys):
                total = total + np.sum(y * (dy[t, n] if options.get("readout", "every") == "every" else dy[n]))
        if dh_last is not None:
            for k, (h, c) in enumerate(result.last[n]):
                where = (*divmod(k, sides), n)
                total = total + np.sum(h * dh_last[where])
                if options.get("cell") == "lstm":
                    total = total + np.sum(c * dc_last[where])
    return total
