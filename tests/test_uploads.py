"""Batches on their way to a CUDA device: nothing is read before it is there, or overwritten while somebody reads it.

What CuPy and the emulated device do at once, a device does later, in an order of its own: here one is played, with
streams whose work is done at random moments, and memory that is handed out again as soon as it is free.
"""

import ctypes
import random
import weakref
from collections import deque
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import cuda

import bptt_array as ba
from bptt_array.backend.cuda_uploads import CudaUploads
from bptt_array.data.ahead import uploaded_ahead


class Pool:
    """Pieces of memory that come back when nobody has them any more; the last of them is handed out first."""

    def __init__(self):
        self.free, self.memory = {}, {}

    def take(self, size):
        found = self.free.setdefault(size, [])
        memory = found.pop() if found else np.zeros(size, "uint8")
        self.memory[memory.ctypes.data] = memory
        piece = (ctypes.c_ubyte * size).from_buffer(memory)
        weakref.finalize(piece, found.append, memory)
        return piece

    def memory_of(self, array):
        """What is behind an array, or a piece; to have it does not keep it from being handed out again."""
        while isinstance(array, np.ndarray):
            array = array.base
        return self.memory[ctypes.addressof(array)]


class Device:
    """What :class:`CudaUploads` asks of CuPy; without ``care`` for one thing that it asks for."""

    def __init__(self, seed, careless):
        self.random, self.careless = random.Random(seed), careless
        self.current, self.streams = self.stream(), []
        self.streams.append(self.current)
        self.pinned, self.pool = Pool(), Pool()
        self.cuda = SimpleNamespace(
            Device=lambda index: nullcontext(),
            Stream=lambda non_blocking: self.streams.append(self.stream()) or self.streams[-1],
            Event=lambda disable_timing: self.event(),
            get_current_stream=lambda: self.current,
            alloc_pinned_memory=self.pinned.take,
        )

    def empty(self, shape, dtype):
        array = SimpleNamespace(piece=self.pool.take(max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)))
        place = self.pool.memory_of(array.piece)

        def set_(source, stream):
            memory, size = self.pinned.memory_of(source), source.nbytes
            stream.work.append(lambda: place.__setitem__(slice(size), memory[:size]) or True)

        array.set = set_
        return array

    def stream(self):
        stream = SimpleNamespace(work=deque())

        def wait_event(event):
            ignored = self.careless == ("computation" if stream is self.current else "copies")
            stream.work.append(lambda: ignored or event.over)

        stream.wait_event = wait_event
        return stream

    def event(self):
        event = SimpleNamespace(over=False, done=self.careless == "page-locked memory")

        def record(stream):
            stream.work.append(lambda: vars(event).update(over=True, done=True) or True)

        def synchronize():
            while not event.done:
                self.go_on(1)

        event.record, event.synchronize = record, synchronize
        return event

    def compute_something(self, read=None):
        """Work beside the batches, whose memory is its own while it lasts; ``read``: whether it was."""
        arrays = [self.empty((4,), "int64") for _ in range(4)]
        memory = [self.pool.memory_of(array.piece) for array in arrays]
        self.current.work.append(lambda: [piece.fill(255) for piece in memory])
        if read is not None:
            self.current.work.append(lambda: read.append(bool((np.array(memory) == 255).all())) or True)

    def go_on(self, steps):
        """Some of the work that can be done, of any stream."""
        for _ in range(steps):
            for stream in self.random.sample(self.streams, len(self.streams)):
                if stream.work and stream.work[0]():
                    stream.work.popleft()
                    break


def read_by_a_device(seed, careless=None, batches=30):
    """Which batches the device has read right, where the host is ahead of it by as much as it likes."""
    device, read = Device(seed, careless), []
    uploads = CudaUploads(device, 0)
    if careless == "abandoned":
        uploads.abandon = lambda begun: None
    rng = np.random.default_rng(seed)
    data = [[np.full((3, rng.integers(0, 3)), k, "float32"), np.full(4, k)] for k in range(batches)]
    staged = (uploads.stage(arrays) for arrays in data)
    stop = device.random.choice([None, None, 5])
    epoch = uploaded_ahead(uploads, staged)
    for k, arrays in enumerate(epoch):
        for array, expected in zip(arrays, data[k], strict=True):
            memory = device.pool.memory_of(array.piece)

            def compute(memory=memory, expected=expected):
                read.append(memory[: expected.nbytes].tobytes() == expected.tobytes())
                return True

            device.current.work.append(compute)
        del array, arrays
        if k == stop:
            epoch.close()
        device.compute_something()
        device.go_on(device.random.choice([0, 1, 3, 20]))
    for _ in range(10):
        device.compute_something(read)
    while any(stream.work for stream in device.streams):
        device.go_on(1)
    return read


@pytest.mark.parametrize("seed", range(50))
def test_a_device_reads_every_batch_as_it_was(seed):
    read = read_by_a_device(seed)
    assert len(read) in (22, 70)
    assert all(read)


def test_page_locked_memory_is_asked_for_in_few_sizes():
    """CuPy keeps each for the same size, for good."""
    device = Device(0, None)
    uploads = CudaUploads(device, 0)
    for size in range(1, 100_000, 777):
        (staged,) = uploads.stage([np.full(size, 3, "int16")])
        assert staged.shape == (size,)
        assert (staged == 3).all()
    assert len(device.pinned.free) < 9


@pytest.mark.parametrize("careless", ["computation", "copies", "page-locked memory", "abandoned"])
def test_every_wait_is_needed(careless):
    assert not all(right for seed in range(50) for right in read_by_a_device(seed, careless))


@pytest.mark.parametrize("device", cuda)
def test_on_cuda_the_copies_of_a_batch_are_begun_before_the_computation_on_the_one_before(device):
    """And the host waits for nothing: counted on the emulated device."""
    gpuemu = pytest.importorskip("gpuemu", reason="counts on the emulated device only")
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((7, 20, 3)), rng.standard_normal((7, 20, 2))
    rnn = ba.RNN(3, 4, 2, device=device)
    data = ba.batches(x, target, weights=np.ones((7, 20)), size=4).to(rnn)

    def train():
        for batch in data:
            rnn.loss_and_grad(batch.x, batch.target, weights=batch.weights)

    train()  # compiles, and fills the pools of memory
    with gpuemu.count(trace=True) as c:
        train()
    assert c.syncs == c.implicit_syncs == c.malloc == 0
    assert c.h2d == c.h2d_async
    kinds = []
    for line in c.trace:
        kind = "C" if line.startswith("h2d") and "stream=0" not in line else "L" * line.startswith("launch")
        kinds += [kind] if kind and (kind == "C" or kinds[-1] != "L") else []
    assert "".join(kinds) == "CCC" + "CCCL" * 4  # of the last two batches there is but one L
