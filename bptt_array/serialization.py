"""Arrays and what is to be said of them as safetensors files: no pickle, written whole or not at all.

What is read is not trusted. The header is checked before anything is allocated: its size, every name, dtype, shape and
place; then the caller compares it with what it expects; then the bytes are read and their checksum compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from .checks import short

HostArray = np.ndarray[Any, Any]

#: The one string in a file's header, and what it is called there: JSON, since the order of several is not kept.
KEY = "bptt_array"
#: Bytes of a header: a model's are a few thousand, those of one that knows all of Unicode five million.
LONGEST_HEADER = 1 << 23
#: Lists and tables in a header, which take more memory than their brackets: a thousand layers have 9000.
MOST_LISTS = 1 << 17
DTYPES = {"F32": "float32", "F64": "float64", "I64": "int64", "U8": "uint8"}
#: Names of files that are being written; one that is left over was never finished.
_UNFINISHED = ".bptt_array.", ".new"


def write_atomically(path: str | os.PathLike[str], data: bytes, *, flush: bool = True) -> None:
    """Write ``data`` to ``path`` so that at any moment the old file or the new one is there, complete.

    A new file is flushed to disk, then renamed, then the folder is flushed: after that, neither this process nor the
    machine can lose it. Without ``flush`` (some ten milliseconds) only this process cannot.

    A file that is there keeps its permissions; what is no plain file is left alone.

    Raises
    ------
    OSError
        Naming the file.
    """
    path = Path(os.path.realpath(path))  # a link stays a link: what it points to is replaced
    if path.is_dir():
        raise IsADirectoryError(f"path={str(path)!r} is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path={str(path)!r}: the folder does not exist; make it first")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"path={str(path)!r} is a device or a pipe; expected the name of a file")
    try:
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask()
        prefix, suffix = _UNFINISHED
        handle, temporary = tempfile.mkstemp(suffix, prefix, path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                if flush:
                    file.flush()
                    os.fsync(file.fileno())
            os.chmod(temporary, mode)  # mkstemp's file is private
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # the folder was removed meanwhile
                os.unlink(temporary)
            raise
        if flush:
            flush_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def flush_folder(folder: Path) -> None:
    """Make names that were just given last, where a system can be asked to.

    Raises
    ------
    OSError
        Naming the folder.
    """
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left of files that it was writing; nobody else may be writing there."""
    for path in folder.glob("*".join(_UNFINISHED)):
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_file(
    path: str | os.PathLike[str],
    kind: str,
    arrays: Mapping[str, HostArray],
    about: Mapping[str, Any],
    *,
    flush: bool = True,
) -> None:
    """Write arrays and ``about`` (what JSON holds) to one file, which is the same bytes for the same contents.

    ``kind`` says what the file is, so that none is taken for another; ``flush``: see :func:`write_atomically`.
    """
    plain = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    content = {"kind": kind, "about": dict(about)}
    content["sha256"] = _checksum(content, plain)
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > LONGEST_HEADER * 3 // 4:
        raise ValueError(f"metadata takes {size:,} bytes; expected at most {LONGEST_HEADER * 3 // 4:,}")
    # As they are counted when it is read, with those of the header around it.
    if (lists := text.count("[") + text.count("{") + 3 * len(plain) + 2) > MOST_LISTS:
        raise ValueError(
            f"metadata has {lists:,} lists, dictionaries and opening brackets; expected at most {MOST_LISTS:,}"
        )
    if not _is_unicode(text):
        text = json.dumps(content, sort_keys=True)
    write_atomically(path, save(plain, metadata={KEY: text}), flush=flush)


def _is_unicode(text: str) -> bool:
    """Whether there are no halves of surrogate pairs in it, which UTF-8 has not."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _checksum(content: Mapping[str, Any], arrays: Mapping[str, HostArray]) -> str:
    """SHA-256 of all that a file holds, in whatever order it stands there."""
    digest = hashlib.sha256(json.dumps({k: content.get(k) for k in ("kind", "about")}, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class Entry(NamedTuple):
    """What a header says of an array."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {short(list(self.shape))}"


class File:
    """A file that is open: what its header says, checked; :meth:`arrays` reads the rest.

    Attributes
    ----------
    entries : dict of str to Entry
        Of every array.
    strings : dict of str to str
        All that the header says besides.
    """

    def __init__(self, path: str | os.PathLike[str], file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self.size = os.fstat(file.fileno()).st_size
        self._length = int.from_bytes(file.read(8), "little")
        if self.size < 8 or self._length > min(LONGEST_HEADER, self.size - 8):
            self.refuse(f"its header would be of {self._length:,} bytes in a file of {self.size:,}")
        text = file.read(self._length)
        if text.count(b"[") + text.count(b"{") > MOST_LISTS:
            self.refuse("its header has more lists and tables than any model")
        try:
            header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_name_twice)
        except (RecursionError, ValueError) as error:
            self.refuse(f"its header is no JSON ({error})")
        if not isinstance(header, dict):
            self.refuse("its header is no JSON object")
        self.strings = header.pop("__metadata__", {})
        if not isinstance(self.strings, dict) or not all(isinstance(v, str) for v in self.strings.values()):
            self.refuse("its metadata are no strings")
        self.entries: dict[str, Entry] = {}
        places = []
        for name, entry in header.items():
            self.entries[name], place = self._entry(name, entry)
            places.append(place)
        end = 0
        for begin, stop in sorted(places):
            if begin != end:
                self.refuse(f"byte {min(begin, end)} of its data belongs to {'none' if begin > end else 'two'} of them")
            end = stop
        if end != self.size - 8 - self._length:
            self.refuse(f"it has {self.size - 8 - self._length:,} bytes of data; its header says {end:,}")

    def _entry(self, name: str, entry: Any) -> tuple[Entry, tuple[int, int]]:
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            self.refuse(f"its header says no dtype, shape and data_offsets of {short(name)}")
        dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            self.refuse(f"{short(name)} has dtype {short(dtype)}; expected one of {', '.join(DTYPES)}")
        if not _is_counts(shape) or not _is_counts(place) or len(place) != 2 or len(shape) > 16:
            self.refuse(f"{short(name)} has shape {short(shape)} and data_offsets {short(place)}")
        begin, end = place
        if end - begin != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize:
            self.refuse(f"{short(name)} of shape {short(shape)} cannot have {short(end - begin)} bytes")
        return Entry(DTYPES[dtype], tuple(shape)), (begin, end)

    def refuse(self, why: str) -> NoReturn:
        """Say why this file is not read."""
        raise ValueError(f"path={str(self.path)!r} is damaged or no safetensors file: {why}")

    def about(self, kind: str) -> dict[str, Any]:
        """What :func:`write_file` was given under this kind.

        Raises
        ------
        ValueError
            If the file was not written by it, or is of another kind.
        """
        try:
            content = json.loads(self.strings[KEY])
            found, about = content["kind"], dict(content["about"].items())
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            raise ValueError(f"path={str(self.path)!r} was not written by bptt_array") from None
        if found != kind:
            raise ValueError(f"path={str(self.path)!r} is a {short(found)} of bptt_array; expected a {kind}")
        return about

    def arrays(self) -> dict[str, HostArray]:
        """All of them by name, in alphabetical order, with the checksum compared (the oldest models have none)."""
        self._file.seek(0)
        data = self._file.read(self.size)
        try:
            arrays: dict[str, HostArray] = load(data)
        except SafetensorError as error:
            self.refuse(str(error))
        found = {name: Entry(array.dtype.name, array.shape) for name, array in arrays.items()}
        if found != self.entries:
            self.refuse("it changed while it was read")
        if KEY in self.strings:
            content = json.loads(self.strings[KEY])
            if _checksum(content, arrays) != content.get("sha256"):
                self.refuse("its checksum is not that of what it holds")
        return {name: arrays[name] for name in sorted(arrays)}  # safetensors 0.8.0 has another order every time


def _is_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) != len(pairs):
        raise ValueError("a name stands there twice")
    return made


@contextlib.contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[File]:
    """A safetensors file with its header checked.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is cut short, damaged, or no safetensors file.
    """
    if not Path(path).is_file():  # nor a pipe, which would be waited for
        raise FileNotFoundError(f"path={str(path)!r}: no such file")
    with open(path, "rb") as file:
        yield File(path, file)
