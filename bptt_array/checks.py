"""Plain values from the caller, checked before any work, and values in the words of errors.

Errors name the argument, the value, what was expected and the way out.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np


def said(value: Any, longest: int = 500) -> str:
    """Its repr in one line, of which a long one is cut; a broken one is none of our errors."""
    try:
        text = " ".join(map(str.strip, repr(value).splitlines()))
    except Exception:  # noqa: BLE001 (a repr may raise anything; of huge integers Python's own does)
        return "a huge number" if isinstance(value, int) else f"<{type(value).__name__}>"
    return text if len(text) <= longest else f"{text[:longest]}…"


def short(value: Any) -> str:
    """:func:`said` of what comes from a file, several of which stand in one line."""
    return said(value, longest=100)


#: As large as a seed may be: NumPy's own have 128 bits.
LARGEST_SEED = (1 << 128) - 1

#: Entries of the largest array that there can be.
MOST = sys.maxsize


def check_option(name: str, value: Any, options: Iterable[str]) -> None:
    options = tuple(options)
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}={said(value)} is unknown; expected one of {', '.join(map(repr, options))}")


def is_several(value: Any) -> bool:
    """Whether it has things one after the other; an array of no axis only says that it can be iterated over."""
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, of Python or NumPy: no bool, and no span of time, which NumPy has among them."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.timedelta64))


def check_count(name: str, value: Any, least: int = 1, most: int = MOST) -> int:
    """A whole number from ``least`` to ``most``; Python can write down no number that is much larger."""
    if not is_whole(value):
        raise TypeError(
            f"{name}={said(value)} is a {type(value).__name__}; expected a whole number of at least {least}"
        )
    number = int(value)
    if number < least:
        raise ValueError(f"{name}={said(number)} is too small; expected a whole number of at least {least}")
    if number > most:
        raise ValueError(f"{name}={said(number)} is too large; expected a whole number of at most {most}")
    return number


def as_float(value: Any) -> float:
    """A real number as a Python float, infinite if it is as large as no float is."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def check_number(name: str, value: Any, least: float = 0.0, below: float = math.inf) -> float:
    """A finite real number in ``[least, below)``, as a Python float (which never widens an array's dtype)."""
    if not (is_whole(value) or isinstance(value, (float, np.floating))):
        raise TypeError(f"{name}={said(value)} is a {type(value).__name__}; expected a real number")
    number = as_float(value)
    if not (math.isfinite(number) and least <= number < below):
        lower = "" if math.isinf(least) else f" of at least {least:g}"
        upper = "" if math.isinf(below) else f" and below {below:g}"
        raise ValueError(f"{name}={said(value)}; expected a finite number{lower}{upper}")
    return number


def check_path(name: str, path: Any) -> Path:
    """The name of a file, which it may not have yet."""
    if not isinstance(path, (str, os.PathLike)) or not isinstance(text := os.fspath(path), str):
        raise TypeError(f"{name}={said(path)} is a {type(path).__name__}; expected a string or a pathlib.Path")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError(f"{name}={said(text)} has characters that no name of a file has; expected another") from None
    if not text:
        raise ValueError(f"{name}='' is empty; expected the name of a file or a folder")
    if "\0" in text:
        raise ValueError(f"{name}={said(text)} has a null character; expected a name of a file")
    return Path(text)


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}={said(value)} is a {type(value).__name__}; expected True or False")


_Kind = TypeVar("_Kind", bound=type)

#: What a value that is set has to be: a check that returns it, or None where anything will do.
Settings = Mapping[str, Callable[[str, Any], Any] | None]


def only_settings(settings: Settings, otherwise: str, ways_out: Mapping[str, str]) -> Callable[[_Kind], _Kind]:
    """A class decorator: attributes that can be set have an effect; what has none is an error and not silence.

    Reading costs what it did. What the class or a base of it declares as ``name: type`` its methods may set, once.
    Classes made of it may have attributes of their own.

    Parameters
    ----------
    settings : mapping of str to function or None
        What can be set, and the check of the value, which is called with the name and the value.
    otherwise : str
        What to do in place of setting anything else.
    ways_out : mapping of str to str
        The same for some names.
    """

    def decorated(kind: _Kind) -> _Kind:
        declared = {name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})}
        properties = {name for name in ways_out if isinstance(getattr(kind, name, None), property)}
        always = properties | set(getattr(kind, "__annotations__", {}))  # in classes made of it too

        def __setattr__(self: Any, name: str, value: Any) -> None:  # noqa: N807
            if name in settings:
                check = settings[name]
                value = value if check is None else check(name, value)
            elif type(self) is kind or name in always:
                there = hasattr(kind, name) or name in vars(self)
                if there or name not in declared:
                    what = f".{name} cannot be set" if there or name in ways_out else f" has no setting {said(name)}"
                    raise AttributeError(f"{kind.__name__}{what}: {ways_out.get(name, otherwise)}")
            object.__setattr__(self, name, value)

        kind.__setattr__ = __setattr__  # type: ignore[method-assign, assignment]
        return kind

    return decorated


#: A class decorator for dataclasses whose values stay.
AS_IT_IS = only_settings({}, "it stays as it was made; make another, dataclasses.replace(…, name=value)", {})
