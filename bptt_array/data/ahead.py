"""Each thing made while the one before is used."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from ..backend.portable import Array, Uploads
from ..rnn.conversions import HostArray

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def made_ahead(make: Callable[[_In], _Out], items: Iterable[_In]) -> Generator[_Out, None, None]:
    """``map(make, items)``, by a thread that is one item ahead, and ends with this iterator."""
    with ThreadPoolExecutor(1, "bptt_array_ahead") as thread:
        ahead: Future[_Out] | None = None
        for item in items:
            ahead, now = thread.submit(make, item), ahead
            if now is not None:
                yield now.result()
        if ahead is not None:
            yield ahead.result()


def uploaded_ahead(uploads: Uploads, staged: Iterable[list[HostArray]]) -> Generator[list[Array], None, None]:
    """Arrays on the device, copied there while it computes on those before."""
    begun: Any = None
    try:
        for arrays in staged:
            before, begun = begun, uploads.begin(arrays)
            if before is not None:
                yield uploads.end(before)
        if begun is not None:
            last, begun = begun, None
            yield uploads.end(last)
    finally:
        if begun is not None:
            uploads.abandon(begun)
