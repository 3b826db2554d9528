"""A text as numbers: its characters, and the streams of it that a batch learns from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..backend.arrays import check_plain, host_array
from ..checks import check_count, said

Tokens = np.ndarray[Any, Any]

#: No code point, and above all of them.
_NO_CHARACTER = np.uint32(0xFFFFFFFF)
#: Characters that are taken at once: what is larger than a text's tokens is never there for all of it.
_PART = 1 << 20


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


class Text:
    """A text as numbers, of a byte each where there are at most 256 different characters.

    >>> text = Text.of("banana")
    >>> len(text), text.tokens.tolist(), text.tokens.dtype.name, text.vocabulary.characters
    (6, [1, 0, 2, 0, 2, 0], 'uint8', 'abn')

    Attributes
    ----------
    tokens : (length,) uint8, uint16 or uint32
    vocabulary : Vocabulary
    fingerprint : str
        SHA-256 of the text in UTF-8.
    """

    def __init__(self, tokens: Tokens, vocabulary: Vocabulary, fingerprint: str) -> None:
        self.tokens, self.vocabulary, self.fingerprint = tokens, vocabulary, fingerprint

    @classmethod
    def of(cls, text: str) -> Text:
        """The text that a string holds.

        Raises
        ------
        ValueError
            If it has a NUL, as what was decoded by another encoding than its own has.
        """
        _check_string("text", text)
        place = text.find("\0")
        if place >= 0:
            likely = likely_encoding(text[: 1 << 12].encode("latin-1", "replace"), 0)
            raise ValueError(
                f"text has a NUL (character {place}); "
                + (f"decode its bytes as {likely}, which it seems to be" if likely else "leave it out: no text has any")
            )
        builder = TextBuilder()
        for start in range(0, len(text), _PART):
            builder.add(text[start : start + _PART])
        return builder.text()

    def __len__(self) -> int:
        return len(self.tokens)

    def numbered_by(self, vocabulary: Vocabulary) -> Tokens:
        """The tokens by another vocabulary, which has all of its characters: ``(length,)`` of the smallest dtype."""
        if vocabulary.characters == self.vocabulary.characters:
            return self.tokens
        number = vocabulary.encode(self.vocabulary.characters).astype(np.min_scalar_type(len(vocabulary) - 1))
        tokens = np.empty(len(self), number.dtype)
        for start in range(0, len(self), _PART):
            part = slice(start, start + _PART)
            tokens[part] = number[self.tokens[part]]
        return tokens

    def __str__(self) -> str:
        return self.vocabulary.decode(self.tokens)


class TextBuilder:
    """Makes a :class:`Text` of its parts, in the memory that its tokens take and little more.

    Characters are numbered as they come, and by their order at the end.
    """

    def __init__(self) -> None:
        self._tokens = bytearray()
        self._dtype = np.dtype(np.uint8)
        self._numbers = np.full(0x110000, -1, np.int32)  # of every code point
        self._codes: list[int] = []  # of every number
        self._hash = hashlib.sha256()

    def __len__(self) -> int:
        return len(self._tokens) // self._dtype.itemsize

    def add(self, part: str) -> None:
        """Append a part."""
        self._hash.update(part.encode("utf-8", "surrogatepass"))
        codes = _code_points(part)
        numbers = self._numbers[codes]
        new = np.unique(codes[numbers < 0])
        if new.size:
            self._numbers[new] = np.arange(len(self._codes), len(self._codes) + new.size)
            self._codes += new.tolist()
            self._widen(np.min_scalar_type(len(self._codes) - 1))
            numbers = self._numbers[codes]
        self._tokens += numbers.astype(self._dtype).tobytes()

    def _widen(self, dtype: np.dtype[Any]) -> None:
        """Room for larger numbers, in place and from the end, which only moves what is not needed there any more."""
        if dtype == self._dtype:
            return
        length, before, self._dtype = len(self), self._dtype, dtype
        self._tokens += bytes(length * (dtype.itemsize - before.itemsize))
        narrow = np.frombuffer(self._tokens, before, count=length)
        wide = np.frombuffer(self._tokens, dtype)
        for stop in range(length, 0, -_PART):
            part = slice(max(0, stop - _PART), stop)
            wide[part] = narrow[part].copy()

    def text(self) -> Text:
        """What the parts are together; to be called once, at the end."""
        order = np.argsort(self._codes)
        rank = np.empty(len(order), self._dtype)
        rank[order] = np.arange(len(order))
        tokens = np.frombuffer(self._tokens, self._dtype)
        for start in range(0, len(tokens), _PART):
            part = slice(start, start + _PART)
            tokens[part] = rank[tokens[part]]
        characters = "".join(map(chr, sorted(self._codes)))
        return Text(tokens, Vocabulary(characters), self._hash.hexdigest())


def likely_encoding(data: bytes, at: int) -> str | None:
    """Of bytes that are no UTF-8 text, from the byte ``at`` of a file on: what they seem to be, if that shows.

    UTF-16 and UTF-32 have marks, or the high bytes of most characters are NUL.
    """
    marks = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
    for mark, name in marks.items():
        if at == 0 and data.startswith(mark):
            return name
    nul = np.frombuffer(data, np.uint8) == 0
    count = [np.count_nonzero(nul[(place - at) % 4 :: 4]) for place in range(4)]
    quarter = max(1, len(data) // 4)
    if count[3] >= quarter and count[2] > 0.9 * quarter:  # no code point is above 0x10ffff
        return "UTF-32LE"
    if count[0] >= quarter and count[1] > 0.9 * quarter:
        return "UTF-32BE"
    even, odd = count[0] + count[2], count[1] + count[3]
    if 64 * max(even, odd) < len(data):  # not even the spaces
        return None
    if odd > 4 * even:
        return "UTF-16LE"
    return "UTF-16BE" if even > 4 * odd else None


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
        # (length, N): time first, every stream a column; the target is the next character. Views of the text: only
        # what a batch reads is ever copied.
        self.inputs = tokens[:used].reshape(batch, length)[rows].T
        self.targets = tokens[1 : used + 1].reshape(batch, length)[rows].T
        self.batch, self.seq_len = batch, seq_len

    def __len__(self) -> int:
        """How many batches the text has; what is left over at the end is dropped."""
        return len(self.inputs) // self.seq_len

    def at(self, k: int) -> tuple[bool, Tokens, Tokens]:
        """Batch k of those that go through the text again and again: ``(first, x, target)`` with ``x (T, N)`` int64.

        ``first`` says that the state begins anew. Where in the text a run is follows from how many batches it has read.
        """
        start = k % len(self) * self.seq_len
        part = slice(start, start + self.seq_len)
        x, target = (np.ascontiguousarray(tokens[part], np.int64) for tokens in (self.inputs, self.targets))
        return start == 0, x, target

    def once(self, most: int | None = None) -> Iterator[tuple[bool, Tokens, Tokens]]:
        """Every batch, front to back; the first ``most`` of them, if that is given."""
        return map(self.at, range(len(self) if most is None else min(most, len(self))))
