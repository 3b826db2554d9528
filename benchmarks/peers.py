"""One training step, forward, readout, loss and every gradient, by this library and by its peers.

The task of all of them, on the same numbers: ``h_t = tanh(W_xh x_t + W_hh h_{t-1} + b_h)``, ``h_0 = 0``, or an LSTM
or GRU in its place; ``y_t = W_hy h_t + b_y``, ``L = 1/(T N) sum_{t,n} 1/2 |y_t - target_t|^2``. A peer is made for one
problem; ``run()`` does the step, ``gradients()`` returns its gradients as NumPy arrays under this library's names.
Whatever happens once per network (compilation, copies of the weights) is done in the constructor.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

import bptt_array as ba


class Shape(NamedTuple):
    """Time steps, sequences, inputs, hidden units, outputs."""

    T: int
    N: int
    I: int  # noqa: E741
    H: int
    O: int  # noqa: E741

    def __str__(self):
        return "({}, {}, {}, {}, {})".format(*self)


@dataclass(frozen=True)
class Problem:
    """Data and initial weights, the same for every peer; of an ensemble of ``members``, which share the data."""

    shape: Shape
    dtype: str = "float32"
    cell: str = "tanh"
    members: int | None = None

    def _normal(self, seed, *shape):
        return np.random.default_rng(seed).standard_normal(shape).astype(self.dtype)

    @cached_property
    def x(self):
        return self._normal(0, self.shape.T, self.shape.N, self.shape.I)

    @cached_property
    def target(self):
        return self._normal(1, self.shape.T, self.shape.N, self.shape.O)

    @cached_property
    def network(self):
        _, _, I, H, O = self.shape  # noqa: E741
        return ba.RNN(I, H, O, cell=self.cell, members=self.members, dtype=self.dtype, seed=2)

    @cached_property
    def params(self):
        return {name: value.copy() for name, value in self.network.params.items()}


class Ours:
    """``bptt_array`` on the CPU; ``network``: in place of the problem's."""

    def __init__(self, problem, network=None):
        self.problem, self.rnn = problem, network or problem.network

    def run(self):
        return self.rnn.loss_and_grad(self.problem.x, self.problem.target, "mse")

    def gradients(self):
        return self.run()[1].params


def _of_rows(W, N, T):
    """A function ``(a)`` that multiplies N rows by W, each product in one piece, on as many threads as BLAS takes.

    For many steps W is copied once, in the order that it is read in. Rows that lie 2, 4, 6, ... KiB apart fall on each
    other in the cache, and so have a gap between them.
    """

    def empty(rows, columns):
        apart = columns * W.itemsize >= 2048 and columns * W.itemsize % 1024 == 0
        return np.empty((rows, columns + 64 // W.itemsize * apart), W.dtype)[:, :columns]

    out = empty(N, W.shape[1])
    if T * N >= 128:
        copy = empty(*W.shape)
        copy[...] = W
        W = copy
    return lambda a: np.matmul(a, W, out=out)


class Products:
    """The matrix products of a step, each in one piece, in our segments, and nothing else."""

    def __init__(self, problem):
        (T, N, I, H, O), params = problem.shape, problem.params  # noqa: E741
        rnn, itemsize = problem.network, np.dtype(problem.dtype).itemsize
        length = ba.schedules.instructions.segment_length(T, N * H * itemsize, rnn.backend.segment_bytes)
        self.segments = [stop - start for start, stop in ba.schedules.instructions.Segments(0, T, length)]
        rows, GH = max(self.segments) * N, rnn.architecture.cell.gates * H
        self.N = N

        def some(*shape):
            return np.full(shape, 0.01, problem.dtype)

        self.forward_, self.backward_ = (_of_rows(W, N, T) for W in (params["l0.W_hh"].T, params["l0.W_hh"]))
        self.W_xh_T, self.W_hy_T, self.W_hy = params["l0.W_xh"].T, params["W_hy"].T, params["W_hy"]
        self.x, self.h, self.dh = some(rows, I), some(rows, H), some(rows, H)
        self.z, self.v, self.ones = some(rows, GH), some(rows, O), some(1, rows)
        self.dW_xh, self.dW_hh, self.dW_hy = some(GH, I), some(GH, H), some(O, H)
        self.db_h, self.db_y = some(1, GH), some(1, O)
        self.dn, self.db_hn = (some(rows, H), some(1, H)) if "l0.b_hn" in params else (None, None)

    def run(self):
        N, x, h, dh, z, v, ones = self.N, self.x, self.h, self.dh, self.z, self.v, self.ones
        matmul, forward_, backward_ = np.matmul, self.forward_, self.backward_
        for S in self.segments:
            rows = S * N
            matmul(x[:rows], self.W_xh_T, out=z[:rows])
            for i in range(0, rows, N):
                forward_(h[i : i + N])
        for S in self.segments:
            rows = S * N
            matmul(h[:rows], self.W_hy_T, out=v[:rows])
            matmul(v[:rows], self.W_hy, out=dh[:rows])
            matmul(v[:rows].T, h[:rows], out=self.dW_hy)
            matmul(ones[:, :rows], v[:rows], out=self.db_y)
            for i in range(0, rows, N):
                backward_(z[i : i + N])
            matmul(z[:rows].T, x[:rows], out=self.dW_xh)
            matmul(z[:rows].T, h[:rows], out=self.dW_hh)
            matmul(ones[:, :rows], z[:rows], out=self.db_h)
            if self.dn is not None:  # the GRU's second bias
                matmul(ones[:, :rows], self.dn[:rows], out=self.db_hn)


class Textbook:
    """BPTT as it is usually written in NumPy: a list of states, every sum taken inside the loop over time."""

    def __init__(self, problem):
        self.problem = problem

    def gradients(self):
        return self.run()[1]

    def run(self):
        (T, N, _, H, _), params = self.problem.shape, self.problem.params
        x, target = self.problem.x, self.problem.target
        W_xh, W_hh, b_h = params["l0.W_xh"], params["l0.W_hh"], params["l0.b_h"]
        W_hy, b_y = params["W_hy"], params["b_y"]
        hs, ys = [np.zeros((N, H), x.dtype)], []
        for t in range(T):
            hs.append(np.tanh(x[t] @ W_xh.T + hs[-1] @ W_hh.T + b_h))
            ys.append(hs[-1] @ W_hy.T + b_y)
        grads = {name: np.zeros_like(value) for name, value in params.items()}
        loss, dh_after = 0.0, np.zeros((N, H), x.dtype)
        for t in reversed(range(T)):
            dy = ys[t] - target[t]
            loss += 0.5 * np.sum(dy * dy) / (T * N)
            dy /= T * N
            grads["W_hy"] += dy.T @ hs[t + 1]
            grads["b_y"] += dy.sum(axis=0)
            dz = (dy @ W_hy + dh_after) * (1 - hs[t + 1] ** 2)
            grads["l0.W_xh"] += dz.T @ x[t]
            grads["l0.W_hh"] += dz.T @ hs[t]
            grads["l0.b_h"] += dz.sum(axis=0)
            dh_after = dz @ W_hh
        return loss, grads


#: What torch.nn calls the layer of a cell.
TORCH_LAYERS = {"tanh": "RNN", "lstm": "LSTM", "gru": "GRU"}


def into_torch(network, layer, linear):
    """Copy the parameters of our network into a ``torch.nn.RNN``, ``LSTM`` or ``GRU`` and a ``Linear``.

    There is one bias as in (1.1), and of a GRU the second one of its last gate. Returns theirs by our names.
    """
    import torch

    state = {name: torch.from_numpy(value) for name, value in network.to_torch_state_dict("0.", "1.").items()}
    torch.nn.ModuleList([layer, linear]).load_state_dict(state)
    theirs = {
        "l0.W_xh": layer.weight_ih_l0,
        "l0.W_hh": layer.weight_hh_l0,
        "l0.b_h": layer.bias_ih_l0,
        "W_hy": linear.weight,
        "b_y": linear.bias,
    }
    if "l0.b_hn" in network.params:
        return theirs | {"l0.b_hn": layer.bias_hh_l0}
    layer.bias_hh_l0.requires_grad_(False)
    return theirs


class Torch:
    """``torch.nn.RNN``, ``LSTM`` or ``GRU`` and a ``Linear`` with autograd; ``device="cuda"`` is cuDNN.

    ``network``: ours in place of the problem's.
    """

    def __init__(self, problem, device="cpu", network=None):
        import torch

        T, N, I, H, O = problem.shape  # noqa: E741
        self.torch, self.scale = torch, 0.5 / (T * N)
        like = {"device": device, "dtype": getattr(torch, problem.dtype)}
        self.layer = getattr(torch.nn, TORCH_LAYERS[problem.cell])(I, H, **like)
        self.linear = torch.nn.Linear(H, O, **like)
        self.parameters = into_torch(network or problem.network, self.layer, self.linear)
        self.x = torch.from_numpy(problem.x).to(device)
        self.target = torch.from_numpy(problem.target).to(device)

    def run(self):
        self.layer.zero_grad()
        self.linear.zero_grad()
        hs, _ = self.layer(self.x)
        loss = self.torch.square(self.linear(hs) - self.target).sum() * self.scale
        loss.backward()

    def gradients(self):
        self.run()
        grads = {name: parameter.grad.cpu().numpy() for name, parameter in self.parameters.items()}
        if "l0.b_hn" in grads:  # torch has a second bias for the other two gates as well
            grads["l0.b_hn"] = grads["l0.b_hn"][-self.layer.hidden_size :]
        return grads


class Jax:
    """``jax.lax.scan`` and ``value_and_grad`` under ``jit``; the input is projected outside the scan."""

    def __init__(self, problem):
        import jax

        if problem.dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        jnp = jax.numpy
        _, N, _, H, _ = problem.shape

        def loss(params, x, target):
            projected = x @ params["l0.W_xh"].T + params["l0.b_h"]

            def step(h, z):
                h = jnp.tanh(z + h @ params["l0.W_hh"].T)
                return h, h

            _, hs = jax.lax.scan(step, jnp.zeros((N, H), x.dtype), projected)
            y = hs @ params["W_hy"].T + params["b_y"]
            return 0.5 * jnp.sum((y - target) ** 2) / (x.shape[0] * x.shape[1])

        self.jax = jax
        self.arguments = jax.device_put((problem.params, problem.x, problem.target))
        self.compiled = jax.jit(jax.value_and_grad(loss)).lower(*self.arguments).compile()

    def run(self):
        return self.jax.block_until_ready(self.compiled(*self.arguments))

    def gradients(self):
        return {name: np.asarray(value) for name, value in self.run()[1].items()}


class Autograd:
    """HIPS autograd of the same loop."""

    def __init__(self, problem):
        import autograd.numpy as anp
        from autograd import value_and_grad

        (T, N, _, H, _), x, target = problem.shape, problem.x, problem.target

        def loss(params):
            projected = anp.dot(x, params["l0.W_xh"].T) + params["l0.b_h"]
            h, hs = anp.zeros((N, H), x.dtype), []
            for t in range(T):
                h = anp.tanh(projected[t] + anp.dot(h, params["l0.W_hh"].T))
                hs.append(h)
            y = anp.dot(anp.stack(hs), params["W_hy"].T) + params["b_y"]
            return 0.5 * anp.sum((y - target) ** 2) / (T * N)

        self.params, self.function = problem.params, value_and_grad(loss)

    def run(self):
        return self.function(self.params)

    def gradients(self):
        return self.run()[1]


#: Name, class and what has to be installed; ours first, in the order of tables.
PEERS = {
    "bptt_array": (Ours, None),
    "products alone": (Products, None),
    "torch.nn.RNN": (Torch, "torch"),
    "JAX scan, jit": (Jax, "jax"),
    "textbook NumPy": (Textbook, None),
    "HIPS autograd": (Autograd, "autograd"),
}

#: Those that know every cell.
PEERS_OF_CELLS = {
    "bptt_array": (Ours, None),
    "products alone": (Products, None),
    "torch": (Torch, "torch"),
}


def installed(among=PEERS):
    """Names of the peers that can run here."""
    return [name for name, (_, needs) in among.items() if needs is None or importlib.util.find_spec(needs)]


def make(name, problem, among=PEERS):
    """The peer of that name for a problem."""
    return among[name][0](problem)


def gradient_difference(grads, expected):
    """Largest difference of any entry, over the largest entry of the same gradient; same names and shapes."""
    if set(grads) != set(expected):
        raise ValueError(f"gradients of {sorted(grads)}; expected {sorted(expected)}")
    worst = 0.0
    for name, value in expected.items():
        if grads[name].shape != value.shape:
            raise ValueError(f"gradient of {name} has shape {grads[name].shape}; expected {value.shape}")
        difference = np.max(np.abs(grads[name] - value)) / np.max(np.abs(value))
        worst = float(np.maximum(worst, difference))  # which keeps what is no number
    return worst
