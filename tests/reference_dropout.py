"""The masks of dropout, one entry at a time in Python's own integers, which never wrap: each step modulo 2^32.

Nothing is shared with the library. With :mod:`reference` the second oracle: a mask that is wrong in the library is not
wrong here too.
"""

from functools import cache
from itertools import product

import numpy as np

WORD = 0xFFFFFFFF


def lowbias32(x, key):
    """Wellons' hash, with a key that enters before the first of its two odd factors."""
    x ^= x >> 16
    x = (x * 0x7FEB352D + key) & WORD
    x ^= x >> 15
    x = x * 0x846CA68B & WORD
    return x ^ x >> 16


def between(call_seed, network_seed, rate, layer, T, N, F, *, start=0, rows=None):
    """``(T, N, F)``: what multiplies the input of a layer at the steps from ``start`` on; None if it is the first."""
    if layer == 0 or rate == 0:
        return None
    return _mask(call_seed, network_seed, rate, 2 * layer, start, T, N, F, rows)


def recurrent(call_seed, network_seed, rate, layer, D, N, H, *, rows=None):
    """``(D, N, H)``: what multiplies the state that goes into ``W_hh``, at every step."""
    return None if rate == 0 else _mask(call_seed, network_seed, rate, 2 * layer + 1, 0, D, N, H, rows)


@cache
def _mask(call_seed, network_seed, rate, place, start, outer, N, F, rows):
    """``(outer, N, F)``; ``rows``: (first, batch), where the N sequences are in a batch."""
    first, batch = rows or (0, N)
    to_a, to_b, key = (int(word) for word in np.random.SeedSequence(call_seed, spawn_key=(place,)).generate_state(3))
    a = lowbias32((network_seed % 2**31 + to_a) & WORD, key)
    b = lowbias32(a ^ to_b, a)
    mask = np.zeros((outer, N, F))
    for o, n, k in product(range(outer), range(N), range(F)):
        entry = ((start + o) * batch + first + n) * F + k
        hashed = lowbias32((entry + a) & WORD, b)
        if hashed >> 8 >= round(rate * 2**24):
            mask[o, n, k] = 1 / (1 - rate)
    mask.flags.writeable = False  # the next caller has the same
    return mask
