"""In how many chunks a segment runs backward in parallel over time. No arrays in here."""

from __future__ import annotations

import math
from functools import lru_cache

#: The most steps of a chunk whose length is chosen here. Factors of less than 4 a step, either way, leave a product
#: of Jacobians in the range of float32: it neither overflows nor becomes numbers so small that a CPU is slow on them.
LONGEST_CHUNK = 64


@lru_cache(maxsize=256)
def best_chunks(S: int) -> int:
    """The number of chunks with the fewest calls that wait for each other, near ``sqrt(5/2 S)``; 1 if none has fewer.

    >>> best_chunks(1000), best_chunks(10_000), best_chunks(8)
    (50, 200, 1)
    """
    likely, least = math.isqrt(5 * S // 2), -(-S // LONGEST_CHUNK)
    fewest, most = max(2, least, likely // 2), min(S, 2 * max(least, likely))
    if fewest > most:
        return 1
    # Of those that give chunks of one length, in which the rest shrinks by more than a chunk costs, the largest.
    candidates = {min(S // length, most) for length in range(S // most, S // fewest + 1)}
    best = min((C for C in candidates if fewest <= C), key=lambda C: (calls(S, C), C))
    return best if calls(S, best) < 2 * S else 1


def calls(S: int, C: int) -> int:
    """How many calls wait for each other where elementwise functions are fused: 3 + 2 a step of a chunk, 2 a chunk,
    and 2 a step of the loop."""
    return 5 * (S // C) + 2 * C + 2 * (S % C)
