"""Ctrl-C and its like while something runs that should end cleanly."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

#: Ctrl-C, the end of a service, the end of a terminal.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Stop:
    """While active, the first signal is only noted, so that work ends between two steps.

    A second one raises KeyboardInterrupt, but not before what is :meth:`held` is done; the first does so too where
    nothing would be lost (:meth:`at_once`). Signals that were ignored before (``nohup``, jobs in the background) stay
    so.

    Parameters
    ----------
    answer : () -> None
        Called within the handler of the first signal, if that is only noted: somebody waits for a word.
    names : list of str
        Which signals.

    Attributes
    ----------
    signal : int or None
        The first one.
    """

    def __init__(self, answer: Callable[[], None] = lambda: None, names: Sequence[str] = NAMES) -> None:
        self.signal: int | None = None
        self._answer, self._names = answer, names
        self._held = False
        self._again = False
        self._at_once = False

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> Stop:
        numbers = [getattr(signal, name) for name in self._names if hasattr(signal, name)]
        # None: of a handler that is not Python's, which nobody could set again.
        heard = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within: nothing is interrupted."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._again:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within: nothing is there yet to be saved, and the first signal interrupts."""
        self._at_once = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None and not self._at_once:
            self.signal = number
            self._answer()
        elif self.signal is None:
            self.signal = number
            raise KeyboardInterrupt
        elif self._held:
            self._again = True
        else:
            raise KeyboardInterrupt
