"""The programs of practice.py with torch, by hand: what one writes around torch.nn.GRU and LSTM today.

Each function is a whole program, from the data to what it is judged by. ``weights`` are those of the first networks,
and ``order(epoch)`` which sequences are in each batch, so that both libraries begin alike and see the same.
"""

import copy

import torch
from torch import nn


class Network(nn.Module):
    """Layers over time, and a readout of the last valid step of every sequence."""

    def __init__(self, inputs, hidden, outputs):
        super().__init__()
        self.rnn, self.readout = nn.GRU(inputs, hidden), nn.Linear(hidden, outputs)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        return self.readout(self.rnn(packed)[1][-1])


def sunspots(series, end, length, horizon, weights, order):
    """Forecasts (seeds, W, horizon) of the steps after each window that ends at ``end`` or later."""
    series = torch.tensor(series, dtype=torch.float32)
    mean, std = series[:end].mean(), series[:end].std(correction=0)
    windows = ((series - mean) / std).unfold(0, length + horizon, 1)
    last = end - length - horizon
    x, target = windows[:, :length].T[..., None], windows[:, length:]
    validation = slice(last + 1 - last // 10, last + 1)
    lengths, found = torch.full((len(windows),), length), []
    for initial in weights:
        network = Network(1, 32, horizon)
        network.load_state_dict(initial)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        best, best_loss, waited = copy.deepcopy(network.state_dict()), float("inf"), 0
        for epoch in range(100):
            network.train()
            for k in order(epoch):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(network(x[:, k], lengths[k]), target[k])
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
            network.eval()
            with torch.no_grad():
                loss = nn.functional.mse_loss(network(x[:, validation], lengths[validation]), target[validation]).item()
            waited += 1
            if loss < best_loss:
                best, best_loss, waited = copy.deepcopy(network.state_dict()), loss, 0
            if waited == 20:
                break
        network.load_state_dict(best)
        with torch.no_grad():
            found.append(network(x[:, end - length :], lengths[end - length :]) * std + mean)
    return torch.stack(found).numpy()


def vowels(sequences, labels, tested, weights, order):
    """Classes (seeds, M) of the ``tested`` sequences."""
    every = torch.cat([torch.tensor(s, dtype=torch.float32) for s in sequences])
    mean, std = every.mean(0), every.std(0, correction=0)

    def padded(sequences):
        scaled = [(torch.tensor(s, dtype=torch.float32) - mean) / std for s in sequences]
        return nn.utils.rnn.pad_sequence(scaled), torch.tensor([len(s) for s in scaled])

    (x, lengths), labels, found = padded(sequences), torch.tensor(labels), []
    for initial in weights:
        network = Network(x.shape[-1], 64, 9)
        network.load_state_dict(initial)
        optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40 * -(-len(labels) // 32))
        for epoch in range(40):
            for k in order(epoch):
                optimizer.zero_grad()
                T = lengths[k].max()
                loss = nn.functional.cross_entropy(network(x[:T, k], lengths[k]), labels[k])
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
        with torch.no_grad():
            found.append(network(*padded(tested)).argmax(-1))
    return torch.stack(found).numpy()


class Words(nn.Module):
    """An embedding, an LSTM and a readout over all words."""

    def __init__(self, vocabulary):
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(vocabulary, 256), nn.LSTM(256, 256)
        self.readout = nn.Linear(256, vocabulary)

    def forward(self, x):
        return self.readout(self.rnn(self.embedding(x))[0])


def words(train, tested, vocabulary, weights, order):
    """Nats per word and the share of words that are foretold, of ``tested``, after one pass over ``train``."""

    def windows(words):  # (32, W), of inputs and of the words that follow
        cut = torch.tensor(words).unfold(0, 33, 32).T
        return cut[:-1], cut[1:]

    (x, target), (tested_x, tested_target), found = windows(train), windows(tested), []
    for initial in weights:
        network = Words(vocabulary)
        network.load_state_dict(initial)
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        for k in order(0):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(x[:, k]).flatten(0, 1), target[:, k].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        loss, right = 0.0, 0
        with torch.no_grad():
            for k in torch.arange(tested_x.shape[1]).split(32):
                v, t = network(tested_x[:, k]), tested_target[:, k]
                loss += nn.functional.cross_entropy(v.flatten(0, 1), t.flatten(), reduction="sum").item()
                right += (v.argmax(-1) == t).sum().item()
        found.append((loss / tested_target.numel(), right / tested_target.numel()))
    return found
