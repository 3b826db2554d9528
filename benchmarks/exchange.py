"""What it takes blocks of a CUDA device to hand a row on to each other: the number that the planner of kernels guesses.

    python benchmarks/exchange.py [--device cuda] [--quick]

The barrier and the fetch are those of the kernels, cut out of their text; there is nothing else in a step. From two
lengths: clocks from the last write of a row to the first read of it, for 2 to 32 blocks, and what `Device.exchange`
in `bptt_array/kernels/layouts.py` should be. Writes results/exchange.json, into runs/benchmarks unless --out says
otherwise.
"""

import statistics
from pathlib import Path

import measure
import numpy as np
from gpu import CupyClock

import bptt_array as ba
from bptt_array.kernels import segments
from bptt_array.kernels.layouts import Device

BLOCKS = (2, 4, 8, 16, 32)
WIDTH, THREADS = 64, 256
TEXT = """
typedef float T;
constexpr int OB = BPTT_OB, NB = 1, TH = BPTT_TH;
__host__ __device__ constexpr int padded(int K) { return K; }
#define H BPTT_H
/* CUT */
extern "C" __global__ void __launch_bounds__(TH, 1) exchange(T* rows, unsigned* counts, long long* clocks, int S) {
    __shared__ T a[H];
    const int group = blockIdx.y;
    rows += (size_t)group * H;
    const size_t step = (size_t)gridDim.y * H;
    const long long began = clock64();
    T last = 0;
    for (int t = 0; t < S; t++) {
        if (threadIdx.x % OB == blockIdx.x && threadIdx.x < H) rows[(t & 1) * step + threadIdx.x] = last + 1;
        barrier(counts + 32 * group);
        fetch<H>(a, rows + (t & 1) * step, nullptr, 1);
        __syncthreads();
        last = a[threadIdx.x % H];
    }
    if (threadIdx.x == 0 && blockIdx.x == 0) clocks[group] = clock64() - began;
}
"""


def source():
    """With the functions of the kernels' own text."""
    text = Path(segments.__file__).with_name("segment.cu").read_text(encoding="utf-8")
    begin, end = text.index("__device__ __forceinline__ void barrier"), text.index("struct Item")
    return TEXT.replace("/* CUT */", text[begin:end])


def clocks_of_a_step(backend, device, OB, lengths, turns):
    """By the device's own clock where it has one, otherwise by events and its frequency; and the microseconds."""
    options = ("--std=c++17", f"-DBPTT_OB={OB}", f"-DBPTT_TH={THREADS}", f"-DBPTT_H={WIDTH}")
    function, _ = backend.cuda_function(source(), "exchange", options, shared=0, cooperative=True)
    groups = max(1, device.multiprocessors // OB)
    rows = backend.zeros((2, groups, WIDTH), backend.dtype("float32"))
    counts = backend.zeros((32 * groups,), backend.dtype("uint32"))
    clocks = backend.zeros((groups,), backend.dtype("int64"))
    timer, ticks, us = CupyClock(), {}, {}
    for S in lengths:
        found = []
        for turn in range(turns + 1):  # the first is not counted
            begin = timer.record()
            backend.cuda_launch(function, (OB, groups, 1), THREADS, [rows, counts, clocks, S], shared=0)
            took = timer.milliseconds(begin, timer.record()) * 1e3
            if turn:
                found.append((took, float(np.max(backend.to_host(clocks)))))
            if int(backend.to_host(rows).max()) != S:
                raise SystemExit(f"a row handed on {S} times says {backend.to_host(rows).max()}: the barrier is wrong")
            rows[...] = 0
        us[S], ticks[S] = (statistics.median(column) for column in zip(*found, strict=True))
    short, long = lengths
    of_events, of_clock = ((found[long] - found[short]) / (long - short) for found in (us, ticks))
    return (of_clock or of_events * device.GHz * 1e3), of_events, groups


def tables(result):
    """The result as Markdown."""
    rows = [[str(row["OB"]), str(row["groups"]), f"{row['us']:.3f}", f"{row['clocks']:.0f}"] for row in result["rows"]]
    return [
        *measure.table(["blocks of a group", "groups", "us a step", "clocks"], rows),
        "",
        f"`Device.exchange` is {result['guess']}; by this it should be {result['exchange']}.",
    ]


def main(argv=None):
    parser = measure.parser(__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 (default: cuda)")
    arguments = parser.parse_args(argv)
    try:
        backend = ba.backend.resolve(arguments.device)
        if not backend.persistent:
            raise ValueError(f"device={arguments.device!r} has no kernels of whole segments")
    except ValueError as error:
        parser.error(str(error))
    device = segments.Kernels.of(backend).device
    lengths, turns = ((2, 6), 1) if arguments.quick else ((100, 2100), 7)
    result = {"rows": [], "guess": Device.exchange}
    with backend.active():
        for OB in BLOCKS[:2] if arguments.quick else BLOCKS:
            clocks, us, groups = clocks_of_a_step(backend, device, OB, lengths, turns)
            result["rows"].append({"OB": OB, "groups": groups, "us": us, "clocks": clocks})
    # without the bytes of the row, which the model counts by themselves
    of_row = WIDTH * 4 / 32
    result["exchange"] = round(statistics.median(row["clocks"] for row in result["rows"]) - of_row)
    print("\n".join(tables(result)))
    print(f"wrote {measure.save('exchange', result, arguments.out)}")
    return result


if __name__ == "__main__":
    measure.run(main)
