"""Windows of one long series, as views of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import check_count, said
from ..rnn.conversions import HostArray
from .sequences import readable


def windows(series: Any, length: int, horizon: int = 1, stride: int = 1) -> tuple[HostArray, HostArray | None]:
    """All windows of a series that are whole, and the steps after each; nothing is copied, or read.

    Window w has the steps ``[stride * w, stride * w + length)``, and its target the ``horizon`` steps after those.

    Parameters
    ----------
    series : (S, I) or (S,)
        An array, a memory-mapped file, a list, a column or a table of pandas. Floats ``(S,)`` are one feature (I = 1),
        integers ``(S,)`` are tokens.
    length : int
        T, steps of a window.
    horizon : int
        Steps of a target; 0: there is none.
    stride : int
        Steps from the beginning of a window to that of the next one.

    Returns
    -------
    x : (length, W, I), or of tokens (length, W)
        W windows, time first: a view of the series, read-only, of its dtype. (What is no array of NumPy's is made one.)
    target : (horizon, W, I), or of tokens (horizon, W), or None
        The same. Of one step, for a network with ``readout="last"``, it is ``target[0]``.

    Raises
    ------
    ValueError, TypeError
        If the series is too short for one window and its target, or is no array of real numbers.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> x, target = ba.windows(np.arange(10.0), length=4, horizon=2, stride=2)
    >>> x[..., 0].T
    array([[0., 1., 2., 3.],
           [2., 3., 4., 5.],
           [4., 5., 6., 7.]])
    >>> target[..., 0].T
    array([[4., 5.],
           [6., 7.],
           [8., 9.]])

    A target for every step, the one after it, is a window that is one step longer:

    >>> longer, _ = ba.windows(np.arange(10.0), length=5, horizon=0)
    >>> x, target = longer[:-1], longer[1:]
    """
    length, stride = check_count("length", length), check_count("stride", stride)
    horizon = check_count("horizon", horizon, least=0)
    array = readable("series", series)
    if array.ndim not in (1, 2):
        raise ValueError(
            f"series has shape {array.shape}; expected (S, I), time first, or (S,): of several take one by one"
        )
    if array.ndim == 1 and array.dtype.kind not in "iu":
        array = array[:, None]
    if len(array) < length + horizon:
        raise ValueError(
            f"series has {len(array)} steps, too few for a window and its target; expected at least length + horizon "
            f"= {said(length)} + {said(horizon)} = {said(length + horizon)}"
        )

    def slid(steps: HostArray, size: int) -> HostArray:
        found = np.lib.stride_tricks.sliding_window_view(steps, size, axis=0)[::stride]  # (W, ..., size)
        return found.transpose(-1, *range(found.ndim - 1))

    x = slid(array[: len(array) - horizon], length)
    return x, slid(array[length:], horizon) if horizon else None
