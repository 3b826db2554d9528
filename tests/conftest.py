"""What holds for every test, and backends to run on: every namespace at hand, each on its devices."""

import gc
import importlib.util
import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests run beside each other: one thread each, also in the programs that they start. Before NumPy is imported.
    for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(_name, "1")

import hypothesis
import numpy as np
import pytest
import threadpoolctl
from skips import pytest_terminal_summary  # noqa: F401 (a hook of pytest's)

import bptt_array as ba
from bptt_array.backend import NumpyBackend
from bptt_array.backend.cuda import cuda_device_count

#: Random examples are many and the same every time where ``CI`` is set; elsewhere they are fewer, and others each time.
IN_CI = bool(os.environ.get("CI"))


def examples(count):
    """How many random examples: all of them where ``CI`` is set, a quarter elsewhere."""
    return count if IN_CI else max(10, count // 4)


hypothesis.settings.register_profile(
    "suite",
    max_examples=examples(100),
    deadline=None,  # nothing depends on the clock
    derandomize=IN_CI,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(  # of random_mutants.py: whether there is an example is enough
    "mutants",
    hypothesis.settings.get_profile("suite"),
    derandomize=True,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
hypothesis.settings.load_profile("suite")


def pytest_configure():
    """Programs that tests start have to hear signals, also where these are ignored here (as under ``nohup``)."""
    for name, handler in (
        ("SIGINT", signal.default_int_handler),
        ("SIGTERM", signal.SIG_DFL),
        ("SIGHUP", signal.SIG_DFL),
    ):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


HAS_TORCH = importlib.util.find_spec("torch") is not None


def _strict(device):
    import array_api_strict

    return ba.Backend(array_api_strict, array_api_strict.Device(device))


def _torch(device="cpu"):
    import torch

    return ba.Backend(torch, device)


def _cuda(index, *, persistent=True):
    from bptt_array.backend import CupyBackend

    return CupyBackend(index, persistent=persistent)


class InParts(NumpyBackend):
    """NumPy, with every batch cut into two parts (of one sequence: one of them is empty), each done by a thread."""

    def count_parts(self, N, multiply_adds):
        return 2

    def run_parts(self, parts):
        with threadpoolctl.threadpool_limits(2, user_api="blas"):
            return super().run_parts(parts)

    def __reduce__(self):
        return InParts, (), self.settings


needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed: pip install torch")


def needs_cuda(count):
    found = cuda_device_count()
    reason = f"needs CuPy and {count} CUDA device(s), found {found}"
    return [pytest.mark.gpu, pytest.mark.skipif(found < count, reason=reason)]


BACKENDS = [
    pytest.param(NumpyBackend, ("float32", "float64"), id="numpy"),
    pytest.param(InParts, ("float64",), id="numpy-in-parts"),
    pytest.param(lambda: ba.Backend(np), ("float32", "float64"), id="numpy-portable"),
    pytest.param(lambda: _strict("CPU_DEVICE"), ("float32", "float64"), id="strict"),
    pytest.param(lambda: _strict("device1"), ("float32", "float64"), id="strict-device1"),
    pytest.param(lambda: _strict("no_float64"), ("float32",), id="strict-no_float64"),
    pytest.param(lambda: _strict("no_x64"), ("float32",), id="strict-no_x64"),  # nor int64
    pytest.param(_torch, ("float32", "float64"), id="torch", marks=needs_torch),
    pytest.param(lambda: _cuda(0), ("float32", "float64"), id="cuda:0", marks=needs_cuda(1)),
    pytest.param(
        lambda: _cuda(0, persistent=False), ("float32", "float64"), id="cuda:0-step-by-step", marks=needs_cuda(1)
    ),
    pytest.param(lambda: _cuda(1), ("float32", "float64"), id="cuda:1", marks=needs_cuda(2)),
]


def backends_and_dtypes():
    """One parameter (make_backend, dtype) for each backend and dtype."""
    params = []
    for backend in BACKENDS:
        make, dtypes = backend.values
        params += [pytest.param(make, dtype, id=f"{backend.id}-{dtype}", marks=backend.marks) for dtype in dtypes]
    return params


cuda = [pytest.param("cuda", id="cuda", marks=needs_cuda(1)), pytest.param("cuda:1", id="cuda:1", marks=needs_cuda(2))]


@pytest.fixture(autouse=True)
def _little_device_memory_is_kept(request):
    """What a test took of a device is given back: where the emulated one is strict, each page costs at every launch."""
    yield
    if request.node.get_closest_marker("gpu") is None or not cuda_device_count():
        return
    import cupy

    pool = cupy.get_default_memory_pool()
    for index in range(cuda_device_count()):
        with cupy.cuda.Device(index):
            if pool.total_bytes() > 1 << 20:
                gc.collect()
                pool.free_all_blocks()
