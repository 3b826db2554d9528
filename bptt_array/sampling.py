"""Writing text with a trained network, one character after the other."""

from __future__ import annotations

import numpy as np

from .checks import check_count, check_number
from .rnn import RNN
from .text import Vocabulary


def sample(
    rnn: RNN, vocabulary: Vocabulary, prompt: str = "", *, length: int = 500, temperature: float = 0.8, seed: int = 0
) -> str:
    """Continue a prompt.

    Parameters
    ----------
    rnn : RNN
        Of tokens, with a softmax output at every step.
    prompt : str
        Read by the network before it writes. If empty, the network begins after a line break (or, where it
        knows none, after its first character).
    length : int
        Characters to write.
    temperature : float
        Probabilities are taken to the power 1 / temperature: below 1 more cautious, above 1 wilder; 0 always
        takes the most probable character.
    seed : int

    Returns
    -------
    str
        What was written, without the prompt.

    Raises
    ------
    ValueError
        If the prompt has a character that the vocabulary has not, or the network's outputs are no numbers.
    """
    check_count("length", length, least=0)
    check_number("temperature", temperature)
    rng = np.random.default_rng(check_count("seed", seed, least=0))
    start = prompt or ("\n" if "\n" in vocabulary.characters else vocabulary.characters[0])
    tokens, state = vocabulary.encode(start, "prompt")[:, None], None
    written = []
    for _ in range(length):
        y, state = rnn(rnn.asarray(tokens), state)
        token = _choose(rnn.backend.to_host(y[-1, 0, ...]).astype(np.float64), temperature, rng)
        written.append(token)
        tokens = np.array([[token]])
    return vocabulary.decode(written)


def _choose(p: np.ndarray[tuple[int], np.dtype[np.float64]], temperature: float, rng: np.random.Generator) -> int:
    if not np.isfinite(p).all():
        raise ValueError("the model's outputs are not numbers: its training diverged; train again with a smaller --lr")
    if temperature == 0:
        return int(np.argmax(p))
    p = (p / p.max()) ** (1 / temperature)
    return int(rng.choice(p.size, p=p / p.sum()))
