"""A text as numbers: reading it, its characters, and the streams of it that a batch learns from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..backend.arrays import check_plain, host_array
from ..checks import check_count, check_path, said

Tokens = np.ndarray[Any, Any]

#: No code point, and above all of them.
_NO_CHARACTER = np.uint32(0xFFFFFFFF)


def read_texts(paths: Sequence[str | Path]) -> str:
    """The files' contents one after the other.

    Raises
    ------
    ValueError
        If a file cannot be read, is empty, or is not UTF-8.
    """
    if isinstance(paths, (str, bytes)) or not isinstance(paths, Sequence):
        raise TypeError(f"paths is a {type(paths).__name__}; expected a list of paths")
    texts = []
    for k, name in enumerate(paths):
        path = check_path(f"paths[{k}]", name)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 (byte {error.start}): convert it first, e.g. with iconv") from None
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        if not text:
            raise ValueError(f"{path} is empty; expected a text to learn")
        texts.append(text)
    return "".join(texts)


def language_reference() -> str:
    """An English text that is on nearly every machine: the language reference in Python's ``pydoc_data.topics``.

    Raises
    ------
    ValueError
        If this Python comes without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError(
            "this Python has no pydoc_data, in which the language reference is: give the FILE of a text"
        ) from None
    return "\n".join(str(topics[name]) for name in sorted(topics))


class Vocabulary:
    """The characters of a text, sorted, and their numbers.

    >>> vocabulary = Vocabulary("banana")
    >>> vocabulary.characters, vocabulary.encode("nab").tolist(), vocabulary.decode([2, 0, 1])
    ('abn', [2, 0, 1], 'nab')
    """

    def __init__(self, text: str) -> None:
        _check_string("text", text)
        self.characters = "".join(sorted(set(text)))
        self._codes = _code_points(self.characters)

    def __len__(self) -> int:
        return len(self.characters)

    def joined(self, characters: str) -> Vocabulary:
        """That of these characters too.

        >>> Vocabulary("banana").joined("band").characters
        'abdn'
        """
        return Vocabulary(self.characters + characters)

    def encode(self, text: str, name: str = "text") -> Tokens:
        """``(len(text),)`` int64.

        Raises
        ------
        ValueError
            If a character is not in the vocabulary.
        """
        _check_string(name, text)
        codes = _code_points(text)
        tokens: Tokens = np.searchsorted(self._codes, codes)
        unknown = np.flatnonzero(np.append(self._codes, _NO_CHARACTER)[tokens] != codes)
        if unknown.size:
            raise ValueError(
                f"{name} has the character {text[unknown[0]]!r}, which the model has never seen; "
                f"it knows {said(self.characters)}"
            )
        return tokens.astype(np.int64)

    def decode(self, tokens: Sequence[int] | Tokens) -> str:
        """The text of numbers ``(length,)``.

        Raises
        ------
        ValueError, TypeError
            If they are no whole numbers, or one is not in the vocabulary.
        """
        check_plain("tokens", tokens)
        array = host_array("tokens", tokens, "whole numbers")
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise TypeError(f"tokens has shape {array.shape} and dtype {array.dtype}; expected whole numbers (length,)")
        wrong = np.flatnonzero((array < 0) | (array >= len(self))) if array.size else array
        if wrong.size:
            raise ValueError(f"tokens[{wrong[0]}]={array[wrong[0]]}; expected 0 to {len(self) - 1}")
        return "".join(self.characters[token] for token in array.tolist())


def _check_string(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name} is a {type(text).__name__}; expected a string")


def _code_points(text: str) -> Tokens:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


class Streams:
    """A text cut into N streams of equal length, read side by side, ``seq_len`` characters at a time.

    What follows a batch in time is the batch after it, so the state can be carried from one to the next.

    Parameters
    ----------
    tokens : (length,) int
    batch : int
        N.
    seq_len : int
        T.
    rows : slice
        Which of the N streams are to be read here; all of them, if left out.

    Raises
    ------
    ValueError
        If a stream would be shorter than one sequence.
    """

    def __init__(self, tokens: Tokens, batch: int, seq_len: int, name: str = "text", rows: slice = slice(None)) -> None:
        check_plain("tokens", tokens)
        if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            kind = f"{type(tokens).__name__} of shape {getattr(tokens, 'shape', None)}"
            raise TypeError(f"tokens is a {kind}; expected a NumPy array (length,) of whole numbers")
        batch, seq_len = check_count("batch", batch), check_count("seq_len", seq_len)
        length = (len(tokens) - 1) // batch
        if length < seq_len:
            raise ValueError(
                f"{name} has {len(tokens)} characters, too few for {said(batch)} streams of one sequence of "
                f"{said(seq_len)}; expected at least {said(batch * seq_len + 1)}: give more text, or a smaller "
                "--batch, --seq-len or --validation"
            )
        used = batch * length
        # (length, N): time first, every stream a column; the target is the next character.
        self.inputs = np.ascontiguousarray(tokens[:used].reshape(batch, length)[rows].T)
        self.targets = np.ascontiguousarray(tokens[1 : used + 1].reshape(batch, length)[rows].T)
        self.seq_len = seq_len

    def __len__(self) -> int:
        """How many batches the text has; what is left over at the end is dropped."""
        return len(self.inputs) // self.seq_len

    def at(self, k: int) -> tuple[bool, Tokens, Tokens]:
        """Batch k of those that go through the text again and again: ``(first, x, target)`` with ``x (T, N)``.

        ``first`` says that the state begins anew. Where in the text a run is follows from how many batches it has read.
        """
        start = k % len(self) * self.seq_len
        part = slice(start, start + self.seq_len)
        return start == 0, self.inputs[part], self.targets[part]

    def once(self) -> Iterator[tuple[bool, Tokens, Tokens]]:
        """Every batch, front to back."""
        return map(self.at, range(len(self)))
