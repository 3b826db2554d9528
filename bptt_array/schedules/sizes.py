"""Sizes of memory, read and said: ``"64MiB"``."""

from __future__ import annotations

import math
import re
from typing import Any

from ..checks import MOST, is_whole, said

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{prefix}b": 1000 ** (k + 1) for k, prefix in enumerate("kmgt")}
_UNITS |= {f"{prefix}ib": 1024 ** (k + 1) for k, prefix in enumerate("kmgt")}


def parse(name: str, size: Any) -> int:
    """Bytes from a whole number of them, or from a string with a unit: kB, MB, GB, TB, KiB, MiB, GiB, TiB.

    >>> parse("memory", "64MiB"), parse("memory", "1.5 kB"), parse("memory", 10)
    (67108864, 1500, 10)
    """
    expected = "expected a number of bytes above zero, or a string with a unit such as '64MiB' or '1.5 GB'"
    if not (is_whole(size) or isinstance(size, str)):
        raise TypeError(f"{name}={said(size)} is a {type(size).__name__}; {expected}")
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", size, re.IGNORECASE | re.ASCII)
        if match is None or match[2].lower() not in _UNITS:
            raise ValueError(f"{name}={said(size)} is no size; {expected}")
        size = math.floor(min(float(match[1]) * _UNITS[match[2].lower()], 2.0 * MOST))
    if size < 1:
        raise ValueError(f"{name}={said(int(size))} is too small; {expected}")
    if size > MOST:
        raise ValueError(f"{name}={said(int(size))} is more than there can be, {MOST} bytes; leave it out for no limit")
    return int(size)


def in_words(size: int) -> str:
    """A size in three digits, for people.

    >>> in_words(67108864), in_words(1500), in_words(10)
    ('64.0 MiB', '1.46 KiB', '10 B')
    """
    if size < 1024:
        return f"{size} B"
    power = min(4, (size.bit_length() - 1) // 10)
    value = size / 1024**power
    return f"{value:.{2 - (value >= 10) - (value >= 100)}f} {'_KMGT'[power]}iB"
