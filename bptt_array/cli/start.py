"""Where the command line begins, and ends with a status."""

from __future__ import annotations

import argparse
import io
import signal
import sys
from collections.abc import Sequence

from .errors import FORESEEN, tell
from .flags import parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0, 1 (parity out of bounds), 2 (error), or 128 + the number of the first signal that ended training (Ctrl-C: 130).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A sample may hold what the terminal has not; lines have to be seen when they are written.
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    options = argparse.Namespace()
    try:
        options = parser().parse_args(arguments)
        status: int = options.run(options)
        if sys.stdout is not None:  # it may have been closed before the program began
            sys.stdout.flush()
    except FORESEEN as error:
        tell(error, options)
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 2
    return status
