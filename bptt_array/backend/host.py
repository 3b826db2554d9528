"""From an array of any namespace, wherever it lives, to one of NumPy's."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

#: DLPack's numbers of memory that the host can read: its own, and what CUDA and ROCm keep there or share with it.
_READABLE = (1, 3, 11, 13)


def host_copy(array: Any) -> np.ndarray[Any, Any]:
    """A NumPy copy of an array; of half-precision floats that NumPy does not know, in float32."""
    if array_api_compat.is_cupy_array(array):
        host: np.ndarray[Any, Any] = array.get()
        return host
    if array_api_compat.is_jax_array(array) or not hasattr(array, "__dlpack_device__"):
        return np.array(array)
    xp = array_api_compat.array_namespace(array)
    if str(array.dtype).endswith("bfloat16"):
        array = xp.astype(array, xp.float32)
    array = array_api_compat.to_device(array, xp.__array_namespace_info__().default_device())
    if array_api_compat.is_numpy_array(array):
        return np.array(array)  # NumPy's own scalars have no DLPack
    if array.__dlpack_device__()[0] in _READABLE:
        return np.from_dlpack(array).copy()
    if np.lib.NumpyVersion(np.__version__) < "2.1.0":
        raise TypeError(
            f"it is not on the host, where NumPy {np.__version__} cannot ask for it; use NumPy 2.1 or later"
        )
    return np.from_dlpack(array, device="cpu").copy()  # the default device of a namespace need not be the host
