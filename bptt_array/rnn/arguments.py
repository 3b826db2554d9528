"""What a network is called with: inputs, states, lengths and the rest, checked before any work.

Errors name the argument, the value, what was expected and the way out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import array_api_compat
import numpy as np

from ..backend.arrays import check_plain, dtype_name, host_array, is_array, is_integer, on_host
from ..backend.portable import DTYPES, Backend
from ..bptt.state import State
from ..checks import LARGEST_SEED, MOST, check_count, check_flag, check_option, is_whole, said
from ..equations.cell import Cell
from .architecture import Architecture
from .conversions import way_in

#: Entries that are checked at a time.
_BLOCK = 1 << 18


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


def check_place(
    name: str,
    array: Any,
    backend: Backend,
    dtype: str,
    *,
    host: bool,
    integers: tuple[int, ...] = (),
    classes: tuple[int, ...] = (),
) -> None:
    """An array of the backend's device; with ``host``, a NumPy array will do.

    ``dtype``, ``integers`` and ``classes`` are for advice, see :func:`way_in`.
    """
    if backend.owns(array) or (host and array_api_compat.is_numpy_array(array)):
        check_plain(name, array)
        return
    kind = f"{type(array).__module__.partition('.')[0]}.{type(array).__name__}".removeprefix("builtins.")
    if hasattr(array, "device"):
        kind += f" on {array.device}"
    expected = f"{backend.xp.__name__.rpartition('.')[2]} array on {backend.name}"
    if host and backend.name != "cpu":
        expected += " or a NumPy array"
    if array is None:
        raise TypeError(f"{name} is a NoneType; expected a {expected}")
    try:
        way = way_in(name, array, dtype, integers=integers, classes=classes)
    except (TypeError, ValueError) as error:
        way = str(error)
    raise TypeError(f"{name} is a {kind}, but this RNN is on {backend.name}: expected a {expected}; {way}")


def check_float(name: str, array: Any, dtype: str) -> None:
    given = dtype_name(array)
    if given != dtype:
        way = way_in(name, array, dtype)
        other = f", or build the RNN with dtype={given!r}" if given in DTYPES else ""
        raise TypeError(f"{name} has dtype {given}, but this RNN computes in {dtype}: {way}{other}")


def check_shape(name: str, array: Any, shape: tuple[int, ...], axes: str) -> None:
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(array.shape)}; expected {axes} = {shape}")


def check_floats(
    name: str, array: Any, shape: tuple[int, ...], axes: str, backend: Backend, dtype: str, *, host: bool
) -> None:
    """An array of the right place, dtype and shape."""
    check_place(name, array, backend, dtype, host=host)
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
    for field, shape in architecture.states_shapes(N).items():
        axes = architecture.states_axes(field)
        check_floats(f"{name}.{field}", getattr(state, field), shape, axes, backend, architecture.dtype, host=host)


def _fields(names: Iterable[str]) -> str:
    return ", ".join(f"{name}=…" for name in names)


def check_input_grad(input_grad: Any, x: Any) -> None:
    check_flag("input_grad", input_grad)
    if input_grad and is_integer(x):
        raise ValueError("input_grad=True, but x holds integer tokens, which have no gradient; leave input_grad=False")


def check_x(x: Any, architecture: Architecture, backend: Backend, *, host: bool) -> tuple[int, int]:
    """``x (T, N, I)`` of the model's dtype or tokens ``(T, N)``, with an embedding tokens alone; returns T and N.

    With members also ``(T, E, N, I)`` or ``(T, E, N)``.
    """
    input_size, members, dtype = architecture.input_size, architecture.members, architecture.dtype
    integers = (2,) if members is None else (2, 3)
    embedded = architecture.embedding_size is not None
    check_place("x", x, backend, dtype, host=host, integers=integers, classes=integers if embedded else ())
    check_tokens_alone("x", x, architecture, "(T, N)")
    if is_integer(x):
        per_member = members is not None and x.ndim == 3
        if x.ndim != 2 and not per_member:
            more = "" if members is None else " or, for every member its own, (T, E, N)"
            features = x.ndim in (3, 3 if members is None else 4) and x.shape[-1] == input_size
            way = f"; for features use rnn.asarray(x, dtype={dtype!r})" if features else ""
            raise ValueError(f"x has integers in shape {tuple(x.shape)}; expected tokens of shape (T, N){more}{way}")
    else:
        if dtype_name(x) not in DTYPES:  # of other floats the shape comes first: in another one they may be tokens
            check_float("x", x, dtype)
        per_member = members is not None and x.ndim == 4
        if x.ndim != 3 and not per_member:
            more = "" if members is None else ", or for every member its own, (T, E, N, I)"
            tokens = "; of floats that are such use rnn.asarray(x, dtype='int64')" if x.ndim == 2 else ""
            raise ValueError(
                f"x has shape {tuple(x.shape)}; expected (T, N, I), time first, with I = input_size = {input_size}"
                f"{more} (or integer tokens of shape (T, N){tokens})"
            )
        if x.shape[-1] != input_size:
            raise ValueError(
                f"x has {x.shape[-1]} features (last axis) but this RNN was built with input_size={input_size}"
            )
        check_float("x", x, dtype)
    if per_member and x.shape[1] != members:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, with {x.shape[1]} where the members are; this RNN has members={members}"
        )
    T, N = x.shape[0], x.shape[2 if per_member else 1]
    if T == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}: T=0 steps of N={N} sequences; expected at least one step")
    return T, N


def check_tokens_alone(name: str, x: Any, architecture: Architecture, axes: str) -> None:
    """Nothing but tokens for a network with an embedding; ``axes`` are theirs."""
    if architecture.embedding_size is None or is_integer(x):
        return
    way = f"of whole numbers use rnn.asarray({name}, dtype='int64')"
    if x.ndim > len(axes.split(", ")):
        way = f"of one-hot rows use {name}.argmax(-1); for features build the RNN without embedding_size"
    raise TypeError(
        f"{name} has dtype {dtype_name(x)} and shape {tuple(x.shape)}, but this RNN has an embedding, "
        f"embedding_size={architecture.embedding_size}: expected integer tokens of shape {axes}; {way}"
    )


def check_x_shape(x_shape: Any, architecture: Architecture, tokens: bool | None) -> tuple[int, int, bool, bool]:
    """T, N, whether it is one of tokens, and whether members share it, of the shape of a future ``x``."""
    if not isinstance(x_shape, (tuple, list)):
        raise TypeError(f"x_shape={said(x_shape)} is a {type(x_shape).__name__}; expected the shape of x, a tuple")
    shape = tuple(check_count(f"x_shape[{k}]", size) for k, size in enumerate(x_shape))
    if math.prod(shape) > MOST:
        raise ValueError(f"x_shape={said(x_shape)} has more entries than an array can have; expected at most {MOST}")
    embedded = architecture.embedding_size is not None
    if tokens is None:
        tokens = len(shape) == 2 or embedded
    check_flag("tokens", tokens)
    if embedded and not tokens:
        raise ValueError(
            f"tokens=False, but this RNN has an embedding, embedding_size={architecture.embedding_size}, which reads "
            "tokens alone; leave tokens out"
        )
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
        way = "use lengths.tolist()" if hasattr(lengths, "tolist") else "use np.asarray(lengths)"
        raise TypeError(
            f"lengths is a {type(lengths).__name__}; expected a list or NumPy array of N={N} integers on the host "
            "(segments are planned with them, without asking the device)"
            + (f": {way}" if is_array(lengths) or hasattr(lengths, "__array__") else "")
        )
    check_plain("lengths", lengths)
    array = host_array("lengths", lengths, f"N={N} integers")
    check_shape("lengths", array, (N,), "(N,)")
    if array.dtype.kind not in "iu" and N:  # an empty list has floats
        whole = array.dtype.kind in "fb" and np.array_equal(array, np.trunc(array))
        way = ": use np.asarray(lengths, dtype=int)" if whole else ""
        raise TypeError(f"lengths has dtype {array.dtype}; expected integers{way}")
    wrong = np.flatnonzero((array < 0) | (array > T))
    if wrong.size:
        raise ValueError(f"lengths[{wrong[0]}]={array[wrong[0]]}; expected 0 to T={T}, the number of steps in x")
    return None if (array == T).all() else array.astype(np.int64)


_BOOLS = {"reset": "N=%d bools", "rows": "N=%d bools, or numbers of sequences"}


def check_reset(reset: Any, N: int, backend: Backend, name: str = "reset") -> Any:
    """``reset (N,)`` as bool on the device, or None. A mask on the host is a list or a NumPy array."""
    if reset is None:
        return None
    if isinstance(reset, (list, tuple)):
        reset = host_array(name, reset, _BOOLS[name] % N)
    if not is_array(reset):
        raise TypeError(f"{name} is a {type(reset).__name__}; expected a list or array of {_BOOLS[name] % N}")
    if not backend.owns(reset):
        reset = on_host(name, reset)
    check_plain(name, reset)
    if dtype_name(reset) != "bool":
        way = f"; use np.asarray({name}) != 0" if isinstance(reset, np.ndarray) else f"; use {name} != 0"
        raise TypeError(
            f"{name} has dtype {dtype_name(reset)}; expected bool: True for the sequences that begin anew{way}"
        )
    check_shape(name, reset, (N,), "(N,)")
    return backend.copy(reset) if backend.owns(reset) else backend.from_host(reset)  # the backward pass reads it again


def check_rows(rows: Any, N: int, backend: Backend) -> Any:
    """Some of N sequences, which bools ``(N,)`` or their numbers say, as bool on the device."""
    if is_whole(rows):
        rows = [rows]
    if isinstance(rows, (list, tuple, range)):
        rows = host_array("rows", rows, _BOOLS["rows"] % N)
        rows = rows.astype(int) if not rows.size else rows  # an empty list has floats
    if not is_array(rows) or not is_integer(rows):
        return check_reset(rows, N, backend, "rows")
    numbers = on_host("rows", rows)
    if numbers.ndim > 1:
        raise ValueError(f"rows has shape {numbers.shape}; expected numbers of sequences (n,), or N={N} bools")
    numbers = numbers.reshape(-1)
    wrong = np.flatnonzero((numbers < 0) | (numbers >= N))
    if wrong.size:
        raise ValueError(
            f"rows[{wrong[0]}]={numbers[wrong[0]]}; expected 0 to {N - 1}, numbers of sequences, or N={N} bools"
        )
    mask = np.zeros(N, bool)
    mask[numbers] = True
    return backend.from_host(mask)


def check_backward(backward: Any, cell: Cell) -> None:
    """How time runs backward, and whether the cell can."""
    check_option("backward", backward, ("sequential", "parallel", "auto"))
    if backward == "parallel" and not cell.diagonal:
        raise ValueError(
            f"backward='parallel', but the cell is {cell.name!r}; expected 'tanh' or 'relu', whose step backward is a "
            "product with a diagonal matrix and W_hh; use backward='sequential' or 'auto'"
        )


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
    ignored: int | None = None,
    ignorable: bool = False,
    way: str = "",
) -> None:
    """Integers ``(T, ..., N)``, if not ``timed`` (..., N), within ``[0, size)`` or ``ignored`` at valid steps.

    ``ignorable``: some other number might be. ``way``: what else is said. Host arrays are always checked; those of a
    device only with ``read``, since that synchronises.
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
        if ignored is not None:
            wrong &= block != ignored
        if lengths is not None:
            steps = start + np.arange(len(block)).reshape(-1, *(1,) * (block.ndim - 1)) if timed else 0
            wrong = wrong & (steps < lengths)
        if not wrong.any():
            continue
        first, *others = (int(i) for i in np.argwhere(wrong)[0])
        index = (start + first, *others)
        more = "" if ignored is None else f" or {ignored}, which is ignored"
        if ignorable and abs(int(values[index])) <= MOST:
            way = f", or ignored by loss=losses.CrossEntropy(ignore_index={values[index]})"
        raise ValueError(
            f"{name}[{', '.join(map(str, index))}]={values[index]}; expected 0 to {size - 1} ({what}){more}; steps to "
            f"be left out are marked with lengths, or with any value in range and a weight of 0{way}"
        )
