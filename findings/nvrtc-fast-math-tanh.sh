#!/usr/bin/env bash
# NVIDIA's run-time compiler, nvidia-cuda-nvrtc-cu12 12.6.85 against 12.8.93: with --use_fast_math tanhf(x) is another function.
# 12.6 makes it of exponentials (ex2.approx, about single precision); 12.8 and later of one instruction, tanh.approx.f32, whose
# relative error is up to 2^-11 (PTX manual). The text, the option and the architecture (sm_80) are the same.
#
# Seen: "12.6.85: tanh.approx.f32 0 times, ex2.approx 1 times" and "12.8.93: tanh.approx.f32 1 times, ex2.approx 0 times".
#
# Why a user of recurrent networks would care: tanh is in every step. An error of 5e-4 in each state is that of half precision: it
# goes on through time, and 1 - h^2 of a saturated unit, of which a gradient is a product, loses all its digits. A kernel of one's
# own (CuPy's RawKernel, fuse or Numba) that was exact with fast math under CUDA 12.6 is not after an update of a wheel. This
# library compiles its kernels without the option (tests/test_nvrtc.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
for version in 12.6.85 12.8.93; do
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --target "$folder/$version" "nvidia-cuda-nvrtc-cu12==$version"
  "$folder/venv/bin/python" - "$folder/$version" "$version" <<'PY'
import ctypes
import sys
from pathlib import Path

[library] = Path(sys.argv[1]).glob("nvidia/cuda_nvrtc/lib/libnvrtc.so.12")
nvrtc, program, size = ctypes.CDLL(str(library)), ctypes.c_void_p(), ctypes.c_size_t()
text = b'extern "C" __global__ void step(float* h) { h[threadIdx.x] = tanhf(h[threadIdx.x]); }'
assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, b"step.cu", 0, None, None) == 0
options = (ctypes.c_char_p * 2)(b"--gpu-architecture=compute_80", b"--use_fast_math")
assert nvrtc.nvrtcCompileProgram(program, 2, options) == 0
assert nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)) == 0
ptx = ctypes.create_string_buffer(size.value)
assert nvrtc.nvrtcGetPTX(program, ptx) == 0
found = [ptx.value.decode().count(name) for name in ("tanh.approx.f32", "ex2.approx")]
print(f"{sys.argv[2]}: tanh.approx.f32 {found[0]} times, ex2.approx {found[1]} times")
expected = [False, True] if sys.argv[2] == "12.6.85" else [True, False]
assert [count > 0 for count in found] == expected, "that has changed"
PY
done
