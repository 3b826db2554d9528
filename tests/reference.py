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


def step_loss(np, name, y, v, target, *, class_weights=None, ignored=None, smoothing=0.0, delta=1.0):
    """L_t of one step of one sequence, from ``y = g(v)`` or, where that loses digits, from ``v``."""
    if name == "torch_mse":
        return np.mean((y - target) ** 2)
    if name == "mae":
        return np.mean(np.abs(y - target))
    if name == "huber":
        size = np.abs(y - target)
        return np.mean(np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)))
    if name == "mse":
        return 0.5 * np.sum((y - target) ** 2)
    if name == "cross_entropy":
        log_y = v - np.max(v) - np.log(np.sum(np.exp(v - np.max(v))))
        if target.ndim == 0 and target == ignored:
            return 0.0
        q = np.eye(len(v))[target] if target.ndim == 0 else target
        weights = 1.0 if class_weights is None else np.array(class_weights)
        return -np.sum(weights * ((1 - smoothing) * q + smoothing / len(v)) * log_y)
    if name == "binary_cross_entropy":  # -t log(s(v)) - (1 - t) log(1 - s(v))
        return np.sum(np.logaddexp(0.0, v) - target * v)
    assert name == "cubic"  # the tests' own loss
    return np.sum((y - target) ** 3) / 3


def step(np, cell, W, x, h, c, mask, pre):
    """h and c after one step of one sequence; ``mask`` multiplies the h that goes into ``W_hh``."""
    of_x, of_h = np.dot(W["W_xh"], x) + W.get("b_h", 0.0), np.dot(W["W_hh"], h * mask)
    if cell in ("tanh", "relu"):
        pre.append(of_x + of_h)
        return activation(np, cell, of_x + of_h), c  # (1.1)
    H = len(h)
    gate = [slice(k * H, (k + 1) * H) for k in range(4)]

    def sigmoid(k):
        return activation(np, "sigmoid", of_x[gate[k]] + of_h[gate[k]])

    if cell == "lstm":  # i, f, g, o
        c = sigmoid(1) * c + sigmoid(0) * np.tanh(of_x[gate[2]] + of_h[gate[2]])
        return sigmoid(3) * np.tanh(c), c
    if cell == "gru":  # r, z, n
        n = np.tanh(of_x[gate[2]] + sigmoid(0) * (of_h[gate[2]] + W.get("b_hn", 0.0)))
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
    reverse=False,
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
        vectors = params["W_emb"] if "W_emb" in params else np.eye(params["l0.W_xh"].shape[-1])
        below = [x[t, n] if x.ndim == 3 else vectors[x[t, n]] for t in range(valid)]
        ends = []
        for k in range(layers):
            if masks and masks["between"][k] is not None:
                below = [a * masks["between"][k][valid - 1 - t if reverse else t, n] for t, a in enumerate(below)]
            above = []
            for d in range(1 + bidirectional):
                names = [name for name in params if name.startswith(f"l{k}.")]
                W = {name.partition(".")[2]: params[name][d] if bidirectional else params[name] for name in names}
                mask = masks["recurrent"][k][d, n] if masks and masks["recurrent"][k] is not None else 1.0
                h, c, hs = h_0[k, d, n], c_0[k, d, n], {}
                for t in reversed(range(valid)) if d or reverse else range(valid):
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
        W_hy = params["W_hy" if "W_hy" in params else "W_emb"] if "b_y" in params else None
        vs = [h if W_hy is None else np.dot(W_hy, h) + params["b_y"] for h in read]
        before_g.append(vs)
        outputs.append([activation(np, output, v) for v in vs])  # (1.2)
        last.append(ends)
    return SimpleNamespace(outputs=outputs, before_g=before_g, last=last, pre=pre, starts=starts)


def step_count(target, *, class_weights=None, ignored=None, **_):
    """For how much a step counts in a mean."""
    if target.ndim or target.dtype.kind != "i":
        return 1.0
    return 0.0 if target == ignored else 1.0 if class_weights is None else class_weights[target]


def loss(np, params, x, h_0, c_0, target, *, loss="mse", of_loss=None, weights=None, reduction="mean", **options):
    """(2.1)"""
    of_loss = of_loss or {}
    result = forward(np, params, x, h_0, c_0, **options)
    total, count = 0.0, 0.0
    for n, ys in enumerate(result.outputs):
        for t, y in enumerate(ys):
            where = (t, n) if options.get("readout", "every") == "every" else (n,)
            weight = 1.0 if weights is None else weights[where]
            total = total + weight * step_loss(np, loss, y, result.before_g[n][t], target[where], **of_loss)
            count += (1.0 if reduction == "mean" else weight) * step_count(target[where], **of_loss)
    return total if reduction == "sum" else total / count if count else 0.0 * total


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


def after_updates(np, optimizer, theta, grads, rates, **settings):
    """A parameter after an update by each gradient with each learning rate, in the words of the papers."""
    of = SimpleNamespace(
        **{"momentum": 0, "nesterov": False, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0}
        | {"alpha": 0.99, "centered": False}
        | settings
    )
    u = m = v = 0
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), 1):
        if optimizer == "SGD":
            u = of.momentum * u + g
            theta = theta - lr * (g + of.momentum * u if of.nesterov else u)
        elif optimizer in ("Adam", "AdamW"):
            m, v = of.beta1 * m + (1 - of.beta1) * g, of.beta2 * v + (1 - of.beta2) * g**2
            m_hat, v_hat = m / (1 - of.beta1**t), v / (1 - of.beta2**t)
            theta = theta - lr * (m_hat / (np.sqrt(v_hat) + of.eps) + of.weight_decay * theta)
        else:
            assert optimizer == "RMSprop"
            m, v = of.alpha * m + (1 - of.alpha) * g, of.alpha * v + (1 - of.alpha) * g**2
            u = of.momentum * u + g / (np.sqrt(v - m**2 if of.centered else v) + of.eps)
            theta = theta - lr * u
    return theta
