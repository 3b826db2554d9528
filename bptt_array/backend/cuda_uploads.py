"""Arrays on their way to a CUDA device while it computes: copies on a stream of their own, from page-locked memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from .portable import Array

#: Arrays that are copied to, the event after which they are there, and the stream that their memory belongs to.
Begun = tuple[list[Array], Any, Any]
#: Copies whose page-locked memory is kept until they are done; a thread that prepares further ones waits then.
_MOST = 4


class CudaUploads:
    """Three steps, of which the first may be done by another thread; see :class:`bptt_array.backend.portable.Uploads`.

    The device's memory is that of the stream that computes, which may have work to do that reads what was there before:
    the copy waits for all that was begun until then, and what is begun later runs beside it. The host does not wait.
    """

    def __init__(self, cupy: Any, index: int) -> None:
        self._cupy, self._index = cupy, index
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._under_way: deque[tuple[Any, Sequence[np.ndarray[Any, Any]]]] = deque()
        self._lock = threading.Lock()

    def stage(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        with self._cupy.cuda.Device(self._index), self._lock:
            while self._under_way and ((over := self._under_way[0][0].done) or len(self._under_way) >= _MOST):
                event, _ = self._under_way.popleft()
                if not over:
                    event.synchronize()
            return [self._locked(array) for array in arrays]

    def _locked(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """A copy in page-locked memory, of which there are pieces of few sizes: CuPy keeps all that it ever had."""
        memory = self._cupy.cuda.alloc_pinned_memory(1 << max(12, (array.nbytes - 1).bit_length()))
        locked = np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
        locked[...] = array
        return locked

    def begin(self, staged: Sequence[np.ndarray[Any, Any]]) -> Begun:
        with self._cupy.cuda.Device(self._index):
            current = self._cupy.cuda.get_current_stream()
            arrays = [self._cupy.empty(array.shape, array.dtype) for array in staged]
            self._stream.wait_event(self._event(current))
            for out, array in zip(arrays, staged, strict=True):
                if array.size:
                    out.set(array, stream=self._stream)
            done = self._event(self._stream)
            self._under_way.append((done, staged))
            return arrays, done, current

    def end(self, begun: Begun) -> list[Array]:
        arrays, done, _ = begun
        with self._cupy.cuda.Device(self._index):
            self._cupy.cuda.get_current_stream().wait_event(done)
        return arrays

    def abandon(self, begun: Begun) -> None:
        _, done, before = begun
        with self._cupy.cuda.Device(self._index):
            before.wait_event(done)  # the memory is that stream's again

    def _event(self, stream: Any) -> Any:
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(stream)
        return event
