"""Targets, weights and classes of a call, compared with the outputs that they go with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..backend.arrays import dtype_name, is_integer
from ..backend.portable import DTYPES, Backend
from ..equations.losses import Loss, UserLoss
from ..losses import CrossEntropy
from .architecture import Architecture
from .arguments import check_float, check_place, check_range, check_shape


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
    equation: Loss | UserLoss,
    y_shape: tuple[int, ...],
    architecture: Architecture,
    backend: Backend,
    lengths: np.ndarray[Any, Any] | None,
    validate: bool,
    features: bool | None = None,
) -> bool:
    """A loss, whose ``equation`` goes with the output, and a target that it can compare with ``y``.

    Returns whether the target has an axis of features; ``features`` is that where it is known already.
    """
    output, axes = architecture.output, architecture.outputs_axes
    axes_of_classes = (len(y_shape) - 1,) if architecture.members is None else (len(y_shape) - 2, len(y_shape) - 1)
    ways: dict[str, tuple[int, ...]] = {}  # for advice
    if not isinstance(equation, Loss):
        ways = {"integers": tuple(range(len(y_shape) + 1))}
    elif equation.takes_classes:
        ways = {"integers": axes_of_classes, "classes": axes_of_classes[:1]}
    check_place("target", target, backend, architecture.dtype, host=True, **ways)
    if not isinstance(equation, Loss):
        if not (backend.owns(target) or is_integer(target) or backend.has_dtype(dtype_name(target))):
            raise TypeError(f"target has dtype {dtype_name(target)}, of which there are no arrays on {backend.name}")
        return _check_target_of_callers_loss(target, y_shape, architecture, features)
    if equation.output not in (None, output):
        raise ValueError(
            f"loss={loss!r} belongs to output={equation.output!r}, but this RNN has output={output!r}: "
            f"build it with output={equation.output!r}, or use loss='mse'"
        )
    ignored = loss.ignore_index if isinstance(loss, CrossEntropy) else None
    if equation.takes_classes and is_integer(target):
        check_outputs_like("target", target, y_shape, f"classes {axes}", architecture, features=False)
        timed = architecture.readout == "every"
        check_range(
            "target",
            target,
            y_shape[-1],
            "classes below output_size",
            backend,
            lengths,
            read=validate,
            timed=timed,
            ignored=ignored,
            ignorable=ignored is None,
        )
        return False
    if target.ndim in axes_of_classes:
        _refuse_classes(target, loss, equation, y_shape, architecture)
    check_float("target", target, architecture.dtype)
    check_outputs_like("target", target, y_shape, axes, architecture)
    if ignored is not None:
        raise ValueError(
            f"loss={loss!r}, but target holds probabilities, of which none is a number to ignore; give such steps a "
            "weight of 0, or leave ignore_index=None"
        )
    return True


def _shapes(shape: tuple[int, ...], architecture: Architecture, member: int) -> list[tuple[int, ...]]:
    """A shape, and the same without the axis of members, which may share it."""
    return [shape] if architecture.members is None else [shape, shape[:member] + shape[len(shape) + member + 1 :]]


def _refuse_classes(
    target: Any, loss: Any, equation: Loss, y_shape: tuple[int, ...], architecture: Architecture
) -> None:
    """What has the shape of class numbers, but is none or not wanted: say which of both."""
    has, shape, dtype = dtype_name(target), tuple(target.shape), architecture.dtype
    if shape not in _shapes(y_shape[:-1], architecture, -2) or shape in _shapes(y_shape, architecture, -3):
        return
    real = has in (*DTYPES, "float16", "bfloat16", "bool")
    if equation.takes_classes and real:
        raise TypeError(
            f"target has dtype {has} and shape {shape}, as class numbers have, which are integers; expected those, or "
            f"probabilities of shape {y_shape}: for classes use rnn.asarray(target, dtype='int64')"
        )
    if y_shape[-1] == 1 and (real or is_integer(target)):
        raise TypeError(
            f"target has dtype {has} and shape {shape}; expected {dtype} and {y_shape}, as y has: use "
            f"rnn.asarray(target[..., None], dtype={dtype!r})"
        )
    if is_integer(target):
        raise TypeError(
            f"target has dtype {has} and shape {shape}, as class numbers have; expected {dtype} and {y_shape} for "
            f"loss={loss!r}: for classes build the RNN with output='softmax', and use loss='cross_entropy'"
        )


def _check_target_of_callers_loss(
    target: Any, y_shape: tuple[int, ...], architecture: Architecture, features: bool | None
) -> bool:
    """``y.shape`` without its last axis and at most one axis more; without that of the members, if they share it."""
    leads = [y_shape[:-1]]
    if architecture.members is not None:
        leads.append((*y_shape[:-3], y_shape[-2]))
    fits = may_have_features(target, leads)
    if features is not None:
        fits &= {features}
    if not fits:
        raise ValueError(
            f"target has shape {tuple(target.shape)}; expected {' or '.join(map(str, leads))}, the steps and sequences "
            "of y, and at most one axis more"
        )
    if len(fits) == 1:
        return fits.pop()
    axes = architecture.outputs_axes.rpartition(",")[0]
    at = "..., None, :, :" if architecture.time_major or architecture.readout == "last" else "None"
    raise ValueError(
        f"target has shape {tuple(target.shape)}, which may be {axes}), a number for every member, or one without E "
        "and with features F, which members share, since there are as many members as sequences; expected all axes, "
        f"{axes}, F): target[..., None] for the first, or for the second "
        f"broadcast_to(target[{at}], {(*y_shape[:-1], target.shape[-1])})"
    )


def may_have_features(target: Any, leads: Iterable[tuple[int, ...]]) -> set[bool]:
    """Whether a target has an axis after one of ``leads``, its axes otherwise: all answers that its shape allows.

    None if it fits neither way, both if it fits in both, as (T, E, N) does where E = N: that is for the caller to say.
    """
    shape = tuple(target.shape)
    return {len(shape) > len(lead) for lead in leads if lead in (shape, shape[:-1])}
