"""Parts of a batch on several threads: when, with which bits, and what is left when something goes wrong."""

import copy
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
import threadpoolctl

import bptt_array as ba
from bptt_array.backend import NumpyBackend
from bptt_array.backend.workers import Workers, workers

BLAS = threadpoolctl.ThreadpoolController().select(user_api="blas")
needs_blas = pytest.mark.skipif(not BLAS.lib_controllers, reason="NumPy's BLAS does not say how many threads it has")


def counts():
    return [library.num_threads for library in BLAS.lib_controllers]


@pytest.fixture(autouse=True)
def _threads_stay_as_they_are():
    before = counts()
    yield
    assert counts() == before


def network(H=256, cell="tanh", threads=None, **options):
    backend = NumpyBackend()
    backend.threads = threads
    return ba.RNN(3, H, 2, cell=cell, device=backend, **options)


def batch(rnn, T=6, N=32):
    rng = np.random.default_rng(0)
    return [rnn.asarray(rng.standard_normal((T, N, size))) for size in (3, 2)]


def seen(rnn, monkeypatch):
    """A list to which the number of parts of each call is added."""
    found = []
    run = Workers.run
    monkeypatch.setattr(Workers, "run", lambda self, parts: (found.append(len(parts)), run(self, parts))[1])
    return found


# ---- when ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threads", "N", "H", "parts"),
    [
        (2, 32, 256, 2),
        (2, 64, 256, 2),
        (2, 32, 255, 1),  # threads would be in each other's way
        (2, 50, 64, 1),
        (2, 15, 1024, None),  # fewer than 8 sequences for each: products of several threads
        (2, 16, 1024, 2),
        (1, 64, 1024, 1),
        (4, 64, 512, 4),
        (8, 64, 256, None),  # more threads than parts that pay
        (8, 64, 1024, 8),
        (8, 1, 4096, None),
        (8, 0, 256, 1),
    ],
)
def test_a_batch_is_cut_where_that_pays(threads, N, H, parts):
    backend = NumpyBackend()
    backend.threads = threads
    assert backend.count_parts(N, N * H * H) == parts
    assert ba.Backend(np).count_parts(N, N * H * H) is None


@needs_blas
def test_there_are_as_many_parts_as_a_blas_may_have_threads(monkeypatch):
    rnn = network(H=400)
    x, target = batch(rnn)
    found = seen(rnn, monkeypatch)
    for count, parts in ((1, []), (2, [2]), (3, [3])):
        with BLAS.limit(limits=count):
            assert workers.count == count
            rnn.loss_and_grad(x, target)
        assert found == parts
        found.clear()
    with BLAS.limit(limits=2):
        rnn.loss(x, target)
        y, _, backward = rnn.forward(x)
        backward(dy=y)
        rnn(x)
    assert found == [2, 2, 2, 2]


@needs_blas
def test_what_needs_all_sequences_is_not_cut(monkeypatch):
    """A loss of the caller's, which may not expect two threads; a budget, which one part makes better use of."""
    rnn, shapes = network(threads=2), []
    x, target = batch(rnn)
    found = seen(rnn, monkeypatch)

    def loss(y, target):
        shapes.append((threading.current_thread(), y.shape[1]))
        return (y - target).sum(axis=-1), np.ones_like(y)

    rnn.loss_and_grad(x, target, loss)
    rnn.loss(x, target, loss)
    assert set(shapes) == {(threading.main_thread(), 32)}
    rnn.loss_and_grad(x, target, memory="64MiB")
    rnn.loss_and_grad(x, target, backward="parallel")
    ba.diagnostics.diagnose(rnn, x, target, "mse")
    assert found == []


@needs_blas
def test_a_small_batch_has_products_of_one_thread(monkeypatch):
    rnn, used = network(H=64), []
    x, target = batch(rnn)
    matmul = np.matmul
    monkeypatch.setattr(np, "matmul", lambda *args, **more: (used.append(max(counts())), matmul(*args, **more))[1])
    with BLAS.limit(limits=2):
        rnn.loss_and_grad(x, target)
        assert set(used) == {1}
        used.clear()
        network(H=1100).loss_and_grad(x[:, :3], target[:, :3])  # too few sequences to be cut, and large
    assert set(used) == {2}


@needs_blas
def test_no_more_threads_than_a_blas_may_have_do_parts_and_none_does_nothing_meanwhile():
    with BLAS.limit(limits=6):
        workers.run([lambda going: time.sleep(0.01)] * 6)  # so many there are from now on
    now, most, done = [], [], []

    def part(going):
        now.append(0)
        most.append(len(now))
        time.sleep(0.02)
        now.pop()
        done.append(threading.current_thread())

    with BLAS.limit(limits=2):
        workers.run([part] * 8)
    assert max(most) == 2
    assert sorted(map(done.count, set(done))) != [1, 7]


# ---- the same numbers ---------------------------------------------------------------------------------


def flat(result):
    loss, grads, state = result
    return [loss, grads.x, state.h, grads.state.h, *grads.params.values()]


@needs_blas
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_bits_follow_from_the_parts_and_not_from_who_does_them(cell):
    rnn = network(cell=cell, threads=2)
    x, target = batch(rnn)
    found = []
    for count in (1, 2, 2, 4):
        with BLAS.limit(limits=count):
            found.append(flat(rnn.loss_and_grad(x, target, input_grad=True)))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.tobytes() == b.tobytes()
    whole = network(cell=cell, threads=1)
    for a, b in zip(found[0], flat(whole.loss_and_grad(x, target, input_grad=True)), strict=True):
        assert np.abs(a - b).max() <= 2e-6 * np.abs(b).max()


@needs_blas
def test_several_callers_at_the_same_time_get_what_each_would_get_alone():
    rnns = [network(cell="lstm", threads=2, seed=k) for k in range(3)]
    x, target = batch(rnns[0])
    expected = [flat(rnn.loss_and_grad(x, target, input_grad=True)) for rnn in rnns]
    found = [None] * 3

    def call(k):
        for _ in range(3):
            found[k] = flat(rnns[k].loss_and_grad(x, target, input_grad=True))

    with BLAS.limit(limits=2):
        callers = [threading.Thread(target=call, args=(k,)) for k in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert counts() == [2] * len(counts())
    for one, other in zip(expected, found, strict=True):
        assert [a.tobytes() for a in one] == [b.tobytes() for b in other]


def test_a_setting_says_into_how_many_parts_and_one_network_can_have_its_own():
    rnn = ba.RNN(3, 256, 2)
    backend = copy.copy(rnn.backend)
    backend.threads = 3
    assert rnn.to(backend).backend.count_parts(64, 64 * 512**2) == 3
    assert ba.RNN(3, 4, 2).backend.threads is None
    with pytest.raises(ValueError, match=r"^threads=0 is too small; expected a whole number of at least 1"):
        backend.threads = 0
    assert backend.threads == 3


@needs_blas
def test_parts_take_no_more_memory_than_one_piece_but_for_a_second_set_of_gradients():
    peaks = {}
    for threads in (1, 2):
        rnn = network(cell="lstm", threads=threads)
        x, target = batch(rnn, T=64, N=64)
        with BLAS.limit(limits=2):
            tracemalloc.start()
            rnn.loss_and_grad(x, target)
            peaks[threads] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert peaks[2] < 1.02 * peaks[1] + sum(array.nbytes for array in rnn.params.values())


@needs_blas
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_a_plan_without_a_budget_counts_the_gradients_of_every_part(cell):
    whole, cut = (network(cell=cell, threads=threads) for threads in (1, 2))
    x, target = batch(cut, T=40, N=64)
    plans = [rnn.plan(x.shape).peak for rnn in (whole, cut)]
    with BLAS.limit(limits=2):
        tracemalloc.start()
        cut.loss_and_grad(x, target)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert 0.6 * plans[1] < peak <= 1.05 * plans[1]
    assert plans[0] != plans[1]
    assert whole.plan(x.shape, "64MiB").peak == cut.plan(x.shape, "64MiB").peak  # then it is in one piece


def test_a_backward_pass_goes_through_what_ran_forward_however_many_threads_there_are_by_then():
    rnn = network(threads=2)
    x, _ = batch(rnn, T=300)
    y, state, backward = rnn.forward(x)
    expected = backward(dy=y, dstate=state)
    for threads in (1, 3, None):
        rnn.backend.threads = threads
        again = backward(dy=y, dstate=state)
        assert all(again.params[name].tobytes() == grad.tobytes() for name, grad in expected.params.items())
    rnn.backend.threads = 1
    y, state, backward = rnn.forward(x)
    rnn.backend.threads = 2
    assert np.allclose(backward(dy=y, dstate=state).params["W_hy"], expected.params["W_hy"], rtol=1e-4, atol=1e-4)


def test_what_parts_keep_for_the_next_call_is_what_the_last_one_had():
    rnn = network(H=768)
    x, target = batch(rnn, N=64)
    kept = []
    for threads in (2, 6, 2, 1):
        rnn.backend.threads = threads
        rnn.loss_and_grad(x, target)
        kept.append(sum(array.nbytes for array in rnn.calls.workspace.arrays))
    assert kept[0] == kept[2] < 1.2 * kept[3]


# ---- when something goes wrong ------------------------------------------------------------------------


@needs_blas
def test_what_numpy_raises_where_the_caller_asked_for_it_is_raised_in_parts_too():
    rnn = network(cell="relu", threads=2)
    x, target = batch(rnn)
    for name in rnn.params:
        if "W" in name:
            rnn.params[name] += np.float32(1e30)
    with BLAS.limit(limits=2):
        with np.errstate(over="raise"), pytest.raises(FloatingPointError):
            rnn.loss_and_grad(x, target)
        assert counts() == [2] * len(counts())
        with np.errstate(all="ignore"):
            assert not np.isfinite(rnn.loss_and_grad(x, target)[0])


@needs_blas
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_the_error_of_a_part_ends_the_others_soon_and_is_raised(failing):
    steps = [0, 0, 0]

    def part(k):
        def run(going):
            if k == failing:
                time.sleep(0.02)
                raise KeyError(k)
            for _ in range(10_000):
                going()
                steps[k] += 1
                time.sleep(0.001)
            return k

        return run

    with BLAS.limit(limits=3), pytest.raises(KeyError, match=str(failing)):
        workers.run([part(k) for k in range(3)])
    assert max(steps) < 5_000
    assert workers.run([lambda going, k=k: k for k in range(5)]) == [0, 1, 2, 3, 4]


@needs_blas
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals for a thread")
def test_ctrl_c_ends_all_parts():
    began, ended = threading.Event(), threading.Event()

    def first(going):
        began.wait(30)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(30)

    def second(going):
        began.set()
        try:
            while True:
                going()
                time.sleep(0.001)
        finally:
            ended.set()

    with BLAS.limit(limits=2), pytest.raises(KeyboardInterrupt):
        workers.run([first, second])
    assert ended.is_set()


@needs_blas
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals for a thread")
def test_ctrl_c_while_the_caller_waits_ends_the_parts_of_others():
    ended, others = threading.Event(), threading.Event()

    def part(going):
        if threading.current_thread() is threading.main_thread():
            others.wait(30)  # so that this thread does not do both
            return
        others.set()
        time.sleep(0.2)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        try:
            for _ in range(3000):
                going()
                time.sleep(0.01)
        finally:
            ended.set()

    began = time.monotonic()
    with BLAS.limit(limits=2), pytest.raises(KeyboardInterrupt):
        workers.run([part, part])
    assert ended.is_set()
    assert time.monotonic() - began < 20


LATE = """
import threading, time, numpy as np, bptt_array as ba
import threadpoolctl
threadpoolctl.threadpool_limits(2)
rnn = ba.RNN(3, 256, 2)
x, target = np.ones((5, 32, 3), "float32"), np.ones((5, 32, 2), "float32")
rnn.loss_and_grad(x, target)

def late():
    threading.main_thread().join()
    time.sleep(0.1)
    loss = rnn.loss_and_grad(x, target)[0]
    optimizer = ba.Adam()
    big = {"a": np.ones(5_000_000, "float32")}
    optimizer.update(big, ba.clip_by_global_norm(big, 1.0))
    print("computed", bool(np.isfinite(loss)))

threading.Thread(target=late).start()
"""


@needs_blas
def test_a_thread_that_outlives_the_main_one_still_computes():
    """Python begins no threads of an executor then."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=100, check=False)
    assert (done.stdout, done.stderr) == ("computed True\n", "")


@needs_blas
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore")  # JAX, where it is, warns of forks
def test_a_process_forked_in_the_middle_has_the_threads_from_before():
    with BLAS.limit(limits=2), workers.one_thread_each():
        child = os.fork()
        if not child:
            os._exit(int(not (workers.count == workers.of_a_product == 2)))
        assert os.waitpid(child, 0) == (child, 0)


@needs_blas
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore")  # JAX, where it is, warns of forks
def test_a_forked_process_has_threads_of_its_own():
    rnn = network(threads=2)
    x, target = batch(rnn)
    with BLAS.limit(limits=2):
        expected = rnn.loss_and_grad(x, target)[0]
        child = os.fork()
        if not child:
            os._exit(int(rnn.loss_and_grad(x, target)[0] != expected))
        until = time.monotonic() + 60
        while time.monotonic() < until:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                break
            time.sleep(0.01)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert (pid, status) == (child, 0)


@needs_blas
def test_a_thread_of_the_callers_sets_the_number_too_and_leaves_it_to_others():
    """threadpoolctl 3.8: what another thread than the first says is silently left out."""
    rnn, found = network(threads=2), []
    x, target = batch(rnn)
    with BLAS.limit(limits=2):  # this thread is the first
        expected = flat(rnn.loss_and_grad(x, target, input_grad=True))

        def call():
            with workers.one_thread_each():
                found.append(counts())
            found.append(counts())
            found.append(flat(rnn.loss_and_grad(x, target, input_grad=True)))

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert found[:2] == [[1] * len(counts()), [2] * len(counts())]
    assert [a.tobytes() for a in found[2]] == [a.tobytes() for a in expected]
    with BLAS.limit(limits=3):
        assert set(counts()) == {3}


class OfEachThread:
    """A BLAS on OpenMP: every thread that calls it has a number of its own."""

    threading_layer, architecture = "openmp", "SkylakeX"

    def __init__(self, count):
        self._counts, self._first = threading.local(), count

    @property
    def num_threads(self):
        return getattr(self._counts, "count", self._first)

    def set_num_threads(self, count):
        self._counts.count = count


def test_a_blas_whose_number_is_that_of_each_thread_has_one_in_all_of_them():
    library, alone = OfEachThread(3), Workers()
    vars(alone)["_libraries"] = [library]
    assert alone.count == 3
    assert alone.run([lambda going: (library.num_threads, threading.current_thread().name)] * 3)[0][0] == 1
    found = alone.run([lambda going: (time.sleep(0.05), library.num_threads)[1]] * 3)
    assert found == [1, 1, 1]
    assert (library.num_threads, alone.count, alone.of_a_product) == (3, 3, 3)
    with alone.one_thread_each():
        assert (alone.count, alone.of_a_product) == (1, 1)


def test_where_no_blas_is_found_there_is_one_thread(monkeypatch):
    alone = Workers()
    vars(alone)["_libraries"] = []
    assert (alone.count, alone.of_a_product, alone.cores) == (1, 1, frozenset())
    threads = alone.run([lambda going: threading.current_thread()] * 2)
    assert threads == [threading.main_thread()] * 2
