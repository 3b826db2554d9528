"""f of (1.1) and g of (1.2): the value, and the derivative computed from the value.

Every function here knows its own derivative as a function of its *result*: tanh' = 1 - y^2,
sigmoid' = y (1 - y), ReLU' = [y > 0], and softmax's Jacobian diag(y) - y y^T. So the backward pass needs
the states and outputs that the forward pass kept, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

from ..backend.portable import Array, Backend


@dataclass(frozen=True)
class Activation:
    """An activation function over the last axis.

    Attributes
    ----------
    bound : ``(backend) -> (z)``
        f on one backend, in place: z becomes f(z). What a time loop calls.
    derivative_ : ``(backend, out, y)``
        Elementwise, ``out <- f'(z)`` from ``y = f(z)``. ``None`` for softmax, whose Jacobian is no diagonal.
    vjp : ``(backend, y, dy) -> dz``
        The product of ``dy`` with the Jacobian, ``dz = f'(z)^T dy``, as a new array (or ``dy`` itself).
    """

    name: str
    bound: Callable[[Backend], Callable[[Array], None]]
    derivative_: Callable[[Backend, Array, Array], None] | None
    vjp: Callable[[Backend, Array, Array], Array]

    def __reduce__(self) -> str:
        return self.name  # a name of this file: another process, and a copy, has the one that is there

    def value_(self, backend: Backend, z: Array) -> None:
        """In place: z becomes f(z)."""
        self.bound(backend)(z)


def _of(function: Callable[[Backend, Array], None]) -> Callable[[Backend], Callable[[Array], None]]:
    """``bound`` of a function ``(backend, z)``."""
    return lambda backend: partial(function, backend)


def _elementwise(
    name: str,
    bound: Callable[[Backend], Callable[[Array], None]],
    derivative_: Callable[[Backend, Array, Array], None],
) -> Activation:
    def vjp(backend: Backend, y: Array, dy: Array) -> Array:
        dz = backend.xp.empty_like(y)
        derivative_(backend, dz, y)
        dz *= dy
        return dz

    return Activation(name, bound, derivative_, vjp)


def _sigmoid_(backend: Backend, z: Array) -> None:
    # e = exp(-|z|) never overflows: sigmoid is 1 / (1 + e) for z >= 0 and e / (1 + e) below.
    xp = backend.xp
    e = xp.exp(-xp.abs(z))
    z[...] = xp.where(z >= 0, xp.ones_like(e), e)
    e += 1
    z /= e


def _sigmoid_derivative_(backend: Backend, out: Array, y: Array) -> None:
    out[...] = y * (1 - y)


def _softmax_(backend: Backend, z: Array) -> None:
    xp = backend.xp
    z -= xp.max(z, axis=-1, keepdims=True)
    z[...] = xp.exp(z)
    z /= xp.sum(z, axis=-1, keepdims=True)


def _softmax_vjp(backend: Backend, y: Array, dy: Array) -> Array:
    # (diag(y) - y y^T) dy = y * (dy - <y, dy>); of halves, since the difference of two large numbers may overflow
    dz = 0.5 * dy
    dz -= 0.5 * backend.xp.sum(y * dy, axis=-1, keepdims=True)
    dz *= y
    dz += dz
    return dz


def _identity_(backend: Backend, z: Array) -> None:
    """z is its own value."""


def _identity_derivative_(backend: Backend, out: Array, y: Array) -> None:
    out[...] = 1


tanh = _elementwise("tanh", attrgetter("tanh_"), lambda backend, out, y: backend.one_minus_square_(out, y))
relu = _elementwise("relu", attrgetter("relu_"), lambda backend, out, y: backend.positive_(out, y))
sigmoid = _elementwise("sigmoid", _of(_sigmoid_), _sigmoid_derivative_)
softmax = Activation("softmax", _of(_softmax_), None, _softmax_vjp)
identity = Activation("identity", _of(_identity_), _identity_derivative_, lambda backend, y, dy: dy)

#: f of (1.1)
CELL_ACTIVATIONS = {f.name: f for f in (tanh, relu)}
#: g of (1.2)
OUTPUT_ACTIVATIONS = {g.name: g for g in (identity, softmax, sigmoid, tanh)}
