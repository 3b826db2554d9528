"""NVRTC in a process of its own, for ``nvrtc.py``: python -I -S nvrtc_process.py LIBRARY BUILTINS.

An emulated CUDA has functions under the same names, and both in one process is one too many. Reads pickled (text,
options) and answers with pickled (whether it compiled, machine code or what the compiler said).
"""

import ctypes
import pickle
import sys


def compiled(nvrtc, source, options):
    program, size = ctypes.c_void_p(), ctypes.c_size_t()

    def said(kind):
        assert getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)) == 0
        text = ctypes.create_string_buffer(size.value)
        assert getattr(nvrtc, f"nvrtcGet{kind}")(program, text) == 0
        return text.raw

    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"segment.cu", 0, None, None) == 0
    try:
        given = [option.encode() for option in options]
        failed = nvrtc.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
        return not failed, said("ProgramLog" if failed else "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def main(library, builtins):
    ctypes.CDLL(builtins, mode=ctypes.RTLD_GLOBAL)  # is looked for by its name alone, and found where it is loaded
    nvrtc = ctypes.CDLL(library)
    while True:
        try:
            source, options = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(compiled(nvrtc, source, options), sys.stdout.buffer)
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
