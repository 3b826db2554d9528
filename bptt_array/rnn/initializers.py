"""Initial weights, drawn on the host so that a seed means the same model on every device."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

HostArray = np.ndarray[Any, Any]


def uniform(rng: np.random.Generator, shape: tuple[int, ...], hidden_size: int) -> HostArray:
    """``U(-1/sqrt(H), 1/sqrt(H))``, float64: the default range of PyTorch's recurrent and linear layers."""
    bound = hidden_size**-0.5
    return rng.uniform(-bound, bound, size=shape)


def orthogonal(rng: np.random.Generator, shape: tuple[int, ...]) -> HostArray:
    """``(..., H, P)`` float64, each matrix uniform among those with orthonormal columns, P of them at most H.

    All singular values are 1: the product (3.3) neither explodes nor vanishes by itself (Saxe et al., 2014).
    """
    Q, R = np.linalg.qr(rng.standard_normal(shape))
    # QR fixes signs by its algorithm; with R's diagonal made positive Q is Haar-distributed.
    signs: HostArray = np.sign(np.diagonal(R, axis1=-2, axis2=-1))
    result: HostArray = Q * signs[..., None, :]
    return result


def identity(rng: np.random.Generator, shape: tuple[int, ...]) -> HostArray:
    """``(..., H, P)`` float64, each the identity: for ReLU cells (Le, Jaitly & Hinton, 2015)."""
    return np.broadcast_to(np.eye(shape[-2], shape[-1]), shape)


#: Of ``W_hh``, and of what else multiplies the state, where it is not uniform; the biases are then zero and the other
#: weights uniform.
RECURRENT: dict[str, Callable[[np.random.Generator, tuple[int, ...]], HostArray]] = {
    "orthogonal": orthogonal,
    "identity": identity,
}
INITIALIZERS = ("uniform", *RECURRENT)


def initial_parameters(
    init: str, seed: int, shapes: dict[str, tuple[int, ...]], hidden_size: int, of_state: Collection[str] = ()
) -> dict[str, HostArray]:
    """Float64 values for every parameter of ``shapes``, drawn in that order; those named ``of_state`` as ``W_hh``."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in shapes.items():
        kind = name.rpartition(".")[2]
        if kind == "W_emb":
            params[name] = rng.standard_normal(shape)  # as torch.nn.Embedding
        elif init == "uniform":
            params[name] = uniform(rng, shape, hidden_size)
        elif kind == "W_hh" or kind in of_state:  # (..., G*H, H): each gate a matrix of its own
            gates = shape[-2] // hidden_size
            params[name] = RECURRENT[init](rng, (*shape[:-2], gates, hidden_size, shape[-1])).reshape(shape)
        elif kind.startswith("b_"):
            params[name] = np.zeros(shape)
        else:
            params[name] = uniform(rng, shape, hidden_size)
    return params
