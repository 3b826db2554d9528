"""What comes in from the caller, checked before any work. Errors name argument, value, expectation, way out."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import array_api_compat
import numpy as np

from .backend import DTYPES, Backend, backend_of, is_plain
from .cells import CELLS, Cell
from .losses import FUSED_LOSSES, LOSSES
from .state import State
from .wording import said

if TYPE_CHECKING:
    from .architecture import Architecture


#: Entries that are checked at a time.
_BLOCK = 1 << 18

#: As large as a seed may be: NumPy's own have 128 bits.
LARGEST_SEED = (1 << 128) - 1

#: Entries of the largest array that there can be.
MOST = sys.maxsize


@cache  # NumPy makes the name anew each time, in microseconds
def _numpy_name(dtype: np.dtype[Any]) -> str:
    return dtype.name


def dtype_name(array: Any) -> str:
    """``"float32"`` for an array of any namespace, in any byte order."""
    return _numpy_name(array.dtype) if isinstance(array.dtype, np.dtype) else str(array.dtype).rpartition(".")[2]


def is_array(value: Any) -> bool:
    """An array of any namespace; some things only say that they are."""
    return bool(array_api_compat.is_array_api_obj(value)) and hasattr(value, "dtype") and hasattr(value, "ndim")


def is_integer(array: Any) -> bool:
    return dtype_name(array).startswith(("int", "uint"))


def check_option(name: str, value: Any, options: Iterable[str]) -> None:
    options = tuple(options)
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}={said(value)} is unknown; expected one of {', '.join(map(repr, options))}")


def check_count(name: str, value: Any, least: int = 1, most: float = math.inf) -> int:
    """A whole number from ``least`` to ``most``."""
    if isinstance(value, (bool, np.timedelta64)) or not isinstance(value, (int, np.integer)):
        raise TypeError(
            f"{name}={said(value)} is a {type(value).__name__}; expected a whole number of at least {least}"
        )
    number = int(value)
    if number < least:
        raise ValueError(f"{name}={said(number)} is too small; expected a whole number of at least {least}")
    if number > most:
        raise ValueError(f"{name}={said(number)} is too large; expected a whole number of at most {most}")
    return number


def check_number(name: str, value: Any, least: float = 0.0, below: float = math.inf) -> float:
    """A finite real number in ``[least, below)``, as a Python float (which never widens an array's dtype)."""
    if isinstance(value, (bool, np.timedelta64)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}={said(value)} is a {type(value).__name__}; expected a real number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
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
    if "\0" in text:
        raise ValueError(f"{name}={said(text)} has a null character; expected a name of a file")
    return Path(text)


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}={said(value)} is a {type(value).__name__}; expected True or False")


def check_cell(cell: Any) -> Cell:
    """A cell of the library by name, or one of the caller's own as it is."""
    if isinstance(cell, type) and issubclass(cell, Cell):
        raise TypeError(f"cell={cell.__name__} is a class; expected one of its objects: cell={cell.__name__}()")
    if not isinstance(cell, Cell):
        check_option("cell", cell, CELLS)
        return CELLS[cell]
    if cell.name in CELLS and type(cell) is not type(CELLS[cell.name]):  # files and PyTorch go by the name
        raise ValueError(
            f"cell is a {type(cell).__name__} with the name {cell.name!r}, which is the library's; give it a name of "
            "its own"
        )
    if cell.in_place and (cell.gates, cell.keeps) != (1, 0):
        raise ValueError(
            f"{cell!r} works in place with gates={cell.gates} and keeps={cell.keeps}; expected 1 and 0: rows of the "
            "states have room for nothing else"
        )
    wrong = {name: shape for name, shape in cell.own_parameters(2).items() if len(shape) != 1}
    if wrong:
        raise ValueError(f"{cell!r} has own parameters of shapes {wrong}; expected vectors (M,)")
    return cell


def check_dropout_seed(seed: Any) -> int | str | None:
    """A whole number, None or ``"off"``."""
    if seed is None or (isinstance(seed, str) and seed == "off"):
        return seed
    if isinstance(seed, str):
        raise ValueError(f"dropout_seed={said(seed)} is unknown; expected a whole number of at least 0, or 'off'")
    return check_count("dropout_seed", seed, least=0, most=LARGEST_SEED)


def check_dropout_rows(rows: Any, N: int) -> tuple[int, int]:
    """``(first, batch)``: where N sequences are in a batch; None: they are all of it."""
    if rows is None:
        return 0, N
    if not isinstance(rows, (tuple, list)) or len(rows) != 2:
        raise TypeError(
            f"dropout_rows={said(rows)} is no pair; expected (first, batch), the place of these N={N} sequences in a "
            "batch, or None"
        )
    first, batch = (check_count(f"dropout_rows[{k}]", row, least=0) for k, row in enumerate(rows))
    if first + N > batch:
        raise ValueError(
            f"dropout_rows={said((first, batch))}, but there are N={N} sequences; expected first + N to be at most "
            "batch"
        )
    return first, batch


def check_dtype(dtype: Any, argument: str = "dtype") -> str:
    """``"float32"`` or ``"float64"`` from a name or anything NumPy takes for a dtype."""
    try:
        name = dtype if dtype is None or isinstance(dtype, str) else np.dtype(dtype).name
    except Exception:  # noqa: BLE001 (NumPy raises many kinds for what is no dtype)
        name = None
    if name not in DTYPES:
        raise ValueError(f"{argument}={said(dtype)} is not supported; expected 'float32' or 'float64'")
    return name


def host_array(name: str, value: Any, expected: str) -> np.ndarray[Any, Any]:
    """A NumPy array of anything that NumPy makes one of."""
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name}={said(value)} is ragged; expected {expected}") from None
    except Exception as error:  # noqa: BLE001 (raised by what there is inside, which may be anything)
        kind = type(value).__name__
        raise TypeError(f"{name} is a {kind} that cannot be read as an array ({error}); expected {expected}") from None


def on_host(name: str, array: Any) -> np.ndarray[Any, Any]:
    """A NumPy copy of an array of any namespace."""
    check_plain(name, array)
    try:
        return backend_of(array).to_host(array)
    except Exception as error:  # noqa: BLE001 (other libraries raise what they like for what they cannot export)
        kind = type(array).__name__
        raise TypeError(f"{name} is a {kind} that cannot be read as a NumPy array ({error})") from None


def check_plain(name: str, array: Any) -> None:
    """No array with a mask, a matrix' rules or somebody else's gradients."""
    if not is_plain(array):
        raise TypeError(
            f"{name} is a {type(array).__name__}; expected a plain array (for masks see lengths and weights)"
        )
    if getattr(array, "requires_grad", False):
        raise TypeError(f"{name} is tracked by torch's autograd, which is not used here; pass {name}.detach()")


def repeats_itself(array: Any) -> bool:
    """Whether entries of the array share their memory, as those of ``broadcast_to`` do: no place to write to."""
    stride = getattr(array, "stride", None)  # torch's
    strides = stride() if callable(stride) else getattr(array, "strides", ())
    return any(step == 0 and size > 1 for step, size in zip(strides, array.shape, strict=False))


def check_place(name: str, array: Any, backend: Backend, *, host: bool) -> None:
    """An array of the backend's device; with ``host``, a NumPy array will do."""
    check_plain(name, array)
    if backend.owns(array) or (host and array_api_compat.is_numpy_array(array)):
        return
    kind = f"{type(array).__module__.partition('.')[0]}.{type(array).__name__}".removeprefix("builtins.")
    if hasattr(array, "device"):
        kind += f" on {array.device}"
    expected = f"{backend.xp.__name__.rpartition('.')[2]} array on {backend.name}"
    if host and backend.name != "cpu":
        expected += " or a NumPy array"
    raise TypeError(
        f"{name} is a {kind}, but this RNN is on {backend.name}: expected a {expected}; use rnn.asarray({name})"
    )


def check_float(name: str, array: Any, dtype: str) -> None:
    if dtype_name(array) != dtype:
        raise TypeError(
            f"{name} has dtype {dtype_name(array)}, but this RNN computes in {dtype}: "
            f"use rnn.asarray({name}), or build the RNN with another dtype"
        )


def check_shape(name: str, array: Any, shape: tuple[int, ...], axes: str) -> None:
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(array.shape)}; expected {axes} = {shape}")


def check_floats(
    name: str, array: Any, shape: tuple[int, ...], axes: str, backend: Backend, dtype: str, *, host: bool
) -> None:
    """An array of the right place, dtype and shape."""
    check_place(name, array, backend, host=host)
    check_float(name, array, dtype)
    check_shape(name, array, shape, axes)


def check_state(name: str, state: Any, architecture: Architecture, N: int, backend: Backend, *, host: bool) -> None:
    """A :class:`State` of N sequences: ``h (L, D, [E,] N, H)``, and ``c`` where the cell has one."""
    names, cell = architecture.cell.states, architecture.cell.name
    if not isinstance(state, State):
        raise TypeError(f"{name} is a {type(state).__name__}; expected bptt_array.State({_fields(names)})")
    if state.c is not None and "c" not in names:
        raise ValueError(f"{name}.c is given, but the cell {cell!r} has no cell state; expected State(h=…)")
    if state.c is None and "c" in names:
        raise ValueError(f"{name}.c is missing; the cell {cell!r} has a cell state: expected State(h=…, c=…)")
    shape, axes = architecture.states_shape(N), architecture.states_axes
    for field in names:
        check_floats(f"{name}.{field}", getattr(state, field), shape, axes, backend, architecture.dtype, host=host)


def _fields(names: Iterable[str]) -> str:
    return ", ".join(f"{name}=…" for name in names)


def check_input_grad(input_grad: Any, x: Any) -> None:
    check_flag("input_grad", input_grad)
    if input_grad and is_integer(x):
        raise ValueError("input_grad=True, but x holds integer tokens, which have no gradient; leave input_grad=False")


def check_x(
    x: Any, input_size: int, members: int | None, backend: Backend, dtype: str, *, host: bool
) -> tuple[int, int]:
    """``x (T, N, I)`` of the model's dtype or tokens ``(T, N)``; returns T and N.

    With ``members`` E also ``(T, E, N, I)`` or ``(T, E, N)``.
    """
    check_place("x", x, backend, host=host)
    if is_integer(x):
        per_member = members is not None and x.ndim == 3
        if x.ndim != 2 and not per_member:
            more = "" if members is None else " or, for every member its own, (T, E, N)"
            raise ValueError(f"x has integers in shape {tuple(x.shape)}; expected tokens of shape (T, N){more}")
    else:
        check_float("x", x, dtype)
        per_member = members is not None and x.ndim == 4
        if x.ndim != 3 and not per_member:
            more = "" if members is None else ", or for every member its own, (T, E, N, I)"
            raise ValueError(
                f"x has shape {tuple(x.shape)}; expected (T, N, I), time first, with I = input_size = {input_size}"
                f"{more} (or integer tokens of shape (T, N))"
            )
        if x.shape[-1] != input_size:
            raise ValueError(
                f"x has {x.shape[-1]} features (last axis) but this RNN was built with input_size={input_size}"
            )
    if per_member and x.shape[1] != members:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, with {x.shape[1]} where the members are; this RNN has members={members}"
        )
    T, N = x.shape[0], x.shape[2 if per_member else 1]
    if T == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}: T=0 steps of N={N} sequences; expected at least one step")
    return T, N


def check_x_shape(x_shape: Any, architecture: Architecture, tokens: bool | None) -> tuple[int, int, bool, bool]:
    """T, N, whether it is one of tokens, and whether members share it, of the shape of a future ``x``."""
    if not isinstance(x_shape, (tuple, list)):
        raise TypeError(f"x_shape={said(x_shape)} is a {type(x_shape).__name__}; expected the shape of x, a tuple")
    shape = tuple(check_count(f"x_shape[{k}]", size) for k, size in enumerate(x_shape))
    if math.prod(shape) > MOST:
        raise ValueError(f"x_shape={said(x_shape)} has more entries than an array can have; expected at most {MOST}")
    if tokens is None:
        tokens = len(shape) == 2
    check_flag("tokens", tokens)
    E, I = architecture.members, architecture.input_size  # noqa: E741
    lead = shape if tokens else shape[:-1]
    per_member = E is not None and len(lead) == 3
    first = lead[1 if architecture.time_major else 0] if per_member else E
    if not (len(lead) == 2 or per_member) or first != E or (not tokens and shape[-1] != I):
        time_first = architecture.time_major
        axes = ("T, N" if time_first else "N, T"), ("T, E, N" if time_first else "E, N, T")
        more = "" if E is None else f", or ({axes[1]}, I) with E = members = {E}"
        raise ValueError(
            f"x_shape={said(x_shape)}; expected ({axes[0]}, I) with I = input_size = {I}{more}; of tokens without I"
        )
    T, N = (lead[0], lead[-1]) if architecture.time_major else (lead[-1], lead[-2])
    return T, N, bool(tokens), not per_member


def in_order(array: Any) -> bool:
    """Whether products can read an array as it is: its steps in one piece, one after the other, in native bytes."""
    if not isinstance(array, np.ndarray):
        return True
    return bool(array.flags.c_contiguous and array.dtype.isnative)


def check_lengths(lengths: Any, T: int, N: int) -> np.ndarray[Any, Any] | None:
    """``lengths (N,)`` as int64 on the host, or None where every sequence has T steps."""
    if lengths is None:
        return None
    if not isinstance(lengths, (list, tuple, np.ndarray)):
        raise TypeError(
            f"lengths is a {type(lengths).__name__}; expected a list or NumPy array of N={N} integers on the host "
            "(segments are planned with them, without asking the device)"
        )
    check_plain("lengths", lengths)
    array = host_array("lengths", lengths, f"N={N} integers")
    check_shape("lengths", array, (N,), "(N,)")
    if array.dtype.kind not in "iu" and N:  # an empty list has floats
        raise TypeError(f"lengths has dtype {array.dtype}; expected integers")
    wrong = np.flatnonzero((array < 0) | (array > T))
    if wrong.size:
        raise ValueError(f"lengths[{wrong[0]}]={array[wrong[0]]}; expected 0 to T={T}, the number of steps in x")
    return None if (array == T).all() else array.astype(np.int64)


def check_reset(reset: Any, N: int, backend: Backend) -> Any:
    """``reset (N,)`` as bool on the device, or None. A mask on the host is a list or a NumPy array."""
    if reset is None:
        return None
    if isinstance(reset, (list, tuple)):
        reset = host_array("reset", reset, f"N={N} bools")
    if not is_array(reset):
        raise TypeError(f"reset is a {type(reset).__name__}; expected a list or array of N={N} bools")
    check_place("reset", reset, backend, host=True)
    if dtype_name(reset) != "bool":
        raise TypeError(f"reset has dtype {dtype_name(reset)}; expected bool: True for the sequences that begin anew")
    check_shape("reset", reset, (N,), "(N,)")
    return reset if backend.owns(reset) else backend.from_host(reset)


def check_backward(backward: Any, cell: Cell) -> None:
    """How time runs backward, and whether the cell can."""
    check_option("backward", backward, ("sequential", "parallel", "auto"))
    if backward == "parallel" and not cell.diagonal:
        raise ValueError(
            f"backward='parallel', but the cell is {cell.name!r}; expected 'tanh' or 'relu', whose step backward is a "
            "product with a diagonal matrix and W_hh; use backward='sequential' or 'auto'"
        )


def check_truncate(truncate: Any, *, bidirectional: bool) -> int | tuple[int, int] | None:
    """None, a number of steps, or two of them, k1 <= k2."""
    if truncate is None:
        return None
    if bidirectional:
        raise ValueError(
            f"truncate={said(truncate)}, but bidirectional=True: the second direction begins at the end, so there is "
            "no step up to which the past alone counts; leave truncate=None"
        )
    if not isinstance(truncate, (tuple, list)):
        return check_count("truncate", truncate)
    if len(truncate) != 2:
        raise ValueError(f"truncate={said(truncate)} has {len(truncate)} numbers; expected k, or (k1, k2)")
    k1, k2 = check_count("truncate[0]", truncate[0]), check_count("truncate[1]", truncate[1])
    if k1 > k2:
        raise ValueError(
            f"truncate={said((k1, k2))}: every {said(k1)} steps, back through {said(k2)}, would leave out the loss of "
            "the others; expected k1 <= k2"
        )
    return k1 if k1 == k2 else (k1, k2)


def check_range(
    name: str,
    array: Any,
    size: int,
    what: str,
    backend: Backend,
    lengths: np.ndarray[Any, Any] | None,
    *,
    read: bool,
    timed: bool = True,
) -> None:
    """Integers ``(T, ..., N)``, if not ``timed`` (..., N), within ``[0, size)`` at valid steps.

    Host arrays are always checked; those of a device only with ``read``, since that synchronises.
    """
    if array_api_compat.is_numpy_array(array):
        values = array
    elif read:
        values = backend.to_host(array)
    else:
        return
    rows = max(1, _BLOCK * len(values) // max(1, values.size)) if timed else max(1, len(values))
    for start in range(0, len(values), rows):  # what is longer than memory is never looked at as a whole
        block = values[start : start + rows]
        wrong = (block < 0) | (block >= size)
        if lengths is not None:
            steps = start + np.arange(len(block)).reshape(-1, *(1,) * (block.ndim - 1)) if timed else 0
            wrong = wrong & (steps < lengths)
        if not wrong.any():
            continue
        first, *others = (int(i) for i in np.argwhere(wrong)[0])
        index = (start + first, *others)
        raise ValueError(
            f"{name}[{', '.join(map(str, index))}]={values[index]}; expected 0 to {size - 1} ({what}); steps to be "
            "left out are marked with lengths, or with any value in range and a weight of 0"
        )


def check_outputs_like(
    name: str, array: Any, shape: tuple[int, ...], axes: str, architecture: Architecture, *, features: bool = True
) -> None:
    """An array of the shape of y (or, without ``features``, of its shape but for the last axis).

    All members may share it: then without their axis.
    """
    if not features:
        shape, axes = shape[:-1], axes.rpartition(",")[0] + ")"
        axes = axes if "," in axes else axes.replace(")", ",)")
    if architecture.members is not None and array.ndim != len(shape):
        at, of_every_member = len(shape) - (3 if features else 2), f"{axes} = {shape}"
        shape, axes = shape[:at] + shape[at + 1 :], axes.replace("E, ", "")
        axes = axes if "," in axes else axes.replace(")", ",)")
        if array.ndim != len(shape):
            axes = f"{of_every_member} or, the same for all members, {axes}"
    check_shape(name, array, shape, axes)


def check_target(
    target: Any,
    loss: Any,
    y_shape: tuple[int, ...],
    architecture: Architecture,
    backend: Backend,
    lengths: np.ndarray[Any, Any] | None,
    validate: bool,
) -> bool:
    """A loss that goes with the output, and a target that the loss can compare with ``y``.

    Returns whether the target has an axis of features.
    """
    output, axes = architecture.output, architecture.outputs_axes
    if not callable(loss):
        check_option("loss", loss, LOSSES)
    check_place("target", target, backend, host=True)
    if callable(loss):
        if not (backend.owns(target) or hasattr(backend.xp, dtype_name(target))):
            raise TypeError(f"target has dtype {dtype_name(target)}, of which there are no arrays on {backend.name}")
        return _check_target_of_callers_loss(target, y_shape, architecture)
    fused = FUSED_LOSSES.get(loss)
    if fused is not None and fused.output != output:
        raise ValueError(
            f"loss={loss!r} belongs to output={fused.output!r}, but this RNN has output={output!r}: "
            f"build it with output={fused.output!r}, or use loss='mse'"
        )
    if fused is not None and fused.takes_classes and is_integer(target):
        check_outputs_like("target", target, y_shape, f"classes {axes}", architecture, features=False)
        timed = architecture.readout == "every"
        what = "classes below output_size"
        check_range("target", target, y_shape[-1], what, backend, lengths, read=validate, timed=timed)
        return False
    check_float("target", target, architecture.dtype)
    check_outputs_like("target", target, y_shape, axes, architecture)
    return True


def _check_target_of_callers_loss(target: Any, y_shape: tuple[int, ...], architecture: Architecture) -> bool:
    """``y.shape`` without its last axis and at most one axis more; without that of the members, if they share it."""
    leads = [y_shape[:-1]]
    if architecture.members is not None:
        leads.append((*y_shape[:-3], y_shape[-2]))
    features = has_features(target, leads)
    if features is None:
        raise ValueError(
            f"target has shape {tuple(target.shape)}; expected {' or '.join(map(str, leads))}, the steps and sequences "
            "of y, and at most one axis more"
        )
    return features


def has_features(target: Any, leads: Iterable[tuple[int, ...]]) -> bool | None:
    """Whether a target has an axis after one of ``leads``, its axes otherwise; None if neither fits.

    Where both readings fit, as with E = N = O, numbers have features and integers have none.
    """
    shape = tuple(target.shape)
    fits = {len(shape) > len(lead) for lead in leads if lead in (shape, shape[:-1])}
    if not fits:
        return None
    return fits.pop() if len(fits) == 1 else not is_integer(target)
