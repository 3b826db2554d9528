"""Where arrays live and what runs the mathematics: NumPy on the CPU, CuPy on CUDA, any other mutable namespace."""

from .cpu import NumpyBackend
from .cuda import CupyBackend, cuda_device_count
from .devices import resolve
from .portable import Array, Backend

__all__ = ["Array", "Backend", "CupyBackend", "NumpyBackend", "cuda_device_count", "resolve"]
