"""Features with mean 0 and standard deviation 1, and the way back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..backend.arrays import dtype_name, is_array, is_dense, is_plain
from ..backend.devices import backend_of
from ..backend.portable import DTYPES, Array
from ..checks import check_flag, only_settings, said
from ..rnn.arguments import check_lengths
from ..rnn.conversions import HostArray
from .sequences import has_sequences, is_list, of_list, readable

#: So many numbers are read at a time.
_BLOCK = 1 << 18
#: What is smaller than any normal number of float32 is no deviation.
_SMALLEST = float(np.finfo("float32").tiny)


@only_settings({}, "a Standardization stays as it was made; make another, Standardization(mean, std)", {})
class Standardization:
    """``(x - mean) / std`` for each feature, and back.

    Made by :meth:`of` from data, or from :attr:`config`, which goes along with a model in its file.

    Parameters
    ----------
    mean, std : list of I floats
        Deviations are above 0.

    Attributes
    ----------
    mean, std : (I,) float64
        On the host.

    Raises
    ------
    ValueError, TypeError
        If these are no such lists.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> x = 20 + 5 * np.random.default_rng(0).standard_normal((50, 8, 3), dtype="float32")
    >>> scaling = ba.Standardization.of(x)
    >>> z = scaling(x)
    >>> z.dtype, bool(abs(z.mean()) < 1e-5), bool(abs(z.std() - 1) < 1e-5)
    (dtype('float32'), True, True)
    >>> np.allclose(scaling.inverse(z), x, rtol=1e-6)
    True

    With the model:

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp(), "model.safetensors")
    >>> ba.RNN(3, 8, 3).save(path, {"scaling": scaling.config})
    >>> rnn, metadata = ba.RNN.load_with_metadata(path)
    >>> ba.Standardization(**metadata["scaling"]) == scaling
    True
    """

    mean: HostArray
    std: HostArray

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        values = {
            name: np.array(readable(name, value), "float64") for name, value in {"mean": mean, "std": std}.items()
        }
        for name, value in values.items():
            if value.ndim != 1 or value.shape != values["mean"].shape or not value.size:
                raise ValueError(f"{name} has shape {value.shape}; expected (I,), a number for each feature in both")
            wrong = np.flatnonzero(~np.isfinite(value) | ((value <= 0) & (name == "std")))
            if wrong.size:
                above = " above 0" if name == "std" else ""
                raise ValueError(f"{name}[{wrong[0]}]={value[wrong[0]]}; expected a finite number{above}")
            value.flags.writeable = False
        self.mean, self.std = values["mean"], values["std"]

    @classmethod
    def of(cls, x: Any, lengths: Any = None, *, time_major: bool = True) -> Standardization:
        """Of each feature, the mean and the standard deviation (that of all steps: divided by their number).

        Exact in float64, also where the mean is far larger than the deviation. Read in blocks, so that a memory-mapped
        file may be larger than memory.

        Parameters
        ----------
        x : array (..., I), or list of arrays (T_n, I) or (T_n,)
            Sequences ``(T, N, I)``, a series ``(S, I)`` or ``(S,)``, targets ``(N, O)``; a list as :func:`pad` takes
            it, one of numbers is a series. NaN are left out. A feature that does not vary has the deviation 1.
        lengths : (N,) int, optional
            Of the sequences in an array (T, N, I): what stands past the end of one is left out.
        time_major : bool
            False: ``x`` is (N, T, I).

        Raises
        ------
        ValueError, TypeError
            If a feature has no number, or an infinite one.
        """
        count = shift = mean = square = np.zeros(0)
        for block in _blocks(x, lengths, time_major):
            if not count.size:
                count, mean, square = np.zeros((3, block.shape[1]))
                shift = np.full(block.shape[1], np.nan)  # some number of each feature
            there = ~np.isnan(block)
            if not len(block):
                continue
            some = block[there.argmax(axis=0), np.arange(block.shape[1])]
            shift = np.where(np.isnan(shift), some, shift)
            with np.errstate(invalid="ignore", over="ignore"):  # what comes of infinite numbers is refused below
                moved = np.where(there, block - shift, 0)
                n = there.sum(axis=0)
                own = moved.sum(axis=0) / np.maximum(n, 1)
                far = np.where(there, moved - own, 0)
                # Means and squared deviations of two parts together (Chan, Golub & LeVeque, 1979).
                both, delta = np.maximum(count + n, 1), own - mean
                square = square + (far * far).sum(axis=0) + delta * delta * count * n / both
                mean = mean + delta * n / both
            count = count + n
        nothing = np.flatnonzero(count == 0)
        if nothing.size or not count.size:
            raise ValueError(f"x has no number of feature {nothing[0] if nothing.size else 0}; expected at least one")
        wrong = np.flatnonzero(~np.isfinite(mean + square))
        if wrong.size:
            raise ValueError(
                f"x has numbers of feature {wrong[0]} that are infinite, or whose squares are; expected finite ones: "
                "put NaN where one is missing"
            )
        std = np.sqrt(square / count)
        return cls((shift + mean).tolist(), np.where(std < _SMALLEST, 1, std).tolist())

    def __call__(self, x: Any, lengths: Any = None, *, time_major: bool = True) -> Any:
        """``(x - mean) / std``, a new array of the dtype of ``x`` and where it is; of a list a list of arrays.

        Parameters
        ----------
        x : array (..., I), or list of arrays (T_n, I) or (T_n,)
            Of any library and device. Of one feature (I = 1) any shape. What is of no dtype for networks becomes
            float64 (where a device has none float32). NaN stay.
        lengths : (N,) int, optional
            Of the sequences in an array (T, N, I), or (N, T, I) with ``time_major=False``: past their ends are zeros.

        Raises
        ------
        ValueError, TypeError
            If it has another number of features.
        """
        return self._each("x", x, lengths, time_major, self._forward)

    def inverse(self, y: Any, lengths: Any = None, *, time_major: bool = True) -> Any:
        """``y * std + mean``, as :meth:`__call__` of the same arguments: outputs in the units of the data."""
        return self._each("y", y, lengths, time_major, self._backward)

    @property
    def config(self) -> dict[str, list[float]]:
        """The arguments that make this one: lists of floats, which JSON gives back to the last bit."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Standardization) and self.config == other.config

    def __hash__(self) -> int:
        return hash((*self.mean, *self.std))

    def __repr__(self) -> str:
        return f"Standardization(mean={said(self.mean.tolist(), 60)}, std={said(self.std.tolist(), 60)})"

    @staticmethod
    def _forward(x: Array, high: Array, low: Array, std: Array) -> Array:
        return ((x - high) - low) / std

    @staticmethod
    def _backward(y: Array, high: Array, low: Array, std: Array) -> Array:
        return (y * std + low) + high

    def _each(self, name: str, x: Any, lengths: Any, time_major: bool, f: Any) -> Any:
        x, items = _listed(name, x, lengths)
        if items is not None:
            return [self._each(f"{name}[{n}]", one, None, True, f) for n, one in enumerate(items)]
        x = _array(name, x)
        I = len(self.mean)  # noqa: E741
        if I > 1 and tuple(x.shape[-1:]) != (I,):
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {I} features on the last axis")
        backend = backend_of(x)
        with backend.active():
            if dtype_name(x) not in DTYPES:
                x = backend.xp.astype(x, backend.dtype("float64" if backend.has_dtype("float64") else "float32"))
            # The mean in two numbers of that dtype: what is lost where one is subtracted is in the other.
            high, std = (self._in(of, name, dtype_name(x)) for of in ("mean", "std"))
            with np.errstate(under="ignore"):
                low = (self.mean - high).astype(high.dtype)
            result = f(x, *(backend.from_host(part) for part in (high, low, std)))
            if lengths is not None:
                valid = _valid(name, x, lengths, time_major)
                result = backend.xp.where(backend.from_host(valid)[..., None], result, backend.zeros((1,), x.dtype))
            return result

    def _in(self, of: str, name: str, dtype: str) -> HostArray:
        """The mean or the deviation in the dtype of the data, in which it may be too large, or nothing."""
        exact = getattr(self, of)
        with np.errstate(over="ignore", under="ignore"):
            found: HostArray = exact.astype(dtype)
        wrong = np.flatnonzero(~np.isfinite(found) | ((found == 0) & (of == "std")))
        if wrong.size:
            raise ValueError(
                f"{of}[{wrong[0]}]={exact[wrong[0]]:g} does not fit in {dtype}, the dtype of {name}; give {name} in "
                "float64"
            )
        return found


def _listed(name: str, x: Any, lengths: Any) -> tuple[Any, list[HostArray] | None]:
    """``x``, and its sequences; None of an array, and of a list of numbers, which is one too."""
    if not is_list(x):
        return x, None
    values = list(x)
    if values and not has_sequences(values):
        return values, None
    if lengths is not None:
        raise ValueError(f"lengths is given, but {name} is a list of sequences, which have theirs; leave it out")
    return values, list(of_list(name, values).items)


def _array(name: str, x: Any) -> Array:
    """Real numbers: an array as it is, if there is a backend for it, all else as one of NumPy's."""
    foreign = is_array(x) and not isinstance(x, (np.ndarray, np.generic))
    if foreign and is_dense(x) and not getattr(x, "requires_grad", False):
        try:
            if backend_of(x).xp.isdtype(x.dtype, ("bool", "integral", "real floating")):
                return x
        except TypeError:  # of JAX, say
            pass
    array = readable(name, x)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _valid(name: str, x: Array, lengths: Any, time_major: bool) -> HostArray:
    """Which steps of ``x`` are within their sequences: (T, N) or (N, T)."""
    check_flag("time_major", time_major)
    if x.ndim != 3:
        axes = "(T, N, I)" if time_major else "(N, T, I)"
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {axes} where lengths are given")
    T, N = x.shape[:2] if time_major else x.shape[1::-1]
    known = check_lengths(lengths, T, N)
    valid = np.arange(T)[:, None] < (np.full(N, T) if known is None else known)
    return valid if time_major else valid.T


def _blocks(x: Any, lengths: Any, time_major: bool) -> Iterator[HostArray]:
    """Numbers (steps, I) in float64, of valid steps, a block at a time."""
    x, arrays = _listed("x", x, lengths)
    valid = None
    if arrays is None:
        arrays = [x if is_array(x) and is_dense(x) and is_plain(x) else readable("x", x)]
        if not arrays[0].ndim:
            raise ValueError("x is a single number; expected an array (..., I) or (S,)")
        valid = None if lengths is None else _valid("x", arrays[0], lengths, time_major)
    for array in arrays:
        if array.ndim > 1 and not array.shape[-1]:
            raise ValueError(f"x has shape {tuple(array.shape)}; expected at least one feature (last axis)")
        rows = max(1, _BLOCK // max(1, math.prod(array.shape[1:])))
        for start in range(0, array.shape[0], rows):
            block = readable("x", array[start : min(start + rows, array.shape[0]), ...])
            block = block[valid[start : start + rows]] if valid is not None else block
            yield block.reshape(-1, block.shape[-1] if block.ndim > 1 else 1).astype("float64", order="C")
