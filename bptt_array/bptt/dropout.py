"""Dropout: masks that are a function of a seed and of a place, so that nothing has to be kept or sent.

A mask holds 0 with probability p and ``1 / (1 - p)`` elsewhere (inverted dropout). Whether an entry is 0 is decided
by a hash of its place in time, batch and units, keyed by ``dropout_seed``, the network's seed and the layer. The hash
is 32-bit integer arithmetic that wraps around, in the Array API, on the device: the same bits on every device, in
segments of any length, forward and backward. Places are counted from the beginning of a call, modulo 2^32; in a batch
that several processes share out, in the whole of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend.portable import Array, Backend

# Wellons' "lowbias32" (https://nullprogram.com/blog/2018/07/31/): xor-shifts and two odd factors, written as
# signed 32-bit numbers. The key enters before the first factor and again before the second.
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - (1 << 32)
_BITS = 24  # of a hash that are compared with the rate


def _signed(word: int) -> int:
    """A 32-bit word as the signed number of the same bits."""
    return (word & 0xFFFFFFFF) - ((word & 0x80000000) << 1)


def _hash_(x: Array, key: Array) -> None:
    """Scramble int32 ``x`` in place. Signed shifts bring copies of the sign bit, which the masks take away."""
    x ^= (x >> 16) & 0xFFFF
    x *= _FIRST
    x += key
    x ^= (x >> 15) & 0x1FFFF
    x *= _SECOND
    x ^= (x >> 16) & 0xFFFF


@dataclass(frozen=True)
class Dropout:
    """The masks of one call.

    Attributes
    ----------
    rate, recurrent_rate : float
        p between layers, and of the state that goes into ``W_hh``; in [0, 1).
    call_seed, network_seed : int
        ``dropout_seed`` of the call, and the network's seed: member k of an ensemble draws as the single network with
        seed + k does.
    members : int or None
    first, batch : int
        These sequences are those from ``first`` on of a batch of so many.
    """

    backend: Backend
    dtype: Any
    rate: float
    recurrent_rate: float
    call_seed: int
    network_seed: int
    members: int | None
    first: int
    batch: int

    def between(self, layer: int, start: int, steps: int, N: int, F: int) -> Array | None:
        """Mask ``(S, [E,] N, F)`` of the input of a layer above the first, for steps from ``start`` on."""
        if not (layer and self.rate):
            return None
        return self._mask(self.rate, 2 * layer, start, (steps,), (), (N, F))

    def recurrent(self, layer: int, directions: tuple[int, ...], N: int, H: int) -> Array | None:
        """Mask ``([E,] [2,] N, H)`` of the state before every step of a layer (Gal & Ghahramani, 2016)."""
        if not self.recurrent_rate:
            return None
        return self._mask(self.recurrent_rate, 2 * layer + 1, 0, (), directions, (N, H))

    def _mask(
        self,
        rate: float,
        layer: int,
        start: int,
        before: tuple[int, ...],
        after: tuple[int, ...],
        row: tuple[int, int],
    ) -> Array:
        """Axes ``before`` the one of the members, and ``after`` it, in front of those of a ``row (N, F)``.

        Entry k of sequence n is at ``((start + o) batch + first + n) F + k``, o being the place in the other axes.
        """
        backend, xp, F = self.backend, self.backend.xp, row[-1]
        first_key, second_key = self._keys(layer, len(after) + 2)
        rows = backend.arange(math.prod(before + after), xp.int32)
        rows *= _signed(self.batch * F)
        rows += _signed((start * self.batch + self.first) * F)
        x = xp.reshape(rows, (*before, 1, *after, 1, 1)) + xp.reshape(backend.arange(math.prod(row), xp.int32), row)
        x = x + first_key
        _hash_(x, second_key)
        kept = ((x >> 8) & 0xFFFFFF) >= round(rate * 2**_BITS)
        mask = xp.astype(kept, self.dtype)
        mask *= 1 / (1 - rate)
        return mask if self.members is not None else mask[(slice(None),) * len(before) + (0, ...)]

    def _keys(self, layer: int, axes: int) -> tuple[Array, Array]:
        """Two int32 arrays ``(E, 1, ...)``, made on the device from Python's integers: nothing is sent there."""
        backend, xp = self.backend, self.backend.xp
        words = np.random.SeedSequence(self.call_seed, spawn_key=(layer,)).generate_state(3)
        first, second, third = (_signed(int(word)) for word in words)
        seeds = (backend.arange(self.members or 1, xp.int32) + (self.network_seed & 0x7FFFFFFF)) & 0x7FFFFFFF
        a = xp.reshape(seeds, (-1,) + (1,) * axes)
        a += first
        _hash_(a, xp.zeros_like(a) + third)
        b = a ^ second
        _hash_(b, a)
        return a, b
