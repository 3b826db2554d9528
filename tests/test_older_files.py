"""Files that an older version wrote are read as they were meant."""

from pathlib import Path

import numpy as np
import pytest

import bptt_array as ba
from bptt_array.runs.checkpoints import read_checkpoint
from bptt_array.training.options import Options
from bptt_array.training.trainer import Trainer

DATA = Path(__file__).parent / "data"

#: What the checkpoint's run had learnt, up to step 10 of 20.
TEXT = "the quick brown fox jumps over the lazy dog\n" * 20


def test_a_model_of_0_1_0_gives_what_it_gave_there():
    rnn, metadata = ba.RNN.load_with_metadata(DATA / "model-0.1.0.safetensors")
    assert (rnn.cell, rnn.members, rnn.output, metadata) == ("gru", 2, "softmax", {"characters": "ab"})
    x = np.linspace(-1, 1, 8, dtype="float32").reshape(2, 2, 2)
    expected = [[0.37788731, 0.62211269], [0.46416193, 0.53583807]]
    assert rnn(x)[0][-1, :, 0] == pytest.approx(np.array(expected), rel=1e-6)


def test_a_run_of_0_1_0_goes_on_to_what_it_came_to_there():
    checkpoint = read_checkpoint(DATA / "checkpoint-0.1.0.safetensors")
    assert checkpoint.step == 10
    trainer = Trainer.resumed(checkpoint, TEXT, Options(**checkpoint.options))
    trainer.run()
    assert trainer.step == 20
    assert [progress.step for progress in trainer.metrics] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert trainer.metrics[-1].validation == pytest.approx(3.31829953, rel=1e-5)
    assert trainer.metrics[-1].loss == pytest.approx(3.35863352, rel=1e-5)
