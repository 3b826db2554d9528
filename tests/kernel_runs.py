"""Kernels alone: a segment forward and backward, all that it leaves, against the time loops of NumPy in float64.

As a program, ``python kernel_runs.py '["bits" | "mutants", ...]'``, since what the emulated device checks is chosen by the
environment in which it starts.
"""

import contextlib
import hashlib
import json
import random
import re
import sys
from itertools import product
from typing import NamedTuple

import numpy as np
from cells_of_users import CELLS_OF_USERS

from bptt_array.backend import CupyBackend, NumpyBackend
from bptt_array.equations.cell import Tape
from bptt_array.equations.recurrence import backward_, forward_
from bptt_array.equations.state_product import StateProduct
from bptt_array.kernels import layouts, segments
from bptt_array.rnn.cells import CELLS as OF_LIBRARY

#: Of the largest entry of an array.
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}
#: The cells that have kernels, by name: those without a product of their own in every step.
CELLS = {
    name: cell
    for name, cell in (OF_LIBRARY | {name: cell() for name, cell in CELLS_OF_USERS.items()}).items()
    if all(len(shape) == 1 for shape in cell.own_parameters(1).values())
}


class Shape(NamedTuple):
    """Of a segment, and which of the layouts runs it: by ``OB`` and ``NB``, or the best."""

    S: int = 6
    E: int = 1
    N: int = 3
    H: int = 6
    OB: int | None = None
    NB: int | None = None
    mask: bool = False
    c: bool = True  # whether c has a direct part, and whether later steps hand anything on
    after: bool = True

    def __str__(self):
        return ",".join(f"{name}={value}" for name, value in self._asdict().items() if value != getattr(Shape(), name))


def draw(cell, shape, dtype, seed=0):
    """Everything that a segment is given, float64 that ``dtype`` holds."""
    rng = np.random.default_rng(seed)
    S, E, N, H, G = *shape[:4], cell.gates

    def normal(*axes):
        return rng.standard_normal(axes).astype(dtype).astype("float64")

    states, row = len(cell.states), (E, N, H)
    arrays = {
        "params": {
            "W_hh": (normal(E, G * H, H) / H**0.5).astype(dtype).astype("float64"),
            "W_xh": np.zeros((E, G * H, 1)),
            "b_h": np.zeros((E, G * H)),
            **{name: normal(E, *axes) for name, axes in cell.own_parameters(H).items()},
        },
        "before": [normal(*row) for _ in range(states)],
        "z": normal(S, E, N, G * H),
        "direct": [normal(S + 1, *row) for _ in range(states)],
        "after": [normal(*row) for _ in range(states)] if shape.after else None,
        "mask": (rng.random(row) < 0.7) * 1.25 if shape.mask else None,
    }
    if cell.name == "relu":
        arrays["z"] += np.copysign(0.5, arrays["z"])  # off the kink, mostly
    return arrays


def expected(cell, shape, arrays):
    """By the loops of NumPy, with z as a kernel has it."""
    backend, params, (S, E, N, H) = NumpyBackend(), arrays["params"], shape[:4]
    vars(backend)["gates_apart"] = False
    mask, W = arrays["mask"], params["W_hh"]
    states = tuple(np.empty((S + 1, E, N, H)) for _ in cell.states)
    for state, before in zip(states, arrays["before"], strict=True):
        state[0] = before
    kept = np.empty((S, cell.keeps, E, N, H)) if cell.keeps else None
    tape, z = Tape(states, kept, params), arrays["z"].copy()
    if cell.in_place:
        states[0][1:] = z
    step_ = cell.forward_(backend, params, StateProduct(backend, W.mT, (E, N), S, mask))
    forward_(backend, cell, step_, None if cell.in_place else z, tape)
    dstates = tuple(direct.copy() for direct in arrays["direct"])
    if not shape.c:
        for dc in dstates[1:]:
            dc[...] = 0
    for k, dstate in enumerate(dstates):
        dstate[0] = 0
        if shape.after:
            dstate[S] += arrays["after"][k]
    dz = np.empty((S, E, N, cell.gates * H))
    slopes = np.empty((S, cell.slopes, E, N, H)) if cell.slopes else None
    step_ = cell.backward_(backend, params, StateProduct(backend, W, (E, N), S, mask, backward=True))
    backward_(backend, cell, step_, tape, dstates, dz, slopes)
    found = {"dz": dz.copy(), **cell.finish_(backend, slopes, dz, dstates[0][1:, ...], tape), "dz at last": dz}
    last, first = ([state[row] for state in rows] for rows, row in ((states, S), (dstates, 0)))
    return found | _named(cell, tape, last, dstates, first)


def _named(cell, tape, last, dstates, first):
    found = {} if tape.kept is None else {"kept": tape.kept}
    for k, name in enumerate(cell.states):
        found |= {
            name: tape.states[k],
            f"last {name}": last[k],
            f"d{name}": dstates[k][1:],
            f"d{name} before": first[k],
        }
    return found


def launched(backend, cell, shape, arrays, dtype):
    """By one launch each way; what a kernel must not read, or has to write, is no number before."""
    S, E, N, H = shape[:4]

    def device(a):
        return None if a is None else backend.from_host(np.ascontiguousarray(a.astype(dtype)))

    def nothing(*axes):
        return device(np.full(axes, np.nan))

    params = {name: device(a) for name, a in arrays["params"].items()}
    mask, row = device(arrays["mask"]), (E, N, H)
    states = tuple(nothing(S + 1, *row) for _ in cell.states)
    tape = Tape(states, nothing(S, cell.keeps, *row) if cell.keeps else None, params)
    z = device(arrays["z"])
    if cell.in_place:
        states[0][1:, ...] = z
        z = None
    last = segments.ForwardKernel(backend, cell, params, row, mask)(tuple(map(device, arrays["before"])), z, tape)
    dstates = tuple(map(device, arrays["direct"]))
    for k, dstate in enumerate(dstates):
        dstate[: 1 if k == 0 or shape.c else S + 1] = np.nan
    kernel = segments.BackwardKernel(backend, cell, params, row, mask)
    dz, extra = nothing(S, E, N, cell.gates * H), nothing(S, kernel.stored, *row) if kernel.stored else None
    after = None if arrays["after"] is None else tuple(map(device, arrays["after"]))
    first = kernel(tape, dstates, after, dz, extra, direct_c=shape.c)
    found = {"dz": backend.copy(dz), **kernel.finish_(dz, extra), "dz at last": dz}
    found |= _named(cell, tape, last, dstates, first)
    return {name: backend.to_host(a) for name, a in found.items()}


def check(backend, cell, shape, dtype, arrays=None):
    """That all that a segment leaves is what it has to be; returns it."""
    arrays = draw(cell, shape, dtype) if arrays is None else arrays
    with forced(shape.OB, shape.NB), np.errstate(invalid="ignore"):
        found = launched(backend, cell, shape, arrays, dtype)
    wanted = expected(cell, shape, arrays)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        error = np.max(np.abs(found[name] - value), initial=0) / max(np.max(np.abs(value), initial=0), 1e-30)
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"
    return found


@contextlib.contextmanager
def forced(OB, NB):
    """Only layouts of ``OB`` blocks for ``NB`` sequences; None: any."""

    def of_these(work, device, *, room=0):
        KS = layouts.sharing(work.size, work.H, work.itemsize, backward=work.backward)
        found = [layouts._layout(work, device, OB, NB or 1, KS, UT, room) for UT in layouts.UNITS]
        return min((layout for layout in found if layout), key=lambda layout: layout.clocks, default=None)

    before = segments.best
    segments.best = before if OB is None else of_these
    try:
        yield
    finally:
        segments.best = before


# ---- mutants ------------------------------------------------------------------------------------------------

ONE, GROUP, BOTH, ALONE = (1,), (3,), (1, 3), (0,)

#: What is changed in ``segment.cu``, and the OB of the layouts in which that is wrong; 0: of one sequence.
MUTANTS = {
    # barriers within a block
    "forward: no barrier before the steps": ("load_z(p, next[p]);\n    __syncthreads();", "load_z(p, next[p]);", BOTH),
    "forward: no barrier in a step": ("if (OB == 1) __syncthreads();", "if (OB == 1) ;", ONE),
    "forward: no barrier after the fetch": ("mask, rows);\n                __syncthreads();", "mask, rows);", GROUP),
    "backward: no barrier before the product": ("            }\n            __syncthreads();\n            T sum[NB][UT];", "            }\n            T sum[NB][UT];", BOTH),
    "backward: no barrier before the steps": ("load(S - 1 - p, next[p]);\n    __syncthreads();", "load(S - 1 - p, next[p]);", ONE),
    "staged: no barrier after the tile is there": ("(T)0;\n            }\n            __syncthreads();\n#pragma", "(T)0;\n            }\n#pragma", BOTH),
    "staged: no barrier before the next tile": ("w.put(r, c, v);\n            }\n            __syncthreads();", "w.put(r, c, v);\n            }", BOTH),
    "one buffer": ("OB == 1 ? 2 : 1", "1", ONE),
    "the buffer that is read is written": ("T* then = a + (~t &", "T* then = a + (t &", ONE),
    # blocks that wait for each other
    "no barrier between blocks, forward": ("barrier(counts + 32 * (e * gridDim.y + blockIdx.y));\n                fetch<H>", "__syncthreads();\n                fetch<H>", GROUP),
    "no barrier between blocks, backward": ("barrier(counts + 32 * (e * gridDim.y + blockIdx.y));\n                fetch<G", "__syncthreads();\n                fetch<G", GROUP),
    "no barrier before the count": ("barrier(unsigned* count) {\n    __syncthreads();", "barrier(unsigned* count) {", GROUP),
    "no barrier after the wait": ("        __threadfence();\n    }\n    __syncthreads();\n}", "        __threadfence();\n    }\n}", GROUP),
    "no fence before the count": ("        __threadfence();\n        const unsigned before", "        const unsigned before", GROUP),
    "no fence after the wait": ("== 0) ;\n        __threadfence();", "== 0) ;", GROUP),
    "no wait": ("        while (((before ^ *(volatile unsigned*)count) & 0x80000000u) == 0) ;\n", "", GROUP),
    "a count of one addition too few": ("0x80000000u - (OB - 1)", "0x80000000u - (OB - 2)", GROUP),
    "a count that is not even": ("0x80000000u - (OB - 1)", "0x80000000u", GROUP),
    "a counter for all groups": ("counts + 32 * (e * gridDim.y + blockIdx.y));\n                fetch<H>", "counts);\n                fetch<H>", GROUP),
    "a counter for all members": ("counts + 32 * (e * gridDim.y + blockIdx.y));\n                fetch<G", "counts + 32 * blockIdx.y);\n                fetch<G", GROUP),
    "rows through the read-only path": ("__ldcg(from", "__ldg(from", GROUP),
    # what is not written
    "rows that are not cleared, forward": (": (T)0;\n    }\n    Item it[OWN];", ": a[i];\n    }\n    Item it[OWN];", BOTH),
    "rows that are not cleared, backward": ("for (int i = threadIdx.x; i < ROWS; i += TH) a[i] = (T)0;", "", BOTH),
    # what is read, and from where
    "the mask left out of the first row": ("h0[(size_t)n * H + k] * (mask ? mask[(size_t)n * H + k] : (T)1)", "h0[(size_t)n * H + k]", BOTH),
    "the mask left out of the rows": ("= h * factor[j]", "= h", ONE),
    "the mask left out of fetched rows": ("* (mask ? mask[(size_t)n * K + k] : (T)1);\n    }\n}", ";\n    }\n}", GROUP),
    "the mask left out backward": ("v[j][0] * factor[j]", "v[j][0]", BOTH),
    "the mask in the row that is fetched backward": ("dz + t * step * G, nullptr, rows", "dz + t * step * G, mask, rows", GROUP),
    "the direct part of row 0 read": ("direct = it[j].mine && t > 0", "direct = it[j].mine && t >= 0", BOTH),
    "direct parts of c that there are not": ("direct && direct_c", "direct", BOTH),
    "the direct part of the last c lost": ("(direct_c ? dcs[last] : (T)0)", "(T)0", BOTH),
    "the last c of direct parts that there are not": ("(direct_c ? dcs[last] : (T)0)", "dcs[last]", BOTH),
    "what later steps hand on lost": ("dhs[last] + (dh_after ? dh_after[it[j].at] : (T)0)", "dhs[last]", BOTH),
    "what later steps hand on to c lost": ("+ (dc_after ? dc_after[it[j].at] : (T)0)", "", BOTH),
    "the state before the segment not written": ("if (it[j].mine) hs[it[j].at] = h_before[j];", "", BOTH),
    "c before the segment not written": ("if (HAS_C && it[j].mine) cs[it[j].at] = c_before[j];", "", BOTH),
    "the last total not written": ("if (it[j].mine) dhs[last] = dh[j];", "", BOTH),
    "dh before the segment not written": ("dh_first[it[j].at] = dh[j];", "", BOTH),
    "dc before the segment not written": ("if (HAS_C) dc_first[it[j].at] = dc[j];", "", BOTH),
    "the last h not written": ("h_last[it[j].at] = h;", "", BOTH),
    "the last c not written": ("if (HAS_C) c_last[it[j].at] = c;", "", BOTH),
    "the last states of the first member for all": ("h0 += begin; h_last += begin;", "h0 += begin; h_last += (size_t)n0 * H;", BOTH),
    "h of the step before that": ("h_before[j] = h; c_before[j] = c;", "c_before[j] = c;", BOTH),
    "c of the step before that": ("h_before[j] = h; c_before[j] = c;", "h_before[j] = h;", BOTH),
    "z of the step before": ("load_z(t + PF, next[p])", "load_z(t + PF - 1, next[p])", BOTH),
    "numbers of the step after": ("load(t - PF, next[p])", "load(t - PF + 1, next[p])", BOTH),
    "gates of each unit for units of each gate": ("(r % G * H + unit) * H + k", "(unit * G + r % G) * H + k", BOTH),
    "rows of W for columns": ("W[(size_t)k * H + unit]", "W[(size_t)unit * H + k % H]", BOTH),
    "the first sequence for all": ("h0[(size_t)n * H + k]", "h0[k]", BOTH),
    "the weights of the first member for all": ("    W += (size_t)e * G * H * H;\n    hs +=", "    hs +=", BOTH),
    "the units of the block before": ("unit0 = blockIdx.x * UB", "unit0 = (blockIdx.x ? blockIdx.x - 1 : 0) * UB", GROUP),
    "all sequences of a last group": ("rows = N - n0 < NB ? N - n0 : NB", "rows = NB", BOTH),
    "sums over half of the threads": ("for (int m = KS / 2; m >= 1; m /= 2) {\n        const bool up = threadIdx.x & m;\n        const int half", "for (int m = KS / 2; m >= 2; m /= 2) {\n        const bool up = threadIdx.x & m;\n        const int half", BOTH),
    "the other half given away": ("T give = up ? v[i][p] : other, keep = up ? other : v[i][p];", "T give = up ? other : v[i][p], keep = up ? v[i][p] : other;", BOTH),
    "an item that two threads have": ("else if (up) last = first;", "", ALONE),
    "extra rows of a step one after the other": ("((size_t)i * S + t) * step", "((size_t)t * X + i) * step", BOTH),
}  # fmt: skip

#: What has to show them: first of all a cell and a shape in which everything happens that can.
SHOWING = {
    1: [
        ("peephole", Shape(E=2, N=5, H=7, OB=1, NB=2, mask=True)),
        ("update gate", Shape(H=7, OB=1, NB=2)),
        ("lstm", Shape(S=3, H=7, OB=1, NB=2, c=False, after=False)),
    ],
    0: [("tanh", Shape(S=2, N=2, H=5, OB=1, NB=1))],
}
SHOWING[3] = [(cell, shape._replace(OB=3)) for cell, shape in SHOWING[1]]


class Mutated(CupyBackend):
    """Compiles something else than it is given."""

    change = staticmethod(lambda source, name: source)

    def cuda_function(self, source, name, options, **how):
        return super().cuda_function(self.change(source, name), name, options, **how)


def notices(backend, change, cases, dtype="float32"):
    """What the first of the cases that fails says; None if none does."""
    import gpuemu

    vars(backend)["change"] = change
    for cell, shape in cases:
        backend.compiled.clear()
        try:
            with gpuemu.count():  # raises what the emulated device has seen
                check(backend, CELLS[cell], shape, dtype)
        except (AssertionError, RuntimeError) as error:
            return f"{cell} {shape}: {' '.join(str(error).split())[:300]}"
    return None


def changed(old, new):
    """A change of both ways' text, or of that of the way in which it is."""

    def change(source, name):
        assert old in source, f"{old!r} is no longer in segment.cu: mend the mutant"
        forward, backward = source.split("\n#else\n// dhs", 1)
        if old in forward and (name == "forward" or old in forward[: forward.index("#if !BPTT_BACKWARD")]):
            forward = forward.replace(old, new)
        if name == "backward":
            backward = backward.replace(old, new)
        return f"{forward}\n#else\n// dhs{backward}"

    return change


def cell_text_mutants(source, seed, count):
    """``count`` changes of the functions that come from a cell's Python text, and what they are."""
    body, end = source.index("STEP read_own"), source.index("// The part of a matrix M")
    found = []
    for match in re.finditer(_CHANGEABLE, source[body:end]):
        old, a, b = match[0], body + match.start(), body + match.end()
        line = source[source.rindex("\n", 0, a) + 1 : source.index("\n", b)].strip()
        if old in _SWAPPED:
            new = _SWAPPED[old]
        elif old.startswith("(T)"):
            new = "(T)0.75"
        elif old.startswith("*"):
            swap = {
                "h_before": "h",
                "h": "h_before",
                "c_before": "c",
                "c": "c_before",
                "dh_before": "h",
                "dc_before": "c",
            }
            new = f"*{swap[old[1:-2]]} :"
        else:
            new = re.sub(r"\d+", lambda digits: str(int(digits[0]) - 1 if int(digits[0]) else 1), old)
        found.append((source[a - 40 : a], old, new, source[b : b + 40], line))
    chosen = random.Random(seed).sample(found, min(count, len(found)))
    return [
        (before + old + after, before + new + after, f"{old.strip()} -> {new.strip()} in {line}")
        for before, old, new, after, line in chosen
    ]


_SWAPPED = {" + ": " - ", " - ": " + ", " * ": " + ", " / ": " * ", " > ": " < ", " < ": " > "}
_CHANGEABLE = r"(?<=[\w\])]) [-+*/<>] (?=[\w(])|kept\[\d+ |\*(?:d?[hc]_before|h|c) :|z\[\d+ |\(T\)-?\d+\.\d+"


def of_mutants(names):
    """What noticed each ``(name, OB)`` of them."""
    backend, found = Mutated(0), {}
    (cell, shape), *_ = SHOWING[1]
    check(backend, CELLS[cell], shape, "float32")
    for name, OB in names:
        old, new, _ = MUTANTS[name]
        found[f"{name}, OB={OB}"] = notices(backend, changed(old, new), SHOWING[OB])
    return found


def bits(cells, shapes, backend=None):
    """Of everything that segments of these cells, dtypes and shapes leave; raises what the emulated device has seen."""
    import gpuemu

    backend, found = backend or CupyBackend(0), {}
    for (cell, dtype), shape in product(cells, shapes):
        with gpuemu.count():
            arrays = check(backend, CELLS[cell], shape, dtype)
        whole = b"".join(np.ascontiguousarray(arrays[name]).tobytes() for name in sorted(arrays))
        found[f"{cell} {dtype} {shape}"] = hashlib.sha256(whole).hexdigest()
    return found


if __name__ == "__main__":
    what, *given = json.loads(sys.argv[1])
    if what == "bits":
        print(json.dumps(bits(given[0], [Shape(*shape) for shape in given[1]])))
    else:
        print(json.dumps(of_mutants(*given)))
