"""The data of practice.py: what packages that are installed bring, and nothing that is fetched."""

import collections
import re
import sysconfig
from pathlib import Path

import numpy as np


def sunspots():
    """Yearly numbers of sunspots from 1700 to 2008, (309,), and the years (SILSO, in statsmodels)."""
    import statsmodels.api

    table = statsmodels.api.datasets.sunspots.load_pandas().data
    return table["YEAR"].to_numpy().astype(int), table["SUNACTIVITY"].to_numpy()


def japanese_vowels():
    """Utterances (T_n, 12) and speakers (N,), 0 to 8, to train with and to test (Kudo et al., 1999; in aeon)."""
    from aeon.datasets import load_japanese_vowels

    found = []
    for split in ("train", "test"):
        utterances, speakers = load_japanese_vowels(split=split)
        found.append(([utterance.T for utterance in utterances], speakers.astype(int) - 1))
    return found


def words_of_the_standard_library(vocabulary, count):
    """The first ``count`` words and signs of Python's standard library in a random order of its files, as numbers.

    The most frequent ones have a number each, all others are 0. Files are those of this Python: another version has
    other words.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(root.rglob("*.py")) if not {"site-packages", "dist-packages"} & set(file.parts)]
    words = []
    for k in np.random.default_rng(0).permutation(len(files)):
        try:
            text = files[k].read_text("utf-8")
        except UnicodeDecodeError:  # some are there to test just that
            continue
        words += re.findall(r"[a-z]+|[^\sa-z]", text.lower())
    known = collections.Counter(words).most_common(vocabulary - 1)
    numbers = {word: k + 1 for k, (word, _) in enumerate(known)}
    return np.array([numbers.get(word, 0) for word in words[:count]])
