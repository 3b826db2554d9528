"""Writing text with a trained network, one character after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import LARGEST_SEED, check_count, check_number, said
from ..rnn.rnn import RNN
from .text import Vocabulary


def sample(
    rnn: RNN,
    vocabulary: Vocabulary,
    prompt: str = "",
    *,
    length: int = 500,
    temperature: float = 0.8,
    seed: int = 0,
    member: int | None = None,
) -> str:
    """Continue a prompt.

    Parameters
    ----------
    rnn : RNN
        Of tokens, with a softmax output at every step. The members of an ensemble read and write the same text: the
        mean of their probabilities decides.
    prompt : str
        Read by the network before it writes. If empty, the network begins after a line break (or, where it
        knows none, after its first character).
    length : int
        Characters to write.
    temperature : float
        Probabilities are taken to the power 1 / temperature: below 1 more cautious, above 1 wilder; 0 always
        takes the most probable character.
    seed : int
    member : int, optional
        Write with this member of the ensemble alone.

    Returns
    -------
    str
        What was written, without the prompt.

    Raises
    ------
    ValueError
        If the prompt has a character that the vocabulary has not, the network has no such member, or its outputs
        are no numbers.
    """
    check_count("length", length, least=0)
    check_number("temperature", temperature)
    rng = np.random.default_rng(check_count("seed", seed, least=0, most=LARGEST_SEED))
    _check_model(rnn, vocabulary)
    if not isinstance(prompt, str):
        raise TypeError(f"prompt={said(prompt)} is a {type(prompt).__name__}; expected a string")
    if member is not None:
        rnn = _member(rnn, member)
    start = prompt or ("\n" if "\n" in vocabulary.characters else vocabulary.characters[0])
    tokens, state = vocabulary.encode(start, "prompt")[:, None], None
    written = []
    for _ in range(length):
        y, state = rnn(rnn.asarray(tokens), state)
        p = rnn.backend.to_host(y[-1, ..., 0, :]).astype(np.float64)  # ([E,] O)
        token = _choose(p if rnn.members is None else p.mean(axis=0), temperature, rng)
        written.append(token)
        tokens = np.array([[token]])
    return vocabulary.decode(written)


def _check_model(rnn: Any, vocabulary: Any) -> None:
    """A network that writes what it reads."""
    if not isinstance(rnn, RNN):
        raise TypeError(f"rnn is a {type(rnn).__name__}; expected a bptt_array.RNN")
    if not isinstance(vocabulary, Vocabulary):
        raise TypeError(f"vocabulary is a {type(vocabulary).__name__}; expected a bptt_array.training.text.Vocabulary")
    if not len(vocabulary):
        raise ValueError("vocabulary is empty; expected that of the text which the network has learnt")
    sizes, forward = {len(vocabulary), rnn.input_size, rnn.output_size}, not rnn.bidirectional
    if (
        len(sizes) > 1
        or rnn.output != "softmax"
        or rnn.readout != "every"
        or not (forward and rnn.architecture.time_major)
    ):
        raise ValueError(
            f"rnn={rnn!r} does not write characters: expected as many inputs and outputs as vocabulary has, "
            f"{len(vocabulary)}, output='softmax' at every step, one direction and time first"
        )


def _member(rnn: RNN, member: int) -> RNN:
    if rnn.members is None:
        raise ValueError(f"member={said(member)}, but this model is a single network, no ensemble; leave it out")
    if check_count("member", member, least=0) >= rnn.members:
        raise ValueError(f"member={said(member)}; expected 0 to {rnn.members - 1}: the members of this model")
    return rnn.member(member)


def _choose(p: np.ndarray[tuple[int], np.dtype[np.float64]], temperature: float, rng: np.random.Generator) -> int:
    if not np.isfinite(p).all():
        raise ValueError("the model's outputs are not numbers: its training diverged; train again with a smaller --lr")
    if temperature == 0:
        return int(np.argmax(p))
    p = (p / p.max()) ** (1 / temperature)
    return int(rng.choice(p.size, p=p / p.sum()))
