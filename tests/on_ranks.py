"""``mpiexec -n R python on_ranks.py CHECK...``: checks that every rank goes through, in step with the others.

A rank that fails says why and ends the job.
"""

import os
import random
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
from cases import (
    CASES,
    COMBINED,
    DROPPED,
    EMBEDDED,
    GATED,
    LENGTHS,
    PROJECTED,
    REVERSED,
    SCHEDULED,
    SOFTMAX,
    STACKED,
    TRUNCATED,
    WITHOUT_BIAS,
    Case,
)
from communication import Counting
from shares import assert_near, assert_rows, bound, whole_and_parts

import bptt_array as ba
from bptt_array import distributed
from bptt_array.backend import CupyBackend
from bptt_array.bptt.state import Gradients, State

#: A few, one of each kind.
FEW = [
    Case(lengths=LENGTHS, weights=True),
    Case(lengths=LENGTHS, reduction="sum", tokens=True),
    Case(cell="lstm", layers=2, dropout=0.3, recurrent_dropout=0.3, lengths=LENGTHS),
    Case(bidirectional=True, cell="gru", readout="last", lengths=LENGTHS, dropout=0.3, layers=2),
    Case(members=2, recurrent_dropout=0.3, output="softmax", loss="cross_entropy", target="classes"),
    Case(**SOFTMAX, ignored=-100, class_weights=True, lengths=LENGTHS),
    Case(members=2, weights=True, shared=False, reduction="weighted_mean"),
]


def imported(ranks):
    """The package is the one that is meant, and not the one that is installed."""
    assert Path(ba.__file__).parent == Path(os.environ["IMPORTED_FROM"])


def uneven(ranks, N):
    """Rank 0 has one sequence if there are three ranks or more, the last one the rest, the others none."""
    first = min(1, N) if ranks.size > 2 else 0
    return [slice(0, first), *[slice(first, first)] * (ranks.size - 2), slice(first, N)][ranks.rank]


def check_case(ranks, case, rows, dtype="float64", backend=None):
    """all_reduce gives every rank the gradient of one process, in whatever order each has its parameters.

    Its own rows of states and inputs too.
    """
    rnn, (loss, grads, _), ((own_loss, own, _),) = whole_and_parts(ba, case, [rows], dtype, backend)
    before = {name: rnn.backend.copy(value) for name, value in own.params.items()}
    params = dict(random.Random(ranks.rank).sample(list(own.params.items()), len(own.params)))
    own = Gradients(params, own.state, own.x, own.steps)
    reduced = ranks.all_reduce(own, own_loss)
    host, near = rnn.backend.to_host, bound(case, dtype)
    assert_near(host(reduced.loss), host(loss), near, "loss")
    assert list(reduced.grads.params) == list(own.params)
    assert reduced.grads.steps is None
    for name, value in grads.params.items():
        found = reduced.grads.params[name]
        assert rnn.backend.owns(found)
        assert found.dtype == value.dtype
        assert_near(host(found), host(value), near, name)
        assert np.array_equal(host(before[name]), host(own.params[name]))  # what was given is as it was
    assert_rows(rnn, reduced.grads, grads, rows, 1.0, near)
    ranks.check_equal(reduced.grads.params | {"loss": reduced.loss})  # to the same bits
    return rnn, own_loss, own


def cases(ranks):
    """Every option, with parts as even as they come, and with ranks that have nothing."""
    for case in (
        *CASES,
        *GATED,
        *PROJECTED[:8],
        *STACKED,
        *DROPPED,
        *EMBEDDED,
        *WITHOUT_BIAS,
        *REVERSED,
        *TRUNCATED,
        *SCHEDULED[:4],
        SCHEDULED[5],
        *COMBINED,
    ):
        check_case(ranks, case, ranks.part(case.N))
        check_case(ranks, case, uneven(ranks, case.N))


def few_cases(ranks):
    for case in FEW:
        check_case(ranks, case, ranks.part(case.N))
        check_case(ranks, case, uneven(ranks, case.N))


def other_backends(ranks):
    """Float32 and arrays that have to go through the host."""
    import array_api_strict

    backends = [ba.Backend(array_api_strict, array_api_strict.Device("device1"))]
    try:
        import torch
    except ImportError:
        pass  # it is one of several, and the oldest dependencies have it not
    else:
        backends.append(ba.Backend(torch))
    for case in FEW:
        check_case(ranks, case, uneven(ranks, case.N), "float32")
        for backend in backends:
            check_case(ranks, case, ranks.part(case.N), "float64", backend)
            check_case(ranks, case, uneven(ranks, case.N), "float32", backend)


def parts(ranks):
    for count in range(2 * ranks.size + 2):
        of_ranks = ranks.comm.allgather(ranks.part(count))
        sizes = [part.stop - part.start for part in of_ranks]
        assert [k for part in of_ranks for k in range(count)[part]] == list(range(count))
        assert max(sizes) - min(sizes) <= 1


def broadcasting(ranks):
    last = ranks.size - 1
    for dtype in ("float32", "float64"):
        for root in (0, last):
            rnn = ba.RNN(3, 4, 2, cell="lstm", dtype=dtype, seed=ranks.rank)
            same, expected = dict(rnn.params), ba.RNN(3, 4, 2, cell="lstm", dtype=dtype, seed=root)
            ranks.broadcast(rnn.params, root)
            assert all(rnn.params[name] is value for name, value in same.items())  # in place
            assert all(np.array_equal(rnn.params[name], value) for name, value in expected.params.items())
            ranks.check_equal(rnn.params)
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # every rank reads a file of its own: the same, in an order of its own
        path = Path(folder) / "model.safetensors"
        ba.RNN(3, 4, 2, cell="gru", num_layers=3, seed=ranks.rank).save(path)
        loaded, expected = ba.RNN.load(path), ba.RNN(3, 4, 2, cell="gru", num_layers=3, seed=0)
    shuffled = dict(random.Random(ranks.rank).sample(list(loaded.params.items()), len(loaded.params)))
    for params in (loaded.params, shuffled):
        ranks.broadcast(params)
        assert all(np.array_equal(params[name], value) for name, value in expected.params.items())
    sent = ranks.comm.bcast((loaded, ba.Adam()) if ranks.rank == 0 else None)  # a network, and not its parameters alone
    assert sent[0].architecture == expected.architecture
    ranks.check_equal(sent[0].params)
    mine = np.full(3, ranks.rank, ">f4"), np.full((), ranks.rank, ">i8"), np.array([ranks.rank == 0, True])
    foreign = dict(zip("abc", mine, strict=True))
    ranks.broadcast(foreign, last)  # into arrays of any byte order, and of bools
    assert all(foreign[name] is array for name, array in zip("abc", mine, strict=True))
    assert foreign["a"].tolist() == [last] * 3
    assert foreign["b"] == last
    assert foreign["c"].tolist() == [last == 0, True]
    W = rnn.params["W_hy"]
    if ranks.rank == last:
        W[0, 0] = np.nextafter(W[0, 0], 9)  # one bit
    error = raised(lambda: ranks.check_equal(rnn.params), distributed.RanksError)
    assert f"'W_hy' of rank {last} differ" in error
    assert "b_y" not in error


def raised(work, kind):
    try:
        work()
    except kind as error:
        return str(error)
    raise AssertionError("nothing was raised")


def disagreements(ranks):
    """What does not fit together is an error on every rank, and not a wait without an end."""
    last = ranks.rank == ranks.size - 1
    zeros = np.zeros

    def grads(steps=4, **params):
        return Gradients(params, State(zeros((1, 1, 2, 3))), steps=steps)

    cases = {
        "'a' of shape (3,) and dtype float64 where rank 0 has 'a' of shape (2,)": grads(a=zeros(3 if last else 2)),
        "dtype float32 where": grads(a=zeros(2, "f" if last else "d")),
        "'b' of shape": grads(**{"b" if last else "a": zeros(2)}),
        "2 arrays where rank 0 has 1": grads(a=zeros(2), **({"b": zeros(1)} if last else {})),
        "the gradient of a sum, rank 0 with the gradient of a mean": grads(None if last else 4, a=zeros(2)),
        "the gradient of a mean over weights, rank 0 with the gradient of a mean": grads(
            zeros(()) if last else 4, a=zeros(2)
        ),
    }
    for words, given in cases.items():
        error = raised(lambda given=given: ranks.all_reduce(given), distributed.RanksError)
        assert f"rank {ranks.size - 1} " in error
        assert words in error, error
    params = {"a": np.full(3 if last else 2, float(ranks.rank))}
    raised(lambda: ranks.broadcast(params), distributed.RanksError)
    assert np.all(params["a"] == ranks.rank)  # nothing was changed
    error = raised(lambda: ranks.broadcast({"c": zeros(2)}, root=int(last)), distributed.RanksError)
    assert "with parameters of rank 1, rank 0 with parameters of rank 0" in error
    mixed = {"d": zeros(2)}
    error = raised(lambda: ranks.broadcast(mixed) if last else ranks.sum(mixed), distributed.RanksError)
    assert "with parameters of rank 0, rank 0 with arrays to sum" in error
    error = raised(lambda: ranks.sum({"a": zeros(3 if last else 2)}), distributed.RanksError)
    assert "'a' of shape (3,)" in error
    assert np.all(ranks.sum({"a": zeros(2) + 1})["a"] == ranks.size)  # and all goes on


def sums(ranks):
    counting = Counting(ranks.comm)
    other = distributed.Communicator(counting)
    arrays = {
        "a": np.full((2, 3), ranks.rank + 1.0),
        "b": np.full(2, ranks.rank + 1, "float32"),
        "c": np.full((), 10.0 * (ranks.rank + 1)),
        "none": np.zeros((0, 2)),
    }
    other.sum(arrays)
    counting.calls.clear()
    found, total = other.sum(arrays), sum(range(1, ranks.size + 1))
    assert counting.calls == [("Allreduce", 7 * 8), ("Allreduce", 2 * 4)]  # one for each dtype
    assert list(found) == list(arrays)
    assert all(found[name].dtype == value.dtype and found[name].shape == value.shape for name, value in arrays.items())
    assert np.all(found["a"] == total)
    assert np.all(found["b"] == total)
    assert found["c"] == 10 * total
    assert np.all(arrays["a"] == ranks.rank + 1)
    order = ("little", "big") if ranks.rank else ("big", "little")  # another one on every rank, in either sense
    foreign = {name: np.full(2, 3, ">f8" if name == "big" else "<f8") for name in order}
    foreign["which"] = np.array([ranks.rank == 0, True, False])
    found = other.sum(foreign)
    assert list(found) == [*order, "which"]
    assert found["big"].tolist() == found["little"].tolist() == [3.0 * ranks.size] * 2
    assert found["big"].dtype == found["little"].dtype == np.dtype("float64")
    assert found["which"].tolist() == [1, ranks.size, 0]  # how many ranks say so
    assert found["which"].dtype == np.int64
    error = raised(lambda: other.sum({"a": np.array(["text"])}), TypeError)
    assert "arrays['a'] has dtype <U4; expected numbers or bools" in error
    mine = np.full((2, ranks.rank, 3), float(ranks.rank))
    whole = other.gather(mine, axis=-2)
    assert whole[0, :, 0].tolist() == [float(k) for k in range(ranks.size) for _ in range(k)]


def messages(ranks):
    """One message a step, of the parameters' size and a few numbers; and the flags that go with it."""
    counting = Counting(ranks.comm)
    other = distributed.Communicator(counting)
    for members, dtype in ((None, "float32"), (3, "float64")):
        rnn = ba.RNN(3, 8, 2, cell="lstm", num_layers=2, members=members, dtype=dtype, seed=0)
        x, target = np.ones((5, 4, 3), dtype), np.ones((5, 4, 2), dtype)
        rows = uneven(ranks, 4)
        loss, grads, _ = rnn.loss_and_grad(x[:, rows], target[:, rows])
        other.all_reduce(grads, loss)  # the first time ranks agree on what is coming
        for asking in (0, 1, ranks.size):
            counting.calls.clear()
            reduced = other.all_reduce(grads, loss, flag=ranks.rank < asking)
            size = sum(value.nbytes for value in rnn.params.values())
            assert counting.calls == [("Allreduce", size + (np.size(loss) + 2) * np.dtype(dtype).itemsize)]
            assert reduced.flags == asking
        kept = [other.all_reduce(grads, loss) for _ in range(4)]  # what is kept is not written to again
        first = {name: value.copy() for name, value in kept[0].grads.params.items()}
        other.all_reduce(Gradients({k: 3 * v for k, v in grads.params.items()}, grads.state, steps=grads.steps), loss)
        for name, value in first.items():
            assert all(np.array_equal(value, each.grads.params[name]) for each in kept)
            assert not np.shares_memory(kept[0].grads.params[name], kept[0].loss)  # which may be kept for longer
        counting.calls.clear()
        assert other.all_reduce(Gradients(grads.params, grads.state, steps=0)).flags == 0  # without any valid step
        assert np.all(other.all_reduce(Gradients(grads.params, grads.state, steps=0)).grads.params["b_y"] == 0)


def extremes(ranks):
    """What one process can hold is not lost in the weighted sum: neither the largest numbers nor the smallest."""
    for dtype in ("float32", "float64"):
        limits = np.finfo(dtype)
        for size in (float(limits.max) / 8, float(limits.smallest_normal) * 2**16):
            params = {"a": np.full(3, size, dtype)}
            for steps in (12_800 + ranks.rank, 100, 25_000):  # the unit comes from the first
                reduced = ranks.all_reduce(Gradients(params, State(np.zeros((1, 1, 1, 1), dtype)), steps=steps))
                assert np.allclose(reduced.grads.params["a"].astype(float), size, rtol=1e-5, atol=0), (
                    dtype,
                    size,
                    steps,
                )


def training(ranks):
    """The loss curve of one process, in ragged batches with dropout."""
    T, N, steps = 9, 5, 30
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((T, N, 3)), rng.standard_normal((T, N, 2))
    lengths = np.array([9, 0, 4, 7, 2])

    def curve(ranks, rows):
        rnn = ba.RNN(3, 8, 2, cell="lstm", num_layers=2, dropout=0.3, recurrent_dropout=0.2, dtype="float64", seed=1)
        ranks.broadcast(rnn.params)
        optimizer, losses, state = ba.Adam(0.02), [], None
        for step in range(steps):
            loss, grads, state = rnn.loss_and_grad(
                x[:, rows],
                target[:, rows],
                state=state,
                lengths=lengths[rows],
                dropout_seed=step,
                dropout_rows=(rows.start, N),
            )
            grads, loss, _ = ranks.all_reduce(grads, loss)
            optimizer.update(rnn.params, ba.clip_by_global_norm(grads.params, 0.5))
            losses.append(float(loss))
        ranks.check_equal(rnn.params)
        return np.array(losses)

    alone = curve(distributed.OneProcess(), slice(0, N))
    assert np.max(np.abs(np.diff(alone))) > 1e-3
    for rows in (ranks.part(N), uneven(ranks, N)):
        assert np.allclose(curve(ranks, rows), alone, rtol=1e-9, atol=0)


def members(ranks):
    """Members of an ensemble on ranks of their own: no message at all."""
    E, seed, rng = 5, 7, np.random.default_rng(0)
    x, target = rng.standard_normal((6, 4, 3)), rng.standard_normal((6, 4, 2))

    def trained(count, seed):
        rnn = ba.RNN(3, 8, 2, members=count, seed=seed, dtype="float64", recurrent_dropout=0.2)
        optimizer = ba.Adam(0.02)
        for step in range(20):
            _, grads, _ = rnn.loss_and_grad(x, target, dropout_seed=step)
            optimizer.update(rnn.params, ba.clip_by_global_norm(grads.params, 1.0, members=count))
        return rnn.params

    counting = Counting(ranks.comm)
    mine = distributed.Communicator(counting).part(E)
    own = trained(mine.stop - mine.start, seed + mine.start)
    assert counting.calls == []
    whole = trained(E, seed)
    for name, value in own.items():
        assert_near(ranks.gather(value, axis=0), whole[name], 1e-12, name)


# ---- on CUDA devices, emulated or not ---------------------------------------------------------------------


def cuda(ranks):
    """Every rank on a device of its own, through the host: which all of them have."""
    backend = CupyBackend(ranks.rank % 2)
    for case in FEW:
        check_case(ranks, case, ranks.part(case.N), "float64", backend)
        check_case(ranks, case, uneven(ranks, case.N), "float32", backend)
    (transport,) = set(ranks._transports.values())
    assert type(transport).__name__ == "Host"
    rnn = ba.RNN(3, 4, 2, device=backend, seed=ranks.rank)
    ranks.broadcast(rnn.params)
    ranks.check_equal(rnn.params)


def host_counts(ranks):
    """Two copies and one wait, whatever the number of parameters; through page-locked memory.

    CuPy's ``concatenate`` of more than a few arrays is one launch, and sends three small tables of its own.
    """
    import cupyx
    import gpuemu

    locked = []
    make = cupyx.empty_pinned
    cupyx.empty_pinned = lambda *arguments: locked.append(arguments) or make(*arguments)
    launches = []
    for layers in (3, 5):
        reduce, size = prepared(ranks, layers)
        with gpuemu.count(trace=True) as c:
            reduce()
        assert (c.d2h, c.d2h_bytes, c.h2d, c.syncs, c.implicit_syncs) == (1, size, 1 + 3, 1, 0), c
        assert f"h2d {size} async stream=0" in c.trace
        launches.append(c.launches)
    assert len(locked) == 2
    assert launches[0] == launches[1] <= 10, launches


def prepared(ranks, layers):
    """An all_reduce that has run before, and the bytes of its message."""
    backend = CupyBackend(0)
    rnn = ba.RNN(3, 4, 2, num_layers=layers, device=backend)
    x, target = rnn.asarray(np.ones((5, 4, 3))), rnn.asarray(np.ones((5, 4, 2)))
    loss, grads, _ = rnn.loss_and_grad(x, target)
    ranks.all_reduce(grads, loss)
    return lambda: ranks.all_reduce(grads, loss), sum(v.nbytes for v in rnn.params.values()) + 3 * 4


def direct(ranks):
    """MPI on the device's memory, which the emulated device lets the host read."""
    backend = CupyBackend(ranks.rank % 2)
    other = distributed.Communicator(ranks.comm, transport="direct")
    for case in FEW:
        check_case(other, case, uneven(ranks, case.N), "float64", backend)
    (name,) = {key[0] for key in other._transports}
    assert name == "direct"
    rnn = ba.RNN(3, 4, 2, device=backend, seed=ranks.rank)
    other.broadcast(rnn.params)
    ranks.check_equal(rnn.params)


def direct_waits(ranks):
    """The stream is waited for after the last kernel that computes what is sent, and before MPI gets it.

    The emulated device is never late, so that only the order of the calls can be looked at.
    """
    import gpuemu
    from mpi4py import MPI

    seen, counters = [], []

    def look(buffer):
        seen.extend((type(buffer).__module__, list(counter.trace)) for counter in counters)

    class Late:
        """Sends nothing; notes what the device was asked to do before."""

        def __getattr__(self, name):
            return getattr(MPI.COMM_SELF, name)

        def Allreduce(self, send, receive):  # noqa: N802 (MPI's name)
            assert send is MPI.IN_PLACE
            look(receive)

        def Bcast(self, buffer, root):  # noqa: N802
            look(buffer)

    other = distributed.Communicator(Late(), transport="direct")
    reduce, _ = prepared(other, 1)
    params = ba.RNN(3, 4, 2, device=CupyBackend(0)).params
    with gpuemu.count(trace=True) as counted:
        counters.append(counted)
        reduce()
        other.broadcast(params)
    assert [module.partition(".")[0] for module, _ in seen] == ["cupy", "cupy"]
    for _, trace in seen:
        assert trace[-1].startswith("sync stream"), trace
    assert counted.d2h == 0


def nccl(ranks):
    """NCCL is not on the emulated device, and has run nowhere: a stand-in with its calls sends through the host."""
    import inspect

    import cupy
    import gpuemu
    from cupyx import distributed as theirs
    from mpi4py import MPI

    from bptt_array.distributed import transports

    calls = []

    class StandIn:
        def all_reduce(self, in_array, out_array, op="sum", stream=None):
            assert in_array is out_array
            assert op == "sum"
            calls.append(in_array.nbytes)
            host = cupy.asnumpy(in_array)
            MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, host)
            out_array.set(host)

        def broadcast(self, in_out_array, root=0, stream=None):
            host = cupy.asnumpy(in_out_array)
            MPI.COMM_WORLD.Bcast(host, root=root)
            in_out_array.set(host)

    signature = inspect.signature(theirs.init_process_group)

    def init_process_group(*arguments, **more):
        bound = signature.bind(*arguments, **more).arguments
        assert (bound["n_devices"], bound["rank"], bound["use_mpi"]) == (ranks.size, ranks.rank, True)
        return StandIn()

    for name in ("all_reduce", "broadcast"):  # as CuPy has them
        of_theirs = getattr(theirs.NCCLBackend, name)
        assert inspect.signature(of_theirs) == inspect.signature(getattr(StandIn, name))
    theirs.init_process_group = init_process_group
    backend = CupyBackend(ranks.rank % 2)
    error = raised(
        lambda: check_case(distributed.Communicator(transport="nccl"), FEW[0], slice(0, 1), backend=backend), ValueError
    )
    assert "CuPy finds no NCCL" in error
    device_of = transports.device_of
    transports.device_of = lambda backend, comm: (
        device_of(backend, comm) or transports.Device("", False, False)
    )._replace(nccl=True)
    for asked in ("auto", "nccl"):
        other = distributed.Communicator(transport=asked)
        for case in FEW:
            check_case(other, case, uneven(ranks, case.N), "float64", backend)
        assert {key[0] for key in other._transports} == {"nccl"}
        rnn = ba.RNN(3, 4, 2, device=backend, seed=ranks.rank)
        other.broadcast(rnn.params)
        ranks.check_equal(rnn.params)
    StandIn.all_reduce = lambda self, in_array, out_array, op: calls.append(in_array.nbytes)
    with backend.active():
        loss, grads, _ = rnn.loss_and_grad(rnn.asarray(np.ones((5, 4, 3))), rnn.asarray(np.ones((5, 4, 2))))
        other.all_reduce(grads, loss)
        calls.clear()
        with gpuemu.count() as c:
            other.all_reduce(grads, loss)
    assert calls == [sum(v.nbytes for v in rnn.params.values()) + 3 * 4]
    assert (c.d2h, c.syncs, c.implicit_syncs) == (0, 0, 0)  # nothing waits


def fitted(ranks):
    """Of minibatches of other sizes, with lengths, of fewer sequences than ranks: what one process learns."""
    rng = np.random.default_rng(0)
    folder = ranks.comm.bcast(tempfile.mkdtemp() if ranks.rank == 0 else None)

    def minibatch(N, T, **more):
        x, lengths = rng.standard_normal((T, N, 3)), rng.integers(0, T + 1, N)
        return x, np.cumsum(x[..., :1], axis=0), lengths

    kinds = {
        "every": ({"readout": "every"}, lambda x, target: (x, target)),
        "last": ({"readout": "last", "cell": "lstm", "bidirectional": True}, lambda x, target: (x, target[-1])),
        "batch first": (
            {"time_major": False, "members": 2},
            lambda x, target: (x.swapaxes(0, 1), target.swapaxes(0, 1)),
        ),
        "members": (
            {"members": 3, "dropout": 0.2, "num_layers": 2, "recurrent_dropout": 0.2},
            lambda x, target: (np.stack([x, -x, 2 * x], axis=1), target),
        ),
    }
    for kind, (options, made) in kinds.items():
        data, held_out = (
            [(*made(x, target), lengths) for x, target, lengths in (minibatch(N, 4 + N) for N in sizes)]
            for sizes in ((5, 1, 4), (2, 7))
        )
        found = []
        for job in (ranks, None):
            rnn = ba.RNN(3, 5, 1, dtype="float64", seed=0 if job is None else ranks.rank and 9, **options)
            if job is not None and "dropout" in options:
                rnn.seed = 0  # of the masks
            more = {"optimizer": ba.Adam(0.03), "validation": held_out, "epochs": 5, "clip": 1.0, "progress": False}
            history = ba.fit(rnn, data, **more, ranks=job, folder=None if job is None else f"{folder}/{kind}")
            found.append((history, rnn))
            if job is not None:
                ranks.check_equal(rnn.params)
                other = ba.RNN(3, 5, 1, dtype="float64", **options)  # all go on from what rank 0 kept
                more["optimizer"] = ba.Adam(0.03)
                again = ba.fit(other, data, **more, ranks=job, folder=f"{folder}/{kind}")
                assert again.loss.tolist() == history.loss.tolist()
                assert all(np.array_equal(other.params[name], value) for name, value in rnn.params.items())
        (history, rnn), (expected, other) = found
        np.testing.assert_allclose(history.loss, expected.loss, rtol=1e-9)
        np.testing.assert_allclose(history.validation, expected.validation, rtol=1e-9)
        for name, value in other.params.items():
            np.testing.assert_allclose(rnn.params[name], value, rtol=1e-7, atol=1e-9)
    x, target, lengths = minibatch(11, 6)
    weights, found = rng.random((6, 11)), []
    for job in (ranks, None):
        rnn = ba.RNN(3, 5, 1, dtype="float64", recurrent_dropout=0.2)
        data = ba.batches(x, target, lengths=lengths, weights=weights, size=4, dtype="float64", by_length=True)
        held_out = (x, target, lengths, weights)
        more = {"validation": held_out, "epochs": 4, "reduction": "weighted_mean", "progress": False}
        history = ba.fit(rnn, data, **more, ranks=job)
        found.append([history.loss, history.validation, *rnn.params.values()])
    for mine, expected in zip(*found, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-7, atol=1e-9)
    told = []
    for mine, says in (
        ({"epochs": ranks.rank + 3}, "epochs: 4 on rank 1, 3 on rank 0; expected the same on all ranks"),
        ({"folder": None if ranks.rank else folder}, "folder=… given: False on rank 1, True on rank 0; expected the"),
        ({"validation": [held_out] * (1 + ranks.rank)}, "minibatches of validation: 2 on rank 1, 1 on rank 0"),
    ):
        more = {"epochs": 3, "progress": False, "ranks": ranks, **mine}
        assert says in raised(lambda more=more: ba.fit(ba.RNN(3, 5, 1, dtype="float64"), held_out, **more), ValueError)
    history = ba.fit(  # of which only one rank has anything to say
        ba.RNN(3, 5, 1, dtype="float64"),
        (x, target),
        epochs=5,
        progress=False,
        ranks=ranks,
        callbacks=() if ranks.rank else [lambda end: end.epoch == 2],
    )
    assert (history.stopped, len(history)) == ("callback", 3)
    history = ba.fit(
        ba.RNN(3, 5, 1, dtype="float64", time_major=False),
        [(x.swapaxes(0, 1), target.swapaxes(0, 1)) for x, target, _ in [minibatch(4, 3)]],
        epochs=5,
        progress=False,
        ranks=ranks,
        callbacks=[lambda end: told.append(end.epoch) or (ranks.rank == ranks.size - 1 and end.epoch == 1)],
    )
    assert history.stopped == "callback"
    assert told == [0, 1]
    more = {"epochs": 5, "progress": False, "ranks": ranks, "folder": f"{folder}/every"}
    other = [minibatch(4, 3)[:2]]
    error = raised(lambda: ba.fit(ba.RNN(3, 5, 1, dtype="float64"), other, **more), ValueError)
    assert "is not that of the run that is in it" in error


if __name__ == "__main__":
    if "ERRORS_TO" in os.environ:  # see mpi.py
        os.dup2(os.open(f"{os.environ['ERRORS_TO']}/{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    ranks = distributed.Communicator()
    try:
        for check in sys.argv[1:]:
            globals()[check](ranks)
            ranks.comm.Barrier()
            if ranks.rank == 0:
                print(f"{check} is well", flush=True)
    except BaseException:  # noqa: BLE001 (the others would wait for ever)
        print(f"rank {ranks.rank} of {ranks.size}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        ranks.comm.Abort(1)
