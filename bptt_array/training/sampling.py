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
        ``softmax(logits / temperature)``, that is, probabilities (of an ensemble their mean) to the power
        1 / temperature: below 1 more cautious, above 1 wilder; 0 always takes the most probable character.
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
        v, state = rnn.calls.pre_activations(rnn.params, rnn.asarray(tokens), state)
        logits = rnn.backend.to_host(v[-1, ..., 0, :]).astype(np.float64)  # ([E,] O)
        token = _choose(np.atleast_2d(logits), temperature, rng)
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
    sizes, forward = {len(vocabulary), rnn.input_size, rnn.output_size}, not (rnn.bidirectional or rnn.reverse)
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


def _choose(logits: np.ndarray[Any, np.dtype[np.float64]], temperature: float, rng: np.random.Generator) -> int:
    """A token, from logits ``(E, O)``. They stay logarithms: as probabilities, most of them would be 0."""
    largest = logits.max(axis=-1, keepdims=True)
    if not np.isfinite(largest).all():  # -inf is the logarithm of a probability of 0
        raise ValueError("the model's outputs are not numbers: its training diverged; train again with a smaller --lr")
    of_members = logits - largest
    of_members -= np.log(np.exp(of_members).sum(axis=-1, keepdims=True))
    log_p = np.logaddexp.reduce(of_members, axis=0)
    if temperature == 0:
        return int(np.argmax(log_p))
    with np.errstate(over="ignore"):  # to -inf, of a probability of 0
        p = np.exp((log_p - log_p.max()) / temperature)
    return int(rng.choice(p.size, p=p / p.sum()))
