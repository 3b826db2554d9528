"""What went wrong, in one line, in the words of the command line."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import traceback

PROGRAM = "bptt-array"


class CommandError(Exception):
    """What is wrong, in one line, for the person at the terminal."""


#: Errors that one line is enough for.
FORESEEN = (CommandError, ValueError, FloatingPointError, MemoryError, OSError, KeyboardInterrupt)


def tell(error: BaseException, options: argparse.Namespace, whose: str = "") -> None:
    """Say what went wrong, in one line if it was to be foreseen; ``whose`` stands before it."""
    if isinstance(error, KeyboardInterrupt):
        say(f"{whose}interrupted")
    elif not isinstance(error, FORESEEN):
        say(f"{whose}a mistake of the program")
        traceback.print_exception(error)
    else:
        say(f"error: {whose}{_what(error, options)}")


def _what(error: BaseException, options: argparse.Namespace) -> str:
    if isinstance(error, MemoryError):
        return f"not enough memory ({error}); use a smaller --hidden or --batch"
    if not isinstance(error, OSError):
        return _in_flags(str(error), options)
    if error.errno is None:  # in our own words
        return str(error)
    if error.filename is None:  # standard output is closed or full: keep the interpreter from trying again
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the end of the process)
    return f"{error.filename or 'output'}: {error.strerror or error}"


def say(message: str) -> None:
    """One line on standard error; what came from a file neither breaks it nor moves the cursor."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    print(f"{PROGRAM}: {line}", file=sys.stderr)


def tell_at_once(message: str) -> None:
    """One line on standard error from within a signal handler, where what is being printed must not be disturbed."""
    with contextlib.suppress(OSError, ValueError):  # it is closed: there is nobody to tell
        os.write(2, f"{PROGRAM}: {message}\n".encode())


def _in_flags(message: str, options: argparse.Namespace) -> str:
    """An error of the library about an argument, in the words of the command line: eval_every=0 is --eval-every=0."""
    flags = {name: f"--{name.replace('_', '-')}" for name in vars(options)}
    for name, value in vars(options).items():
        shown = [repr(value), str(value), *([f"{value:g}"] if isinstance(value, float) else [])]
        for given in (f"{name}={text}" for text in shown):
            if message.startswith(given):
                flag = flags[name] if value is True else flags[name] + given.removeprefix(name)
                others = re.compile(r"\b(\w+(?==)|\w+_\w+)")  # names in the rest of the message
                return flag + others.sub(lambda word: flags.get(word[0], word[0]), message.removeprefix(given))
    return message
