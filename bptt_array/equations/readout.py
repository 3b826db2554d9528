"""(1.2) ``y_t = g(W_hy h_t + b_y)`` and the direct part of ``dh_t``, (3.2).

Works on any number of states at once, ``(..., H)``: a whole segment ``(S, [E,] N, H)``, or the last state of every
sequence ``([E,] N, H)``; E are the members of an ensemble.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..backend.portable import Array, Backend
from .activations import Activation
from .cell import add
from .long_sums import Sums, add_rows
from .sums import add_weight_sum, flat


@dataclass(frozen=True)
class Readout:
    """The output layer; without ``W_hy ([E,] O, H)`` and ``b_y ([E,] O)`` the outputs are the hidden states.

    H here is what the top layer gives: with two directions twice the hidden size.
    """

    backend: Backend
    g: Activation
    W_hy: Array = None
    b_y: Array = None

    def size(self, hidden_size: int) -> int:
        """O, or H without an output layer."""
        return hidden_size if self.b_y is None else int(self.b_y.shape[-1])

    @property
    def bias(self) -> Array | None:
        """``b_y`` with an axis for the sequences where it is stacked; None without an output layer."""
        return self.b_y if self.b_y is None or self.b_y.ndim == 1 else self.b_y[..., None, :]

    def product(self, h: Array) -> Array:
        """``W_hy h``, a new array ``(..., O)``; without an output layer h itself."""
        xp = self.backend.xp
        if self.W_hy is None:
            return h
        if self.W_hy.ndim > 2:
            return xp.matmul(h, self.W_hy.mT)
        v = xp.matmul(flat(self.backend, h, 2), self.W_hy.mT)
        return self.backend.reshape(v, (*h.shape[:-1], v.shape[-1]))

    def pre_activation(self, h: Array) -> Array:
        """``v = W_hy h + b_y``, a new array ``(..., O)``."""
        return with_bias(self.backend, self.product(h), self.bias)

    def __call__(self, h: Array) -> Array:
        """``y = g(W_hy h + b_y)``, a new array ``(..., O)``."""
        y = self.pre_activation(h)
        self.g.value_(self.backend, y)
        return y

    def writing(self, rows: tuple[int, ...], steps: int) -> tuple[Callable[[Array], None], Array]:
        """The same for one step after the other, ``steps`` in all: a function ``(h)`` that writes y, and that y.

        ``rows ([E,] N)`` is the shape of h without its last axis. Not without an output layer.
        """
        backend, g_ = self.backend, self.g.bound(self.backend)
        product_, of_h = backend.multiplier(self.W_hy.mT, rows, steps)
        y, b_y = (backend.empty(of_h.shape, of_h.dtype) for _ in range(2))
        b_y[...] = self.bias
        add_ = backend.fused(add)

        def value_(h: Array) -> None:
            product_(h)
            add_(y, of_h, b_y)
            g_(y)

        return value_, y

    def backward_(self, dh: Array, dv: Array, h: Array, grads: Sums) -> None:
        """``dh <- W_hy^T dv`` (3.2); adds ``sum dv h^T`` and ``sum dv`` to the gradients of the parameters."""
        if self.W_hy is None:
            dh[...] = dv
            return
        backend, ndim = self.backend, self.W_hy.ndim
        if ndim > 2:
            backend.matmul_(dh, dv, self.W_hy)
            if dv.ndim == ndim:  # no axis of time: of the last states
                dv, h = dv[None, ...], h[None, ...]
        rows = flat(backend, dv, ndim)
        if ndim == 2:
            backend.matmul_(flat(backend, dh, 2), rows, self.W_hy)
        add_weight_sum(backend, grads, "W_hy", rows, h)
        add_rows(backend, grads, "b_y", rows)


def with_bias(backend: Backend, v: Array, b_y: Array | None) -> Array:
    """``v + b_y``, v used up; without an output layer a copy of v."""
    if b_y is None:
        return backend.copy(v)
    v += b_y
    return v
