"""Kernels compiled by NVRTC for real devices, none of which is here, and what the machine code says of itself."""

import importlib.util
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

#: What CUDA says of a device of each architecture: multiprocessors, KiB of shared memory that a block may have, how
#: many times faster float32 is than float64, MHz. T4, A100, RTX 3090, H100, B200, RTX 5090.
PUBLISHED = {
    75: (40, 64, 32, 1590),
    80: (108, 163, 2, 1410),
    86: (82, 99, 64, 1700),
    90: (132, 227, 2, 1700),
    100: (148, 227, 2, 1850),
    120: (170, 99, 64, 2410),
}


def limits(arch):
    """As ``Backend.cuda_limits`` gives them."""
    multiprocessors, shared, ratio, MHz = PUBLISHED[arch]
    return {
        "MultiProcessorCount": multiprocessors,
        "MaxSharedMemoryPerBlockOptin": shared << 10,
        "MaxRegistersPerMultiprocessor": 65536,
        "SingleToDoublePrecisionPerfRatio": ratio,
        "ClockRate": MHz * 1000,
        "CooperativeLaunch": 1,
    }, divmod(arch, 10)


def installed():
    """Paths of NVRTC's library and of the one that it opens, from the newest wheel; None without one."""
    found = importlib.util.find_spec("nvidia")
    for folder in sorted(found.submodule_search_locations if found else []):
        for nvrtc in sorted(Path(folder).glob("*/lib/libnvrtc.so.*"), reverse=True):
            builtins = [path for path in nvrtc.parent.glob("libnvrtc-builtins.so.*") if ".alt." not in path.name]
            if builtins:
                return nvrtc, builtins[0]
    return None


def nvdisasm():
    """The program that prints machine code: of the environment variable, of its wheel or of a toolkit; else None."""
    found = importlib.util.find_spec("nvidia")
    folders = found.submodule_search_locations if found else []
    wheels = [str(path) for folder in folders for path in Path(folder).glob("*/bin/nvdisasm")]
    return os.environ.get("NVDISASM") or next(iter(wheels), None) or shutil.which("nvdisasm")


needs_nvrtc = pytest.mark.skipif(
    installed() is None or sys.platform != "linux",
    reason="NVRTC is not installed; it needs no GPU: pip install 'bptt-array[nvrtc]'",
)


@cache
def _process():
    """One for all that is compiled here; it ends with this one, whose end of the pipe is then closed."""
    program = [sys.executable, "-I", "-S", Path(__file__).with_name("nvrtc_process.py"), *installed()]
    return subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def compiled(source, options, arch):
    """Machine code, with what CuPy adds to the options of a RawModule."""
    process = _process()
    pickle.dump((source, (*options, "-ftz=true", f"-arch=sm_{arch}")), process.stdin)
    process.stdin.flush()
    succeeded, found = pickle.load(process.stdout)
    if not succeeded:
        raise RuntimeError(found.decode(errors="replace").strip("\0"))
    return found


class Needs(NamedTuple):
    """What a thread of a kernel needs: registers, and bytes of memory of its own, as spilled registers do."""

    registers: int
    local: int


#: Attributes of a function in ``.nv.info``, of records (form, attribute, 16 bits: a value or how many bytes follow).
_REGISTERS, _FRAME, _STACK, _BYTES = 0x2F, 0x11, 0x12, 4


def needs(cubin, name):
    """Read in the ELF file that a cubin is; held against ``ptxas -v`` where there is one."""
    assert cubin[:4] == b"\x7fELF"
    (at,), (size, count, of_names) = struct.unpack_from("<Q", cubin, 40), struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", cubin, at + k * size) for k in range(count)]

    def text(at):
        return cubin[at : cubin.index(b"\0", at)].decode()

    named = {text(sections[of_names][4] + section[0]): section for section in sections}
    symbols, names = named[".symtab"], named[".strtab"][4]
    found = {}
    at, end = named[".nv.info"][4], sum(named[".nv.info"][4:6])
    while at < end:
        form, attribute, value = struct.unpack_from("<BBH", cubin, at)
        if form == _BYTES and attribute in (_REGISTERS, _FRAME, _STACK):
            symbol, number = struct.unpack_from("<II", cubin, at + 4)
            if text(names + struct.unpack_from("<I", cubin, symbols[4] + 24 * symbol)[0]) == name:
                found[attribute] = number
        at += 4 + (value if form == _BYTES else 0)
    return Needs(found[_REGISTERS], max(found[_FRAME], found[_STACK]))


class Function(NamedTuple):
    """What stands for a compiled kernel."""

    cubin: bytes
    needs: Needs
    options: tuple[str, ...]


class Compiler:
    """What :class:`bptt_array.kernels.segments.Kernels` asks of a backend to find a kernel, for a device not here."""

    def __init__(self, arch):
        self.arch = arch
        self.compiled = 0

    def cuda_limits(self):
        return limits(self.arch)

    def cuda_function(self, source, name, options, *, shared, cooperative):
        self.compiled += 1
        assert shared <= PUBLISHED[self.arch][1] << 10
        cubin = compiled(source, options, self.arch)
        found = needs(cubin, name)
        return Function(cubin, found, options), found.local


class Code(NamedTuple):
    """The instructions of a kernel, in order: those of its loop over time, and all."""

    loop: list[str]
    all: list[str]


def instructions(cubin, name, folder):
    """By ``nvdisasm``. The loop over time is the longest: from a label to a jump back to it."""
    path = Path(folder) / "kernel.cubin"
    path.write_bytes(cubin)
    printed = subprocess.run([nvdisasm(), "-c", path], capture_output=True, text=True, check=True).stdout
    body = re.search(rf"\.text\.{name}:(.*?)(?=\n\s*\.section|\Z)", printed, re.S)[1]
    found, labels, loop = [], {}, (0, 0)
    for line in body.split("\n"):
        if label := re.match(r"\s*\.(L_x?_?\w+):", line):
            labels[label[1]] = len(found)
        if operation := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            found.append(operation[1])
            jump = re.search(r"BRA.*\(\.(L_\w+)\)", line)
            if jump and jump[1] in labels and len(found) - labels[jump[1]] > loop[1] - loop[0]:
                loop = labels[jump[1]], len(found)
    return Code(found[slice(*loop)], found)
