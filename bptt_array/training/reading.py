"""Files as one text: read once, a piece at a time, whatever they are packed in."""

from __future__ import annotations

import codecs
import contextlib
import io
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ..checks import check_path
from .text import Text, TextBuilder, likely_encoding

#: What stands for standard input among the names of files.
STDIN = "-"
#: Bytes that are read at once: a signal does not wait longer than one such piece takes.
_PIECE = 1 << 20
#: How compressed files begin that are unpacked here, and others.
_PACKED = {rb"\x1f\x8b": "gzip", rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": "bzip2", rb"\xfd7zXZ\0": "xz"}
_NOT_UNPACKED = {rb"PK\x03\x04": "ZIP", rb"\x28\xb5\x2f\xfd": "Zstandard", rb"7z\xbc\xaf\x27\x1c": "7-Zip"}
_LONGEST = 10


def read_texts(paths: Sequence[str | Path]) -> Text:
    """The files' contents one after the other; those that gzip, bzip2 or xz packed are unpacked.

    Parameters
    ----------
    paths : list of str or Path
        Of UTF-8 texts; ``"-"`` is standard input.

    Raises
    ------
    ValueError
        If a file cannot be read, is empty, is a directory, is damaged, is not UTF-8, or has a NUL, as texts of other
        encodings have: naming the file, and the likely encoding.
    """
    if isinstance(paths, (str, bytes)) or not isinstance(paths, Sequence):
        raise TypeError(f"paths is a {type(paths).__name__}; expected a list of paths")
    named = [name if name == STDIN else check_path(f"paths[{k}]", name) for k, name in enumerate(paths)]
    if named.count(STDIN) > 1:
        raise ValueError(f"paths has {STDIN!r} more than once, but standard input can be read only once")
    builder = TextBuilder()
    for name in named:
        shown = "standard input" if name == STDIN else str(name)
        before = len(builder)
        try:
            with _opened(name) as file:
                for part in _decoded(_unpacked(file, shown), shown):
                    builder.add(part)
        except IsADirectoryError:
            raise ValueError(
                f"{shown} is a directory; expected the files in it: {shlex.quote(shown)}/*.txt, or, of folders below "
                f"it too, find {shlex.quote(shown)} -type f -exec cat {{}} + | python -m bptt_array train -"
            ) from None
        except OSError as error:
            raise ValueError(f"{shown} cannot be read: {error.strerror or error}") from None
        if len(builder) == before:
            raise ValueError(f"{shown} is empty; expected a text to learn")
    return builder.text()


def _opened(name: str | Path) -> contextlib.AbstractContextManager[IO[bytes]]:
    if name != STDIN:
        return open(name, "rb")
    if sys.stdin is None or sys.stdin.closed:
        raise OSError("it is closed")
    return contextlib.nullcontext(sys.stdin.buffer)


class _Rest:
    """A file of which the beginning was read already: pipes cannot go back."""

    def __init__(self, beginning: bytes, file: IO[bytes]) -> None:
        self._beginning, self._file = beginning, file

    def read(self, size: int = -1) -> bytes:
        if not self._beginning:
            return self._file.read(size)
        part = self._beginning[: size if size >= 0 else None]
        self._beginning = self._beginning[len(part) :]
        return part


def _unpacked(file: IO[bytes], shown: str) -> Iterator[bytes]:
    """The contents, a piece at a time; unpacked if need be."""
    beginning = file.read(_LONGEST)
    source: Any = _Rest(beginning, file)
    for mark, name in _NOT_UNPACKED.items():
        if re.match(mark, beginning):
            raise ValueError(f"{shown} is compressed by {name}, which is not read here; unpack it first")
    packed = next((name for mark, name in _PACKED.items() if re.match(mark, beginning)), None)
    damage: tuple[type[Exception], ...] = (EOFError, OSError)
    if packed == "gzip":
        import gzip
        import zlib

        source, damage = gzip.GzipFile(fileobj=source, mode="rb"), (*damage, zlib.error)
    elif packed == "bzip2":
        import bz2

        source = bz2.BZ2File(source)
    elif packed == "xz":
        import lzma

        source, damage = lzma.LZMAFile(source), (*damage, lzma.LZMAError)  # noqa: SIM115 (closed with its file)
    try:
        while piece := source.read(_PIECE):
            yield piece
    except damage as error:
        if packed is None or getattr(error, "errno", None) is not None:
            raise
        raise ValueError(f"{shown} is packed by {packed} and damaged: {error}") from None


def _decoded(pieces: Iterator[bytes], shown: str) -> Iterator[str]:
    """Their characters, without a mark at the beginning, line breaks as ``\\n``."""
    decoder, lines = codecs.getincrementaldecoder("utf-8")(), io.IncrementalNewlineDecoder(None, translate=True)
    at, data, mark = 0, b"", "\ufeff"
    try:
        for data in pieces:
            part = decoder.decode(data)
            if "\0" in part:
                raise ValueError(_nul(data, at, shown))
            yield lines.decode(part.removeprefix(mark))
            at, mark = at + len(data), "" if part else mark
        data = b""
        yield lines.decode(decoder.decode(b"", final=True), final=True)
    except UnicodeDecodeError as error:
        byte = at + len(data) - len(error.object) + error.start
        likely = likely_encoding(error.object, byte - error.start)
        raise ValueError(
            f"{shown} is not UTF-8 (byte {byte}): convert it first, e.g. with iconv"
            + (f" -f {likely} -t UTF-8: it seems to be {likely}" if likely else "")
        ) from None


def _nul(data: bytes, at: int, shown: str) -> str:
    likely = likely_encoding(data, at)
    return f"{shown} has a NUL (byte {at + data.index(0)}), " + (
        f"as a text in {likely} has: convert it first, e.g. with iconv -f {likely} -t UTF-8"
        if likely
        else "which no text has: remove it first, e.g. with tr -d '\\000'"
    )
