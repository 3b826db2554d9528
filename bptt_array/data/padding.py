"""Sequences of different lengths as one array, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.arrays import check_dense, check_dtype, is_array
from ..checks import MOST, check_count, said
from ..rnn.arguments import check_lengths
from ..rnn.conversions import HostArray
from .sequences import check_value, of_list


def pad(
    sequences: Any, *, value: float = 0.0, dtype: str = "float32", length: int | None = None
) -> tuple[HostArray, HostArray]:
    """Sequences of different lengths in one array, time first, filled up to the longest.

    Parameters
    ----------
    sequences : list of arrays (T_n, I), or of (T_n,)
        Anything that NumPy takes for real numbers: arrays of any library, lists, columns and tables of pandas,
        memory-mapped files, generators of such. Floats ``(T_n,)`` are one feature (I = 1), integers ``(T_n,)`` are
        tokens. Sequences may be empty. NaN stay what they are.
    value : float
        What stands past the end of a sequence. A network that is given the lengths does not read it.
    dtype : {"float32", "float64"}
        Of the result; that of tokens is int64.
    length : int, optional
        T, if it is not to be the length of the longest.

    Returns
    -------
    x : (T, N, I), or of tokens (T, N)
        A new array.
    lengths : (N,) int64

    Raises
    ------
    ValueError, TypeError
        If a sequence is no array of real numbers, has another number of features than the first, or does not fit into
        ``length`` or ``dtype``; the message says which one.

    Examples
    --------
    >>> import bptt_array as ba
    >>> x, lengths = ba.pad([[0.5, 1.5, 2.5], [], [3.5]])
    >>> x[..., 0]
    array([[0.5, 0. , 3.5],
           [1.5, 0. , 0. ],
           [2.5, 0. , 0. ]], dtype=float32)
    >>> lengths
    array([3, 0, 1])
    """
    dtype = check_dtype(dtype)
    column = of_list("sequences", sequences)
    lengths = np.array([len(item) for item in column.items], dtype=np.int64)
    T = int(lengths.max())
    most = MOST // (8 * len(lengths) * max((1, *column.tail)))
    if length is not None and check_count("length", length, least=0, most=most) < T:
        longest = int(lengths.argmax())
        raise ValueError(
            f"length={said(length)}, but sequences[{longest}] has {T} steps; expected at least as many, or cut them: "
            f"[one[:{int(length)}] for one in sequences]"
        )
    T = T if length is None else int(length)
    return column.filled(range(len(column)), lengths, T, dtype, value=check_value(value, column.whole, dtype)), lengths


def unpad(x: Any, lengths: Any) -> list[Any]:
    """The sequences of a padded array, each without what stands past its end: ``x[:lengths[n], n]``, as views.

    Parameters
    ----------
    x : (T, N, ...)
        An array of any library: inputs, outputs at every step.
    lengths : (N,) int

    Returns
    -------
    list of arrays (T_n, ...)

    Examples
    --------
    >>> import bptt_array as ba
    >>> [one.tolist() for one in ba.unpad(*ba.pad([[7, 8, 9], [], [5]]))]
    [[7, 8, 9], [], [5]]
    """
    if not is_array(x) or x.ndim < 2:
        what = f"of shape {tuple(x.shape)}" if is_array(x) else f"a {type(x).__name__}"
        raise TypeError(f"x is {what}; expected an array (T, N, ...), time first")
    check_dense("x", x)
    T, N = x.shape[:2]
    known = check_lengths(lengths, T, N)
    return [x[: T if known is None else int(known[n]), n, ...] for n in range(N)]
