"""The kernels of a segment, compiled for real devices by NVRTC: no device and no driver is needed for that.

What the emulated device cannot show: that the text is CUDA, that no layout which the planner promises spills registers,
and that the compiler reads what blocks exchange where other blocks' writes are seen.
"""

import re
import shutil
import subprocess
from functools import cache

import numpy as np
import nvrtc
import pytest
from cells_of_users import Peephole
from conftest import IN_CI
from every_optimizer import OPTIMIZERS
from nvrtc import needs_nvrtc
from test_docs import cell_of_the_page

import bptt_array as ba
from bptt_array.backend import cuda_columns, cuda_norms, cuda_rows, cuda_tokens, cuda_updates
from bptt_array.equations.activations import OUTPUT_ACTIVATIONS
from bptt_array.equations.losses import LOSSES
from bptt_array.equations.objective import LossOfRows
from bptt_array.kernels.layouts import Device, Work, best, microseconds
from bptt_array.kernels.segments import Kernels
from bptt_array.losses import CrossEntropy
from bptt_array.rnn.cells import CELLS

OF_USERS = {"update gate": cell_of_the_page()(), "peephole": Peephole()}
DTYPES = {4: "float32", 8: "float64"}
#: (H, N, bytes of a number): of one block and of several, of both dtypes.
SHAPES = {
    "tanh": [(100, 32, 4), (320, 16, 4), (200, 16, 8)],
    "relu": [(128, 32, 4), (20, 3, 8)],
    "lstm": [(64, 32, 4), (160, 16, 4), (96, 8, 8)],
    "gru": [(64, 32, 4), (160, 16, 4), (20, 3, 8)],
    "update gate": [(64, 32, 4), (200, 16, 4), (20, 3, 8)],
    "peephole": [(48, 32, 4), (160, 16, 4), (20, 3, 8)],
}
ARCHITECTURES = [*nvrtc.PUBLISHED] if IN_CI else [75, 90, 120]


def test_the_cell_with_parameters_of_its_own_is_right():
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((6, 4, 3)), rng.standard_normal((6, 4, 2))
    rnn = ba.RNN(3, 5, 2, cell=Peephole(), dtype="float64")
    rnn.params["l0.p"][...] = rng.standard_normal(15)
    _, grads, _ = rnn.loss_and_grad(x, target)

    def loss(params):
        rnn.params.update(params)
        return rnn.loss(x, target)[0]

    ba.check_gradients(loss, dict(rnn.params), grads.params)


@cache
def text_of(name, H, itemsize):
    """The same for every device."""
    return Kernels(nvrtc.Compiler(90)).text((CELLS | OF_USERS)[name], H, DTYPES[itemsize])


def found(name, H, N, itemsize, arch, *, backward):
    """The kernel that a device of an architecture would get, compiled for it, and how many were compiled until then."""
    kernels, text = Kernels(nvrtc.Compiler(arch)), text_of(name, H, itemsize)
    return kernels.find(text, Work(text.size, H, N, 1, itemsize, backward)), kernels.backend.compiled


def held_against_the_machine_code(kernel, way, folder):
    """What the loop over time reads that other blocks write in the same launch, it reads past the caches of its own."""
    code = nvrtc.instructions(kernel.function.cubin, way, folder)
    assert not [line for line in code.all if re.search(r"\b(LDL|STL)\b", line)]
    loads = [line for line in code.loop if re.search(r"\bLDG\b", line)]
    of_rows = [line for line in loads if "STRONG.GPU" in line]
    read_only = [line for line in loads if "CONSTANT" in line]
    if kernel.layout.OB == 1:
        assert not read_only
        assert not of_rows
    else:
        assert len(of_rows) >= kernel.layout.PF
        # forward each comes with what it is multiplied by, the mask, which nobody writes
        assert len(read_only) <= (0 if way == "backward" else len(of_rows))


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES, ids="sm_{}".format)
@pytest.mark.parametrize("name", SHAPES)
def test_a_layout_that_the_planner_promises_compiles_and_does_not_spill(name, arch, tmp_path):
    blocks = set()
    for H, N, itemsize in SHAPES[name]:
        for way in ("forward", "backward"):
            kernel, compiled = found(name, H, N, itemsize, arch, backward=way == "backward")
            blocks.add(kernel.layout.OB > 1)
            assert kernel.function.needs.local == 0
            assert kernel.function.needs.registers * kernel.layout.TH <= 65536
            assert compiled <= 3  # the estimate of registers is good enough to begin with
            if nvrtc.nvdisasm() and name in ("tanh", "lstm") and itemsize == 4:  # the others exchange by the same text
                held_against_the_machine_code(kernel, way, tmp_path)
    assert blocks == ({False} if name == "relu" else {False, True})


@needs_nvrtc
@pytest.mark.skipif(nvrtc.nvdisasm() is None, reason="nvdisasm is not installed: pip install 'bptt-array[nvrtc]'")
def test_the_machine_code_was_looked_at(tmp_path):
    """So that where it was not, a line of the summary says so; and the loop that is found is that over time."""
    kernel, _ = found("tanh", 320, 16, 4, 90, backward=False)
    code = nvrtc.instructions(kernel.function.cubin, "forward", tmp_path)
    layout = kernel.layout
    products = layout.NB * layout.UT * -(-320 // (4 * layout.KS)) * 4 * layout.PF
    multiply_adds = sum("FFMA" in line for line in code.loop)
    assert products <= multiply_adds <= products + 40 * layout.PF
    assert sum("STRONG.GPU" in line for line in code.loop) >= layout.PF


@needs_nvrtc
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed, whose ptxas says what a kernel needs")
@pytest.mark.parametrize("arch", [75, 120], ids="sm_{}".format)  # whose files have other marks
def test_what_is_read_in_a_cubin_is_what_ptxas_says(arch, tmp_path):
    spilling = """extern "C" __global__ void __launch_bounds__(1024, 1) forward(float* x, int n) {
        float a[64], sum = 0;
        for (int i = 0; i < 64; i++) a[i] = x[i * n];
        for (int t = 0; t < n; t++) for (int i = 0; i < 64; i++) a[i] = a[i] * a[(i + 1) % 64] + x[t * 64 + i];
        for (int i = 0; i < 64; i++) sum += a[i * n % 64];
        x[0] = sum;
    }"""
    kernel, _ = found("relu", 20, 3, 4, arch, backward=False)
    ours = text_of("relu", 20, 4).source
    seen = []
    for source, options in ((spilling, ("--std=c++17",)), (ours, kernel.function.options)):
        (tmp_path / "k.cu").write_text(source)
        command = [
            "nvcc",
            "-cubin",
            f"-arch=sm_{arch}",
            "-Xptxas",
            "-v",
            "-ftz=true",
            *options,
            "k.cu",
            "-o",
            "k.cubin",
        ]
        said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stderr
        registers, stack = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes stack frame", said)
        seen.append(nvrtc.needs((tmp_path / "k.cubin").read_bytes(), "forward"))
        assert seen[-1] == (int(registers[1]), int(stack[1]))
    assert seen[0].local > 0 == seen[1].local


def other_texts(real):
    """The text of every other kind of kernel, by the name of its function."""
    dtype = {"float": "float32", "double": "float64"}[real]
    yield "clip", cuda_norms.kernel_text(dtype)
    yield "bptt_column_sums", cuda_columns.kernel_text(real, 5)
    yield "bptt_add_rows", cuda_tokens.kernel_text(real)
    for make in OPTIMIZERS.values():
        optimizer = make()
        numbers = optimizer._numbers("", ba.backend.NumpyBackend(), np.dtype(dtype), 1)
        yield "over", cuda_updates.kernel_text(optimizer._equation(), real, 2 + len(optimizer.keeps), len(numbers))
    rows = (
        ("mse", "identity", 1),
        ("cross_entropy", "softmax", 32),
        ("binary_cross_entropy", "sigmoid", 128),
        ("mae", "tanh", 4),
        ("huber", "identity", 8),
    )
    for loss, output, lanes in rows:
        kinds = ["entry", "entry", "class" if LOSSES[loss].takes_classes else "entry", "row", "number"]
        function = LossOfRows(LOSSES[loss], OUTPUT_ACTIVATIONS[output], 0.5)
        yield "bptt_rows", cuda_rows.source(function, kinds, 3, real, lanes)[0]
    loss, g = CrossEntropy([1, 2], None, 0.1).equation(2, "float32"), OUTPUT_ACTIVATIONS["softmax"]
    for kind, lanes in (("class", 32), ("entry", 128)):
        kinds = ["entry", "entry", kind, "row", "number", "entry"]
        yield "bptt_rows", cuda_rows.source(LossOfRows(loss, g, 0.5, True), kinds, 3, real, lanes)[0]


@needs_nvrtc
@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize("arch", ARCHITECTURES, ids="sm_{}".format)
def test_the_other_kernels_of_a_step_compile_and_do_not_spill(arch, real):
    names = set()
    for name, text in other_texts(real):
        local = nvrtc.needs(nvrtc.compiled(text, ("--std=c++17",), arch), name).local
        assert local <= (16 if real == "double" else 0)  # a frame for a call, as of a logarithm in double
        names.add(name)
    assert names == {"clip", "bptt_column_sums", "bptt_add_rows", "over", "bptt_rows"}


#: Microseconds of a step, each way, that an H100 is to take at most: tanh, float32.
BARS = {(128, 32): 0.3, (256, 64): 0.8, (512, 64): 2.0}


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize(("H", "N"), BARS)
def test_the_model_of_an_h100_keeps_to_the_bars(H, N, way):
    kernels = Kernels(nvrtc.Compiler(90))
    assert kernels.device == Device(132, 227 << 10, lanes=128, wide_lanes=64, GHz=1.7)
    text = text_of("tanh", H, 4)
    layout = best(Work(text.size, H, N, 1, 4, way == "backward"), kernels.device)
    assert microseconds(layout, kernels.device) <= BARS[H, N]
