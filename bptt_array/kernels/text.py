"""The CUDA text of a traced cell: constants, and the functions that the template ``segment.cu`` calls."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ..tracing.program import CannotTraceError, Program
from ..tracing.text import PRELUDE, statements
from .trace import Traced, own_leaf

_TEMPLATE = Path(__file__).with_name("segment.cu")


class Size(NamedTuple):
    """What a planner has to know of a cell.

    Attributes
    ----------
    gates : int
    reads : (int, int)
        Numbers that a unit loads in every step, forward and backward.
    operations : (int, int)
        Of a unit and step, beside the products.
    """

    gates: int
    reads: tuple[int, int]
    operations: tuple[int, int]


class CellText:
    """The text of a cell's kernels, and what it needs of the caller."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        cell, program = traced.cell, traced.program
        G, K = cell.gates, cell.keeps
        own = [leaf for i, n in enumerate(traced.own.values()) for leaf in _numbered(own_leaf(i), n)]
        forward, before, after = self._outputs()
        biases = _numbered("b_h", G)
        used = {*biases} & {*program.leaves([*forward.values(), *before.values(), *after.values()])}
        if used:
            raise CannotTraceError(f"{cell!r} has no kernel of its own: uses {', '.join(sorted(used))} beside z")

        z = _numbered("z", G)
        reads_forward = [name for name in program.leaves(forward.values()) if name in z]
        not_read = {"dh", "dc", "sum", *own}
        reads_backward = [n for n in program.leaves([*before.values(), *after.values()]) if n not in not_read]
        carry = _carried(program, after.values(), {program.op("leaf", name) for name in ("sum", *own)})

        self.own_given = {program.op("leaf", name): f"own[{i}]" for i, name in enumerate(own)}
        loaded = self.own_given | _leaves(program, reads_backward, "in") | _as_they_are(program, "dh", "dc")
        of_forward = statements(
            program,
            forward,
            self.own_given
            | _leaves(program, _numbered("sum", G), "sum")
            | _leaves(program, reads_forward, "in")
            | _as_they_are(program, "h_before", "c_before"),
        )
        of_before = statements(program, before | {f"carry[{i}]": k for i, k in enumerate(carry)}, loaded)
        of_after = statements(
            program,
            after,
            self.own_given | {k: f"carry[{i}]" for i, k in enumerate(carry)} | _as_they_are(program, "sum"),
        )
        #: Whether a step forward, and one backward, calls functions that have an array of their own: bytes of it are no
        #: sign of too few registers.
        self.has_local_arrays = tuple(
            any("f_sin(" in line or "f_cos(" in line for line in lines) for lines in (of_forward, of_before + of_after)
        )
        self.size = Size(
            G,
            (max(1, len(reads_forward)), max(1, len(reads_backward))),
            (len(of_forward), len(of_before) + len(of_after)),
        )
        parameters = "".join(f", const T* __restrict__ own{i}" for i in range(len(traced.own)))
        blocks = [(of, k, n) for of, n in enumerate(traced.own.values()) for k in range(n)]
        of_own = [
            f"own[{i}] = ok ? own{of}[((size_t)e * {n} + {k}) * H + unit] : (T)0;"
            for i, (of, k, n) in enumerate(blocks)
        ]
        of_z = [f"in[{i}] = ok ? z[{z.index(name)} * H] : (T)0;" for i, name in enumerate(reads_forward)]
        of_rows = [
            f"in[{i}] = {_READ[name] if name in _READ else _read_kept(name)};" for i, name in enumerate(reads_backward)
        ]
        self.text = f"""// Of {" ".join(repr(cell).split())}, from its Python text.
#define OWN_PARAMETERS {parameters}
#define OWN_ARGUMENTS {"".join(f", own{i}" for i in range(len(traced.own)))}
constexpr int G = {G}, K = {K}, X = {len(traced.extra)}, P = {len(own) or 1}, CARRY = {len(carry) or 1};
constexpr int LF = {self.size.reads[0]}, LB = {self.size.reads[1]};
constexpr bool HAS_C = {_bool(cell.has_c)}, IN_PLACE = {_bool(cell.in_place)};
#define STEP __device__ __forceinline__ void
STEP read_own(T (&own)[P], bool ok, int e, int unit OWN_PARAMETERS) {{
{_block(of_own)}}}
STEP read_forward(T (&in)[LF], bool ok, const T* z) {{
{_block(of_z)}}}
STEP cell_forward(const T (&sum)[G], const T (&in)[LF], T h_before, T c_before, const T (&own)[P], T& h, T& c,
                  T (&kept)[{K or 1}]) {{
{_block(of_forward)}}}
STEP read_backward(T (&in)[LB], bool ok, bool ok_dh, bool ok_dc, const T* dh_before, const T* dc_before,
                   const T* h_before, const T* h, const T* c_before, const T* c, const T* kept, size_t step) {{
{_block(of_rows)}}}
STEP cell_before(const T (&in)[LB], T dh, T dc, const T (&own)[P], T (&d)[G], T (&carry)[CARRY], T& dc_total,
                 T (&extra)[{len(traced.extra) or 1}]) {{
{_block(of_before)}}}
STEP cell_after(T sum, const T (&carry)[CARRY], const T (&own)[P], T& dh_before, T& dc_before) {{
{_block(of_after)}}}
"""

    def _outputs(self) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        """What a step leaves: forward; backward before its product, and after it."""
        t = self.traced
        forward = {"h": t.h} | {f"kept[{k}]": kept for k, kept in enumerate(t.kept)}
        before = {f"d[{g}]": k for g, k in enumerate(t.dz)} | {f"extra[{i}]": k for i, k in enumerate(t.extra)}
        after = {"dh_before": t.dh_before}
        if t.c is not None and t.dc is not None and t.dc_before is not None:
            forward["c"], before["dc_total"], after["dc_before"] = t.c, t.dc, t.dc_before
        return forward, before, after

    @cached_property
    def source(self) -> str:
        """The whole text of both kernels; constants of a layout are macros."""
        return _TEMPLATE.read_text(encoding="utf-8").replace("/* CELL */", PRELUDE + self.text)

    @cached_property
    def key(self) -> str:
        """The same for the same text."""
        return hashlib.sha256(self.source.encode()).hexdigest()


#: Leaves that the step backward reads: from rows before and after the step. Direct parts are not there in every step.
_READ = {
    "dh_before": "ok_dh ? *dh_before : (T)0",
    "dc_before": "ok_dc ? *dc_before : (T)0",
    "h_before": "ok ? *h_before : (T)0",
    "h": "ok ? *h : (T)0",
    "c_before": "ok ? *c_before : (T)0",
    "c": "ok ? *c : (T)0",
}


def _read_kept(name: str) -> str:
    k = name.removeprefix("kept")
    if k == name:
        raise CannotTraceError(f"backward_ uses {name}, which only the step forward is given")
    return f"ok ? kept[{k or 0} * step] : (T)0"


def _numbered(name: str, blocks: int) -> list[str]:
    return [name] if blocks == 1 else [f"{name}{k}" for k in range(blocks)]


def _leaves(program: Program, names: Iterable[str], array: str) -> dict[int, str]:
    return {program.op("leaf", name): f"{array}[{i}]" for i, name in enumerate(names)}


def _as_they_are(program: Program, *names: str) -> dict[int, str]:
    return {program.op("leaf", name): name for name in names}


def _carried(program: Program, after: Iterable[int], given: set[int]) -> list[int]:
    """What the part of a step after the product needs of the part before it."""
    carry, todo = set(), list(after)
    while todo:
        k = todo.pop()
        if k in given or k in carry or program.ops[k][0] in ("const", "bool"):
            continue
        if program.depends(k, ["sum"]):
            todo += program.operands(k)
        else:
            carry.add(k)
    return sorted(carry)


def _block(lines: Iterable[str]) -> str:
    return "".join(f"    {line}\n" for line in lines)


def _bool(value: bool) -> str:
    return str(value).lower()
