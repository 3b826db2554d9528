"""A training step on a CUDA GPU: this library on CuPy against torch.nn.RNN, LSTM or GRU (cuDNN) with autograd.

    python benchmarks/gpu.py [--device cuda] [--cell tanh] [--tf32] [--quick]

This library is there twice: with a segment of time in one launch each way, and step by step. Device time between two
events, host time until the call returns (device = host means that launches are the limit), microseconds of device time
per time step, kernel launches per time step, and what the memory pool grew to. Then, from two lengths, what a step
takes and what is fixed: of the loss alone (forward), of what its gradients take more (backward), and of the kernels
alone, beside what their planner's model says of a step. All sides take turns; gradients are first compared with
textbook NumPy's or, of an LSTM or GRU, with ours on the CPU. TF32 is off on both sides, or with --tf32 on, and printed.
Launches are counted by torch's profiler, which sees every kernel of the process (cuBLAS's too), or by the emulated CUDA
device (kernels and products apart). With --device cpu everything but the CUDA timers runs on the CPU. Writes
results/gpu-DTYPE.json (gpu-CELL-DTYPE.json, and with TF32 …-tf32.json), after every shape, into runs/benchmarks unless
--out says otherwise.
"""

import importlib.util
import os
import statistics
import time

import measure
import peers
from peers import Problem, Shape

import bptt_array as ba
from bptt_array.equations.cell import Tape
from bptt_array.kernels import segments
from bptt_array.kernels.layouts import microseconds

SHAPES = [
    Shape(25, 1, 65, 100, 65),
    Shape(100, 64, 128, 256, 64),
    Shape(200, 64, 256, 512, 64),
    Shape(1000, 32, 64, 256, 16),
    Shape(100, 128, 512, 1024, 64),
    Shape(100, 512, 512, 2048, 64),
]
QUICK = [Shape(12, 4, 5, 16, 3)]
TF32_OFF, TF32_ON = 1e-3, 3e-2  # how far gradients may differ; TF32 keeps 10 bits


class HostClock:
    """The clock of a device that is the host."""

    def record(self):
        return time.perf_counter()

    def milliseconds(self, begin, end):
        return (end - begin) * 1e3


class CupyClock:
    """CUDA events on CuPy's current stream."""

    def __init__(self):
        import cupy

        self.cuda = cupy.cuda

    def record(self):
        event = self.cuda.Event()
        event.record()
        return event

    def milliseconds(self, begin, end):
        end.synchronize()
        return self.cuda.get_elapsed_time(begin, end)


class TorchClock:
    """CUDA events on torch's current stream."""

    def record(self):
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, begin, end):
        end.synchronize()
        return begin.elapsed_time(end)


class Ours:
    """``bptt_array`` on a device, its data there."""

    name = "bptt_array"

    def __init__(self, problem, device):
        self.shape, self.rnn = problem.shape, problem.network.copy().to(device)
        self.backend = self.rnn.backend
        self.x, self.target = self.rnn.asarray(problem.x), self.rnn.asarray(problem.target)
        self.on_cuda = isinstance(self.backend, ba.backend.CupyBackend)
        with self.backend.active():
            self.clock = CupyClock() if self.on_cuda else HostClock()

    def run(self):
        return self.rnn.loss_and_grad(self.x, self.target, "mse")

    def of(self, steps, way):
        """A function that runs the first steps: the loss, or with its gradients."""
        x, target = self.x[:steps], self.target[:steps]
        call = self.rnn.loss if way == "forward" else self.rnn.loss_and_grad
        return lambda: call(x, target, "mse")

    def gradients(self):
        return {name: self.backend.to_host(grad) for name, grad in self.run()[1].params.items()}

    def active(self):
        return self.backend.active()

    def pool_bytes(self):
        """What the pool grows to in a step that begins with an empty one; None on the CPU."""
        if not self.on_cuda:
            return None
        pool = self.backend.cupy.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.total_bytes()
        self.run()
        return pool.total_bytes() - before


class StepByStep(Ours):
    """The same without kernels of whole segments: a product and a launch for each time step each way."""

    name = "bptt_array, step by step"

    def __init__(self, problem, device):
        index = int(device.partition(":")[2] or 0)
        super().__init__(problem, ba.backend.CupyBackend(index, persistent=False))


class KernelsAlone:
    """The kernels of a network's segments, one launch each way, without what stands around them.

    Attributes
    ----------
    paths : dict of str to str
        How segments run, forward and backward, in words.
    model : dict of str to float
        Microseconds of a step by the planner's model, of the ways that have a kernel.
    """

    def __init__(self, ours):
        (T, N, _, H, _), rnn, self.backend = ours.shape, ours.rnn, ours.backend
        self.T, self.clock, self.active = T, ours.clock, ours.active
        self.cell = rnn.architecture.cell
        self.params = {name[3:]: value for name, value in rnn.params.items() if name.startswith("l0.")}
        self.paths = segments.describe(self.backend, self.cell, self.params, (N, H))
        self.N, self.H, dtype = N, H, ours.x.dtype
        self.made, self.model = {}, {}
        for way, make in (("forward", segments.ForwardKernel), ("backward", segments.BackwardKernel)):
            if self.paths[way].startswith("one launch"):
                self.made[way] = kernel = make(self.backend, self.cell, self.params, (N, H))
                self.model[way] = microseconds(kernel.layout, segments.Kernels.of(self.backend).device)

        def some(*shape):
            return self.backend.ones(shape, dtype) / 2

        self.states = [some(T + 1, N, H) for _ in self.cell.states]
        self.dstates = [some(T + 1, N, H) for _ in self.cell.states]
        self.z, self.kept = some(T, N, self.cell.gates * H), some(T, self.cell.keeps, N, H) if self.cell.keeps else None
        self.some = some

    def of(self, steps, way):
        """A function that launches the kernel of a way over the first steps."""
        kernel, z, row = self.made[way], self.z[:steps], (self.N, self.H)
        states, dstates = (tuple(a[: steps + 1] for a in arrays) for arrays in (self.states, self.dstates))
        tape = Tape(states, None if self.kept is None else self.kept[:steps], self.params)
        if way == "forward":
            before = tuple(self.some(*row) for _ in states)
            return lambda: kernel(before, None if self.cell.in_place else z, tape)
        extra = self.some(kernel.stored * steps, *row) if kernel.stored else None
        return lambda: kernel(tape, dstates, None, z, extra, direct_c=False)


class Torch(peers.Torch):
    """``torch.nn.RNN``, ``LSTM`` or ``GRU``, which on CUDA is cuDNN's."""

    def __init__(self, problem, device):
        super().__init__(problem, device)
        self.name = f"torch.nn.{peers.TORCH_LAYERS[problem.cell]}"
        self.device = device
        self.clock = TorchClock() if device.startswith("cuda") else HostClock()

    def of(self, steps, way):
        x, target = self.x[:steps], self.target[:steps]

        def run():
            self.layer.zero_grad()
            self.linear.zero_grad()
            loss = self.torch.square(self.linear(self.layer(x)[0]) - target).sum() * self.scale
            if way == "backward":
                loss.backward()

        return run

    def active(self):
        return self.torch.cuda.device(self.device) if self.device.startswith("cuda") else ba.Backend.active(None)

    def pool_bytes(self):
        if not self.device.startswith("cuda"):
            return None
        cuda = self.torch.cuda
        for module in (self.layer, self.linear):  # gradients are part of what a step needs, as with ours
            module.zero_grad(set_to_none=True)
        cuda.empty_cache()
        cuda.reset_peak_memory_stats(self.device)
        before = cuda.memory_reserved(self.device)
        self.run()
        return cuda.max_memory_reserved(self.device) - before


def set_tf32(on):
    """TF32 for products of float32, on or off on both sides. Before anything of theirs has run."""
    os.environ["CUPY_TF32"] = "1" if on else "0"  # for matmul; CuPy may read it once: one setting a process
    if importlib.util.find_spec("torch"):
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def set_cublas_mode(backend, on):
    """The same for ``cupy.cublas.gemm``, which goes by the mode of the cuBLAS handle."""
    if isinstance(backend, ba.backend.CupyBackend):
        cublas = backend.cupy.cuda.cublas
        with backend.active():
            mode = 3 if on else 0  # CUBLAS_TF32_TENSOR_OP_MATH, CUBLAS_DEFAULT_MATH
            cublas.setMathMode(backend.cupy.cuda.Device().cublas_handle, mode)


def tf32_state(backend, with_torch):
    """What is set, read back: the mode of the cuBLAS handle, and torch's two switches."""
    state = {}
    if isinstance(backend, ba.backend.CupyBackend):
        with backend.active():
            handle = backend.cupy.cuda.Device().cublas_handle
            state["cuBLAS handle of CuPy"] = backend.cupy.cuda.cublas.getMathMode(handle) == 3
        state["CUPY_TF32"] = os.environ.get("CUPY_TF32") == "1"
    if with_torch:
        import torch

        state["torch matmul"] = torch.backends.cuda.matmul.allow_tf32
        state["cuDNN"] = torch.backends.cudnn.allow_tf32
    return state


def time_calls(clock, run, seconds, least=3):
    """Device and host milliseconds of single calls, for about ``seconds``; each waited for before the next."""
    device, host = [], []
    run()
    clock.milliseconds(clock.record(), clock.record())  # waits, so that nothing is in the queue
    began = time.perf_counter()
    while len(device) < least or time.perf_counter() - began < seconds:
        begin, called = clock.record(), time.perf_counter()
        run()
        returned, end = time.perf_counter(), clock.record()
        device.append(clock.milliseconds(begin, end))
        host.append((returned - called) * 1e3)
    return device, host


WAYS = ("forward", "backward")


def slopes(sides, T, repetitions, seconds):
    """What a step takes of the device and what is fixed, in microseconds, of what ``side.of(steps, way)`` runs.

    From the medians of two lengths, a quarter of T and T. Sides take turns.
    """
    lengths = max(1, T // 4), T
    times = {(k, way, steps): [] for k, (_, ways) in enumerate(sides) for way in ways for steps in lengths}
    for _ in range(repetitions):
        for (k, way, steps), found in times.items():
            side, _ = sides[k]
            with side.active():
                found += time_calls(side.clock, side.of(steps, way), seconds)[0]
    result = []
    for k, (_, ways) in enumerate(sides):
        result.append({})
        for way in ways:
            short, long = (statistics.median(times[k, way, steps]) * 1e3 for steps in lengths)
            step = (long - short) / max(1, lengths[1] - lengths[0])
            result[-1][way] = {"us_per_step": step, "fixed_us": short - lengths[0] * step}
    return result


def by_way(both):
    """Backward is what forward and backward take more than forward."""
    more = {name: both["backward"][name] - both["forward"][name] for name in both["forward"]}
    return {"forward": both["forward"], "backward": more}


def launches(side):
    """Kernel launches and products of one call, and who counted: ``(kernels, products, counter)``; or Nones."""
    if not isinstance(side.clock, (CupyClock, TorchClock)):
        return None, None, None
    if importlib.util.find_spec("gpuemu"):
        import gpuemu

        with gpuemu.count() as counted:
            side.run()
        return counted.launches, counted.gemms, "emulated device"
    if torch_has(side.clock):
        import torch

        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            side.run()
            side.clock.milliseconds(side.clock.record(), side.clock.record())  # waits for the kernels
        # None where the driver keeps its counters from users: the profiler then sees no event at all.
        kernels = kernel_count((e.name(), e.device_type().name) for e in profile.profiler.kineto_results.events())
        return (kernels, None, "torch profiler, products included") if kernels else (None, None, None)
    return None, None, None


def torch_has(clock):
    """Whether torch is there and has CUDA: its profiler then sees CuPy's kernels as well as its own."""
    if importlib.util.find_spec("torch") is None or isinstance(clock, HostClock):
        return False
    import torch

    return torch.cuda.is_available()


def kernel_count(events):
    """How many of a profile's ``(name, device type)`` are kernels; copies and fills are none."""
    return sum(kind == "CUDA" and not name.startswith(("Memcpy", "Memset")) for name, kind in events)


def row(problem, device, tf32, repetitions, seconds, with_torch):
    """All figures of one shape."""
    busy, shape = measure.busy(), problem.shape
    expected = (peers.Textbook if problem.cell == "tanh" else peers.Ours)(problem).gradients()
    sides = [ours := Ours(problem, device)]
    set_cublas_mode(ours.backend, tf32)
    alone = None
    if ours.backend.persistent:
        sides.append(StepByStep(problem, device))
        with ours.active():
            alone = KernelsAlone(ours)
    if with_torch:
        sides.append(Torch(problem, device))
    result = {side.name: {"device": [], "host": []} for side in sides}
    for side in sides:
        with side.active():
            difference = peers.gradient_difference(side.gradients(), expected)
            if not difference <= (TF32_ON if tf32 else TF32_OFF):
                raise SystemExit(f"gradients of {side.name} differ by {difference:.1e}: nothing was timed")
            result[side.name]["gradient_difference"] = difference
            result[side.name]["pool_bytes"] = side.pool_bytes()
    for _ in range(repetitions):
        for side in sides:
            with side.active():
                device_ms, host_ms = time_calls(side.clock, side.run, seconds)
            result[side.name]["device"] += device_ms
            result[side.name]["host"] += host_ms
    for side in sides:
        entry = result[side.name]
        with side.active():
            kernels, products, counter = launches(side)
        entry["device"] = measure.summary([ms / 1e3 for ms in entry["device"]])
        entry["host"] = measure.summary([ms / 1e3 for ms in entry["host"]])
        entry["us_per_step"] = entry["device"]["median_ms"] * 1e3 / shape.T
        entry |= {"launches": kernels, "products": products, "counter": counter}
        result[side.name] = entry
    for side, found in zip(sides, slopes([(side, WAYS) for side in sides], shape.T, repetitions, seconds), strict=True):
        result[side.name] |= by_way(found)
    kernels = None
    if alone is not None:
        [found] = slopes([(alone, list(alone.made))], shape.T, repetitions, seconds)
        kernels = {way: {"path": alone.paths[way]} for way in WAYS}
        for way, times in found.items():
            kernels[way] |= {**times, "model_us_per_step": alone.model[way]}
    return {"shape": list(shape), "busy": busy, "peers": result, "kernels": kernels}


def tables(result):
    """The result as Markdown."""
    head = ["(T, N, I, H, O)", "", "device ms (p10-p90)", "host ms", "us / time step", "launches / step", "pool MiB"]
    head += [f"{way}: us / step + us" for way in WAYS]
    rows, ratios = [], []
    for entry in result["rows"]:
        shape = Shape(*entry["shape"])
        for name, found in entry["peers"].items():
            count, pool = found["launches"], found["pool_bytes"]
            rows.append([
                str(shape),
                name,
                "{median_ms:.3f} ({p10_ms:.3f}-{p90_ms:.3f})".format(**found["device"]),
                f"{found['host']['median_ms']:.3f}",
                f"{found['us_per_step']:.2f}",
                "not counted" if count is None else f"{count / shape.T:.1f}",
                "" if pool is None else f"{pool / 2**20:.1f}",
                *["{us_per_step:.2f} + {fixed_us:.0f}".format(**found[way]) for way in WAYS],
            ])  # fmt: skip
        ours, *others = [(name, found["device"]["median_ms"]) for name, found in entry["peers"].items()]
        if others:
            of_others = ", ".join(f"{name} {ours[1] / theirs:.2f}" for name, theirs in others)
            ratios.append(f"- {shape}: our time / that of {of_others}")
    counters = {found["counter"] for entry in result["rows"] for found in entry["peers"].values()} - {None}
    notes = [f"TF32 {'on' if result['tf32'] else 'off'} on both sides; {result['dtype']}; device {result['gpu']}."]
    if result["tf32_state"]:
        read = ", ".join(f"{name} {'on' if on else 'off'}" for name, on in result["tf32_state"].items())
        notes.append(f"TF32 as read back: {read}.")
    if counters:
        notes.append(f"Launches of the whole step, over T; counted by: {', '.join(sorted(counters))}.")
    notes.append(
        "Forward: of the loss, from two lengths, what a step takes and what is fixed; backward: what gradients add."
    )
    return [*measure.table(head, rows), "", *ratios, *([""] if ratios else []), *_of_kernels(result), *notes]


def _of_kernels(result):
    """A table of the kernels alone, where there are any."""
    head = ["(T, N, I, H, O)", "", "us / step", "by the model", "measured / model", "fixed us", "how"]
    rows = []
    for entry in result["rows"]:
        for way, found in (entry["kernels"] or {}).items():
            figures = [""] * 4
            if "us_per_step" in found:
                step, model = found["us_per_step"], found["model_us_per_step"]
                figures = [f"{step:.2f}", f"{model:.2f}", f"{step / model:.1f}", f"{found['fixed_us']:.0f}"]
            rows.append([str(Shape(*entry["shape"])), way, *figures, found["path"].partition(";")[0]])
    return ["The kernels alone, one launch a segment:", "", *measure.table(head, rows), ""] if rows else []


def gpu_description(backend):
    """Name, memory, driver and CUDA versions of the device."""
    if not isinstance(backend, ba.backend.CupyBackend):
        return "cpu (no GPU: CUDA timers not used)"
    runtime = backend.cupy.cuda.runtime
    index = int(backend.name.partition(":")[2])
    return (
        f"{ba.backend.cuda.cuda_description(index)}, CUDA driver {runtime.driverGetVersion()}, "
        f"runtime {runtime.runtimeGetVersion()}, CuPy {backend.cupy.__version__}"
    )


def main(argv=None):
    parser = measure.parser(__doc__)
    measure.add_turns(parser, repetitions=7, seconds=0.3)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the script (default: cuda)")
    parser.add_argument("--cell", choices=list(peers.TORCH_LAYERS), default="tanh", help="(default: tanh)")
    parser.add_argument("--tf32", action="store_true", help="products of float32 in TF32, on both sides")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.repetitions, arguments.seconds = 2, 0.01
    set_tf32(arguments.tf32)
    try:
        backend = ba.backend.resolve(arguments.device)
    except ValueError as error:
        parser.error(f"{error}; --device cpu tries everything but the CUDA timers")
    with_torch = importlib.util.find_spec("torch") is not None
    if with_torch and backend.name != "cpu":
        import torch

        with_torch = torch.cuda.is_available()
    cell = "" if arguments.cell == "tanh" else f"{arguments.cell}-"
    name = f"gpu-{cell}{arguments.dtype}{'-tf32' if arguments.tf32 else ''}"
    result = {"tf32": arguments.tf32, "dtype": arguments.dtype, "gpu": gpu_description(backend), "rows": []}
    with measure.threads(arguments.threads):
        for shape in QUICK if arguments.quick else SHAPES:
            print(f"{shape} ...", flush=True)
            turns = arguments.repetitions, arguments.seconds
            problem = Problem(shape, arguments.dtype, arguments.cell)
            result["rows"].append(row(problem, backend.name, arguments.tf32, *turns, with_torch))
            busy = [entry["busy"] for entry in result["rows"]]
            result["about"] = measure.environment(arguments.threads, measure.command(__file__), busy)
            if with_torch and backend.name != "cpu":
                result["about"]["versions"]["cudnn"] = str(torch.backends.cudnn.version())
            result["tf32_state"] = tf32_state(backend, with_torch)
            path = measure.save(name, result, arguments.out)
    print("\n".join([*measure.describe(result["about"]), "", *tables(result)]))
    if not with_torch:
        print("torch with CUDA is not installed: not compared.")
    print(f"wrote {path}")
    return result


if __name__ == "__main__":
    measure.run(main)
