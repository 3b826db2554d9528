"""Reading from the end: one direction alone, or the second of two in one loop.

A network whose one direction reads from the end is fed that way, and so is what its outputs are compared with
(:meth:`Batch.feed`): its steps are those of reading. What comes out of it is turned around in the end.

A layer with two directions is one stacked layer, with an axis of 2 before N. Its second half is fed the valid part of
every sequence back to front, padding stays behind it, and what it gives is turned around again: the same gather
each way, since turning twice changes nothing, and backward too, since a gather that turns is its own transpose.
"""

from __future__ import annotations

from ..backend.portable import Array, Backend
from .padding import Padding


def reverse(backend: Backend, a: Array, padding: Padding | None) -> Array:
    """``a (T, ..., N, F)`` with the valid part of every sequence back to front."""
    return backend.xp.flip(a, axis=0) if padding is None else padding.turned(a, 0, a.shape[0])


def in_time(backend: Backend, a: Array, padding: Padding | None) -> Array:
    """What a network that reads from the end has of every step it reads, ``(T, ..., N, F)``, in the order of time."""
    turned = reverse(backend, a, padding)
    return backend.copy(turned) if padding is None else turned


def both(backend: Backend, x: Array, padding: Padding | None) -> Array:
    """``x (T, ..., N, F)`` as the two directions read it, ``(T, ..., 2, N, F)``."""
    result = backend.empty((*x.shape[:-2], 2, *x.shape[-2:]), x.dtype)
    result[..., 0, :, :] = x
    result[..., 1, :, :] = reverse(backend, x, padding)
    return result


def of_both(backend: Backend, dx: Array, padding: Padding | None) -> Array:
    """The gradient of :func:`both`: ``dx (T, ..., 2, N, F)`` to ``(T, ..., N, F)``."""
    result: Array = dx[..., 0, :, :] + reverse(backend, dx[..., 1, :, :], padding)
    return result


def merge(backend: Backend, h: Array, padding: Padding | None) -> Array:
    """What the two directions say of every step: ``h (T, ..., 2, N, H)`` to ``(T, ..., N, 2H)``."""
    H = h.shape[-1]
    result = backend.empty((*h.shape[:-3], h.shape[-2], 2 * H), h.dtype)
    result[..., :H] = h[..., 0, :, :]
    result[..., H:] = reverse(backend, h[..., 1, :, :], padding)
    return result


def split_(backend: Backend, dh: Array, d_merged: Array, padding: Padding | None) -> None:
    """The gradient of :func:`merge`: writes ``dh (T, ..., 2, N, H)`` from ``d_merged (T, ..., N, 2H)``."""
    H = dh.shape[-1]
    dh[..., 0, :, :] = d_merged[..., :H]
    dh[..., 1, :, :] = reverse(backend, d_merged[..., H:], padding)


def merge_last(backend: Backend, h: Array) -> Array:
    """Last states of both directions, ``(..., 2, N, H)``, side by side: ``(..., N, 2H)``."""
    xp = backend.xp
    return xp.concat([h[..., 0, :, :], h[..., 1, :, :]], axis=-1)


def split_last(backend: Backend, d_merged: Array) -> Array:
    """The gradient of :func:`merge_last`: ``(..., N, 2H)`` to ``(..., 2, N, H)``."""
    H = d_merged.shape[-1] // 2
    return backend.xp.stack([d_merged[..., :H], d_merged[..., H:]], axis=-3)
