"""The two time loops, and the matrix products around them. They know no cell by name.

A segment is S consecutive time steps. N sequences, I inputs, H hidden units, G gates; axes may stand between
time and N (members of an ensemble, directions): states ``(S+1, ..., N, H)`` with weights ``(..., G*H, I)``,
``(..., G*H, H)`` and ``(..., G*H)``. Only what depends on the step before is inside a loop: one product with
``W_hh`` and the cell's elementwise functions, each way. Everything else is one product over the whole segment.
"""

from __future__ import annotations

from itertools import tee

from ..backend.portable import Array, Backend
from .cell import Cell, Step, Tape, rows_by_gate
from .sums import flat


def project_(
    backend: Backend, rows: Array, x: Array, W_xh: Array, b_h: Array | None, gates: Array | None = None
) -> None:
    """The part of (1.1) that needs no state: ``rows[t] <- W_xh x_t + b_h``.

    Parameters
    ----------
    rows : (S, ..., N, G*H)
    x : (S, ..., N, I)
        Axes in between may be 1 where members or directions share it.
    b_h : (..., N or 1, G*H); with ``gates`` (G, ..., N or 1, H); None without a bias
    gates : (S, G, ..., N, H), optional
        Where the sum with ``b_h`` is written instead, by gate.
    """
    if W_xh.ndim == 2:
        backend.matmul_(flat(backend, rows, 2), flat(backend, x, 2), W_xh.mT)
    else:
        backend.matmul_(rows, x, W_xh.mT)
    if gates is None:
        if b_h is not None:
            rows += b_h
    elif b_h is None:
        gates[...] = rows_by_gate(backend, rows, gates.shape[1])
    else:
        backend.elementwise.add_(gates, rows_by_gate(backend, rows, gates.shape[1]), b_h)


def forward_(backend: Backend, cell: Cell, step_: Step, z: Array | None, tape: Tape) -> None:
    """Run a segment forward, in place.

    Parameters
    ----------
    step_
        Of ``cell.forward_``, bound to ``W_hh``.
    z : (S, ..., N, G*H)
        ``W_xh x_t + b_h``, and used up. Where the cell works in place there is none: it is in the rows of h.
    tape
        Row 0 of the states is the state before the segment; every further row becomes that after the step.
    """
    arguments = [] if z is None else [backend.rows(z)]
    for state in tape.states:
        before, after = tee(backend.rows(state))
        next(after)
        arguments += [before, after]
    if z is not None:
        arguments += map(backend.rows, cell.forward_rows(backend, z, tape.kept))
    for rows in zip(*arguments):  # noqa: B905 (before has one row more)
        step_(*rows)


def backward_(
    backend: Backend, cell: Cell, step_: Step, tape: Tape, dstates: tuple[Array, ...], dz: Array, slopes: Array | None
) -> None:
    """Run a segment backward, in place: (3.1) by the total derivative.

    ``dh_{t-1} = (direct) + W_hh^T dz_t`` and, for the cell of (1.1), ``dz_t = f'(z_t) * dh_t``: the product (3.3)
    of the Jacobians ``diag(f'(z_j)) W_hh`` is never formed, the loop multiplies the gradient by one of them in
    every step.

    Parameters
    ----------
    step_
        Of ``cell.backward_``, bound to ``W_hh``.
    tape
        What :func:`forward_` left.
    dstates : tuple of (S+1, ..., N, H)
        Gradients of the states. They arrive as the part that does not come through later steps of this segment, in
        row 0 zero; they become the total gradients, in row 0 what the segment hands to the state before it.
    dz : (S, ..., N, G*H)
        Becomes the gradient of ``W_hh h_{t-1}``; what it holds does not matter.
    slopes : (S, ..., N, H) with an axis after the first of as many as the cell asked for; likewise.
    """
    arguments = [backend.rows(dz, reverse=True)]
    for dstate in dstates:
        after, before = tee(backend.rows(dstate, reverse=True))
        next(before)
        arguments += [after, before]
    arguments += [backend.rows(a, reverse=True) for a in cell.slopes_(backend, slopes, dz, tape)]
    for rows in zip(*arguments):  # noqa: B905 (after has one row more)
        step_(*rows)
