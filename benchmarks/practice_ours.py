"""The programs of practice.py with bptt_array; ``weights`` are those of the first networks, as torch has them.

``order``, which torch's are given, is that of the batches here.
"""

import numpy as np

import bptt_array as ba


def together(weights, **options):
    """An ensemble of networks that begin with weights of torch's."""
    rnn = ba.RNN(**options, members=len(weights))
    parts = [ba.RNN.from_torch_state_dict(w, recurrent_prefix="rnn.", readout_prefix="readout.") for w in weights]
    return rnn.load_params({name: np.stack([part.params[name] for part in parts]) for name in rnn.params})


def sunspots(series, end, length, horizon, weights, order):
    """Forecasts (seeds, W, horizon) of the steps after each window that ends at ``end`` or later."""
    scaling = ba.Standardization.of(series[:end])
    x, target = ba.windows(scaling(series), length, horizon)
    target, last = target[..., 0].T, end - length - horizon
    first = last + 1 - last // 10  # of the windows for validation
    rnn = together(weights, input_size=1, hidden_size=32, output_size=horizon, cell="gru", readout="last")
    held_out = x[:, first : last + 1], target[first : last + 1]
    data, how = ba.batches(x[:, :first], target[:first]), {"loss": "torch_mse", "optimizer": ba.AdamW(lr=3e-3)}
    ba.fit(rnn, data, **how, epochs=100, validation=held_out, patience=20, clip=1.0, progress=False)
    return scaling.inverse(rnn(rnn.asarray(x[:, end - length :]))[0])


def vowels(sequences, labels, tested, weights, order):
    """Classes (seeds, M) of the ``tested`` sequences."""
    scaling = ba.Standardization.of(sequences)
    rnn = together(weights, input_size=12, hidden_size=64, output_size=9, cell="gru", readout="last", output="softmax")
    data = ba.batches([scaling(s) for s in sequences], labels)
    schedule = ba.lr_schedules.cosine(40 * len(data))
    optimizer = ba.AdamW(lr=5e-3)
    ba.fit(rnn, data, loss="cross_entropy", optimizer=optimizer, epochs=40, schedule=schedule, clip=1.0, progress=False)
    x, lengths = ba.pad([scaling(s) for s in tested])
    return rnn(x, lengths=lengths)[0].argmax(axis=-1)


def words(train, tested, vocabulary, weights, order):
    """Nats per word and the share of words that are foretold, of ``tested``, after one pass over ``train``."""
    (x, target), (tested_x, tested_target), found = windows(train), windows(tested), []
    for initial in weights:
        rnn = ba.RNN.from_torch_state_dict(
            initial, recurrent_prefix="rnn.", readout_prefix="readout.", embedding_prefix="embedding."
        )
        rnn.output = "softmax"
        data, optimizer = ba.batches(x, target), ba.Adam(lr=2e-3)
        ba.fit(rnn, data, loss="cross_entropy", optimizer=optimizer, epochs=1, clip=1.0, progress=False)
        loss, right = 0.0, 0
        for batch in ba.batches(tested_x, tested_target, shuffle=False).epoch(0):
            loss += float(rnn.loss(batch.x, batch.target, "cross_entropy", reduction="sum")[0])
            right += np.sum(rnn(batch.x)[0].argmax(axis=-1) == batch.target)
        found.append((loss / tested_target.size, right / tested_target.size))
    return found


def windows(words):
    """(32, W), of inputs and of the words that follow."""
    cut, _ = ba.windows(words, 33, 0, stride=32)
    return cut[:-1], cut[1:]
