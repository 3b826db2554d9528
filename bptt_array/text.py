"""A text as numbers: reading it, its characters, and the streams of it that a batch learns from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Tokens = np.ndarray[Any, Any]


def read_texts(paths: Sequence[str | Path]) -> str:
    """The files' contents one after the other.

    Raises
    ------
    ValueError
        If a file cannot be read, is empty, or is not UTF-8.
    """
    texts = []
    for path in map(Path, paths):
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
    """An English text that is on every machine: the language reference in Python's ``pydoc_data.topics``."""
    from pydoc_data.topics import topics

    return "\n".join(str(topics[name]) for name in sorted(topics))


class Vocabulary:
    """The characters of a text, sorted, and their numbers.

    >>> vocabulary = Vocabulary("banana")
    >>> vocabulary.characters, vocabulary.encode("nab").tolist(), vocabulary.decode([2, 0, 1])
    ('abn', [2, 0, 1], 'nab')
    """

    def __init__(self, text: str) -> None:
        self.characters = "".join(sorted(set(text)))
        self._codes = _code_points(self.characters)

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str, name: str = "text") -> Tokens:
        """``(len(text),)`` int64.

        Raises
        ------
        ValueError
            If a character is not in the vocabulary.
        """
        codes = _code_points(text)
        tokens: Tokens = np.minimum(np.searchsorted(self._codes, codes), len(self) - 1)
        unknown = np.flatnonzero(self._codes[tokens] != codes)
        if unknown.size:
            raise ValueError(
                f"{name} has the character {text[unknown[0]]!r}, which the model has never seen; "
                f"it knows {self.characters!r}"
            )
        return tokens.astype(np.int64)

    def decode(self, tokens: Sequence[int] | Tokens) -> str:
        return "".join(self.characters[int(token)] for token in tokens)


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

    Raises
    ------
    ValueError
        If a stream would be shorter than one sequence.
    """

    def __init__(self, tokens: Tokens, batch: int, seq_len: int, name: str = "text") -> None:
        length = (len(tokens) - 1) // batch
        if length < seq_len:
            raise ValueError(
                f"{name} has {len(tokens)} characters, too few for {batch} streams of one sequence of {seq_len}; "
                f"expected at least {batch * seq_len + 1}: give more text, or a smaller --batch, --seq-len or "
                "--validation"
            )
        used = batch * length
        # (length, N): time first, every stream a column; the target is the next character.
        self.inputs = np.ascontiguousarray(tokens[:used].reshape(batch, length).T)
        self.targets = np.ascontiguousarray(tokens[1 : used + 1].reshape(batch, length).T)
        self.seq_len = seq_len

    def once(self) -> Iterator[tuple[bool, Tokens, Tokens]]:
        """``(first, x, target)`` with ``x (T, N)``, front to back; what is left over at the end is dropped."""
        for start in range(0, len(self.inputs) - self.seq_len + 1, self.seq_len):
            part = slice(start, start + self.seq_len)
            yield start == 0, self.inputs[part], self.targets[part]

    def forever(self) -> Iterator[tuple[bool, Tokens, Tokens]]:
        """:meth:`once`, again and again; ``first`` says that the state begins anew."""
        while True:
            yield from self.once()
