"""The main job, as a person runs it: train, sample, parity, info; and what goes wrong, in one line."""

import bz2
import dataclasses
import functools
import gzip
import hashlib
import importlib.metadata
import json
import lzma
import os
import re
import signal
import subprocess
import sys
import zipfile

import measure
import numpy as np
import pytest
from conftest import backends_and_dtypes, needs_torch
from every_optimizer import each_optimizer
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import bptt_array as ba
from bptt_array import cli, plots
from bptt_array.backend import NumpyBackend
from bptt_array.rnn import files as models
from bptt_array.runs import checkpoints, claims, environment
from bptt_array.runs import folder as runs
from bptt_array.runs.signals import Stop
from bptt_array.training import reading
from bptt_array.training import text as texts
from bptt_array.training import trainer as training
from bptt_array.training.listener import Listener
from bptt_array.training.options import Options
from bptt_array.training.reading import read_texts
from bptt_array.training.sampling import sample
from bptt_array.training.text import Streams, Text, Vocabulary, language_reference
from bptt_array.training.trainer import Trainer

TEXT = "the quick brown fox jumps over the lazy dog; größer!\n" * 30
SMALL = ["--hidden", "16", "--seq-len", "8", "--batch", "4", "--steps", "30"]


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def run_folder(tmp_path, text_file, capsys):
    folder = tmp_path / "run"
    assert cli.main(["train", str(text_file), *SMALL, "--out", str(folder)]) == 0
    capsys.readouterr()
    return folder


def fails(capsys, *arguments):
    """The one line that a failing command prints; nothing on standard output."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("bptt-array: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


# ---- text -------------------------------------------------------------------------------------------------


@given(text=st.text(st.characters(codec="utf-8"), min_size=1))
def test_a_vocabulary_encodes_and_decodes_any_text(text):
    vocabulary = Vocabulary(text)
    tokens = vocabulary.encode(text)
    assert vocabulary.decode(tokens) == text
    assert set(tokens.tolist()) == set(range(len(vocabulary)))


@pytest.mark.parametrize("unknown", ["é", "\x00", "\U0001f600", "Z"])
def test_a_character_never_seen_is_named(unknown):
    with pytest.raises(ValueError, match=re.escape(f"prompt has the character {unknown!r}")):
        Vocabulary("abc").encode(f"ab{unknown}", "prompt")


@given(batch=st.integers(1, 5), seq_len=st.integers(1, 6), extra=st.integers(0, 40))
def test_streams_are_the_text_cut_into_columns_with_the_next_character_as_target(batch, seq_len, extra):
    tokens = np.arange(batch * seq_len + 1 + extra)
    streams = Streams(tokens, batch, seq_len)
    parts = list(streams.once())
    for k in (0, 1, len(streams) - 1, len(streams), 2 * len(streams) + 1):  # again and again
        assert all(np.array_equal(*pair) for pair in zip(streams.at(k), parts[k % len(parts)], strict=True))
    assert [first for first, _, _ in parts] == [True] + [False] * (len(parts) - 1)
    x = np.concatenate([x for _, x, _ in parts])
    target = np.concatenate([target for _, _, target in parts])
    length = (len(tokens) - 1) // batch
    assert x.shape == (length // seq_len * seq_len, batch)
    assert np.array_equal(target, x + 1)
    assert np.array_equal(x, np.arange(batch) * length + np.arange(len(x))[:, None])


def test_the_language_reference_is_a_long_english_text():
    text = language_reference()
    assert len(text) > 300_000
    assert text.count(" the ") > 3000


def test_files_are_read_one_after_the_other_without_byte_order_marks(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\r\n")
    (tmp_path / "b").write_bytes("zwölf".encode())
    assert str(read_texts([tmp_path / "a", tmp_path / "b"])) == "one\nzwölf"


@pytest.mark.parametrize("text", ["the quick\nbrown fox", "ж ы\nщ\n" * 9, "größer \U0001f600 fox\n"])
@pytest.mark.parametrize("mark", [False, True], ids=["without a mark", "with a mark"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_another_encoding_is_named_and_to_do_as_is_said_helps(encoding, mark, text, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes((("\ufeff" if mark else "") + text * 50).encode(encoding))
    with pytest.raises(ValueError, match=r"convert it first, e\.g\. with iconv -f UTF-\d\d\w* -t UTF-8") as raised:
        read_texts([path])
    (named,) = set(re.findall(r"UTF-(?:16|32)\w*", str(raised.value)))
    path.write_text(path.read_bytes().decode(named), encoding="utf-8", newline="")
    assert str(read_texts([path])) == text * 50


def test_a_nul_is_an_error_wherever_a_text_comes_from(tmp_path, capsys):
    """As UTF-8 it is a character like others, and what it stands for would be learnt with every second one NUL."""
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode("utf-16-le"))
    said = f"{path} has a NUL (byte 1), as a text in UTF-16LE has: convert it first, e.g. with iconv -f UTF-16LE"
    assert said in fails(capsys, "train", path, *SMALL, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    path.write_bytes(b"some text" * 9 + b"\0" + b"and more" * 99 + b"\0")
    with pytest.raises(ValueError, match=r"has a NUL \(byte 81\), which no text has: remove it first"):
        read_texts([path])
    with pytest.raises(ValueError, match=r"text has a NUL \(character 1\); decode its bytes as UTF-16LE"):
        Trainer(TEXT.encode("utf-16-le").decode("latin-1"), Options(**TINY))
    with pytest.raises(ValueError, match=r"text has a NUL \(character 40\); leave it out"):
        Text.of("a" * 40 + "\0" + "b" * 40)


@pytest.mark.parametrize("piece", [1, 2, 3, 1 << 20])
def test_what_is_read_in_pieces_is_what_is_read_at_once(piece, tmp_path, monkeypatch):
    """Pieces end within characters, line breaks and the mark; the text has more characters than a byte has values."""
    monkeypatch.setattr(reading, "_PIECE", piece)
    monkeypatch.setattr(texts, "_PART", 7)
    content = "\ufeffone\r\ntwo\rthree\n größer \U0001f600\r\n" + "".join(map(chr, range(0x100, 0x300))) + "\r"
    (tmp_path / "a").write_bytes(content.encode())
    (tmp_path / "b").write_bytes(b"\nzw\xc3\xb6lf")
    expected = "".join((tmp_path / name).read_text(encoding="utf-8-sig") for name in "ab")
    found = read_texts([tmp_path / "a", tmp_path / "b"])
    assert str(found) == expected
    assert found.tokens.dtype == np.uint16
    assert found.tokens.tolist() == found.vocabulary.encode(expected).tolist()
    assert found.vocabulary.characters == "".join(sorted(set(expected)))
    assert found.fingerprint == hashlib.sha256(expected.encode()).hexdigest()
    same = Text.of(expected)
    assert (same.fingerprint, same.tokens.tolist()) == (found.fingerprint, found.tokens.tolist())


@pytest.mark.parametrize("place", [0, 1, 5, 4095])
def test_a_byte_that_is_not_utf_8_is_named_by_its_place_in_the_file(place, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_PIECE", 4)
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "a").write_bytes(mark + b"x" * place + b"\xe4" + b"y" * 9)
        with pytest.raises(ValueError, match=rf"is not UTF-8 \(byte {place + len(mark)}\): convert it first"):
            read_texts([tmp_path / "a"])


@pytest.mark.parametrize("packed", [gzip, bz2, lzma])
def test_packed_files_are_read_and_damaged_ones_said_to_be_so(packed, tmp_path, capsys):
    data = packed.compress(TEXT.encode())
    (tmp_path / "a").write_bytes(data)  # by what is in it, not by its name
    assert str(read_texts([tmp_path / "a"])) == TEXT
    assert cli.main(["train", str(tmp_path / "a"), *SMALL, "--out", str(tmp_path / "run")]) == 0
    assert f"learning {tmp_path / 'a'}: {len(TEXT):,} characters" in capsys.readouterr().out
    assert cli.main(["train", "--resume", str(tmp_path / "run")]) == 0
    for wrong in (data[:-9], data[:20] + b"damaged" + data[27:]):
        (tmp_path / "b").write_bytes(wrong)
        with pytest.raises(ValueError, match=r"b is packed by (gzip|bzip2|xz) and damaged: \w"):
            read_texts([tmp_path / "b"])
    (tmp_path / "b").write_bytes(packed.compress(b""))
    with pytest.raises(ValueError, match="b is empty; expected a text to learn"):
        read_texts([tmp_path / "b"])


def test_archives_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("text.txt", TEXT)
    with pytest.raises(ValueError, match=r"a\.zip is compressed by ZIP, which is not read here; unpack it first"):
        read_texts([tmp_path / "a.zip"])


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "packed"])
def test_standard_input_is_a_text_like_others_but_for_going_on(pack, tmp_path, text_file):
    def train(*arguments, data=b""):
        command = [sys.executable, "-m", "bptt_array", "train", *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, input=data, capture_output=True, timeout=300)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    data = pack(TEXT.encode())
    status, out, err = train("-", *SMALL, "--out", "run", data=data)
    assert (status, err) == (0, "")
    assert f"learning standard input: {len(TEXT):,} characters" in out
    assert train(text_file, *SMALL, "--out", "same")[0] == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "same" / "metrics.jsonl").read_bytes()
    status, _, err = train("--resume", "run")
    assert status == 2
    assert "the text of the run came from standard input, which is gone; give it again: --resume RUN -, or a " in err
    assert train("--resume", "run", "-", data=data)[0] == 0
    assert train("--resume", "run", text_file)[0] == 0
    assert train("-", "-", *SMALL, data=data)[2].endswith("but standard input can be read only once\n")
    assert train("-", *SMALL)[2].endswith("error: standard input is empty; expected a text to learn\n")


def test_a_directory_is_said_to_be_one_and_to_do_as_is_said_helps(tmp_path, monkeypatch):
    folder = tmp_path / "my texts"
    folder.mkdir()
    with pytest.raises(ValueError, match="my texts is a directory; expected the files in it: ") as raised:
        read_texts([folder])
    (folder / "a.txt").write_text(TEXT, encoding="utf-8")
    (folder / "b.txt").write_text(TEXT, encoding="utf-8")
    train = f"{sys.executable} -m bptt_array train"
    listed, found = re.search(r"in it: (.+), or, of folders below it too, (.*)", str(raised.value)).groups()
    commands = (f"{train} {listed}", found.replace("python -m bptt_array train", train))
    for k, command in enumerate(commands):
        command = f"{command} {' '.join(SMALL)} --out run-{k}"
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert f"{2 * len(TEXT):,} characters" in done.stdout, done.stderr


# ---- large texts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "dtype"), [(256, "uint8"), (257, "uint16"), (66_000, "uint32")])
def test_a_text_is_one_array_of_the_smallest_numbers_and_streams_copy_nothing_of_it(most, dtype):
    text = "".join(chr(32 + k) for k in range(most))
    found = Text.of(text + text)
    assert found.tokens.dtype == dtype
    assert found.tokens.tolist() == found.vocabulary.encode(text + text).tolist()
    streams = Streams(found.tokens, 2, 5)
    assert np.shares_memory(streams.inputs, found.tokens)
    assert np.shares_memory(streams.targets, found.tokens)
    _, x, target = streams.at(1)
    assert x.dtype == target.dtype == np.int64


def test_the_peak_of_memory_of_a_run_is_below_three_times_the_file(tmp_path):
    size, line = 64 << 20, TEXT.encode()
    with (tmp_path / "text.txt").open("wb") as file:
        for _ in range(size // len(line) + 1):
            file.write(line)
    code = (
        f"import sys; sys.path.append({os.path.dirname(measure.__file__)!r}); from bptt_array import cli;"
        "status = cli.main(sys.argv[1:]); import measure; print(status, measure.peak_of_process())"
    )
    options = ["--hidden", "16", "--steps", "20", "--out", tmp_path / "run"]
    command = [sys.executable, "-c", code, "train", tmp_path / "text.txt", *options]
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(list(map(str, command)), env=unmeasured, capture_output=True, text=True, timeout=300)
    status, peak = map(int, done.stdout.splitlines()[-1].split())
    assert status == 0, done.stderr
    assert peak < 3 * size
    assert "; each validation reads 2,048 of the " in done.stdout


def evaluated(trainer, monkeypatch):
    """Characters that a validation reads."""
    sizes, loss = [], ba.RNN.loss

    def spy(self, x, *arguments, **more):
        sizes.append(x.size)
        return loss(self, x, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(ba.RNN, "loss", spy)
        trainer.evaluate()
    return sum(sizes)


def test_a_validation_reads_as_many_characters_as_are_trained_on_between_two_of_them(monkeypatch, capsys, tmp_path):
    text = TEXT * 10
    held_out = len(text) // 10
    for options, expected in (
        ({"eval_every": 7}, 7 * 8 * 4),
        ({"steps": 50}, 5 * 8 * 4),
        ({"eval_characters": 200}, 192),
        ({"eval_characters": 1}, 32),  # one batch at least
        ({"eval_characters": 0}, held_out // 32 * 32),
        ({"eval_every": 10_000}, held_out // 32 * 32),
    ):
        trainer = Trainer(text, Options(**TINY | options))
        assert evaluated(trainer, monkeypatch) == trainer.validation.characters == pytest.approx(expected, abs=32), (
            options
        )
        assert trainer.held_out == held_out
    (tmp_path / "text").write_text(text, encoding="utf-8")
    assert cli.main(["train", str(tmp_path / "text"), *SMALL, "--out", str(tmp_path / "run")]) == 0
    said = f"each validation reads 96 of the {held_out:,} held out (--eval-characters)\n"
    assert said in capsys.readouterr().out


def test_a_run_from_before_validations_were_bounded_goes_on_validating_on_everything():
    class Kept(Listener):
        def checkpoint(self, checkpoint):
            self.last = checkpoint

    options, listener = Options(**TINY), Kept()
    Trainer(TEXT * 10, options).run(listener)
    older = {name: value for name, value in listener.last.options.items() if name not in ("eval_characters", "threads")}
    found = Trainer.resumed(dataclasses.replace(listener.last, options=older), TEXT * 10, Options(**older))
    assert found.validation.characters > Trainer(TEXT * 10, options).validation.characters
    assert found.options.eval_characters == 0


def test_validations_take_no_seconds_of_training(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])

    def taking(name, seconds):
        call = getattr(ba.RNN, name)

        def slow(*arguments, **more):
            now[0] += seconds
            return call(*arguments, **more)

        monkeypatch.setattr(ba.RNN, name, slow)

    taking("loss_and_grad", 1.0)
    taking("loss", 1000.0)
    assert trained(eval_every=2).seconds == [2.0, 4.0, 6.0]


# ---- training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "momentum"])
def test_a_network_learns_a_short_text(cell, optimizer):
    # With momentum's own 0.3 ReLU jumps about, and whether it can write the text is a matter of the last bits.
    lr = 0.1 if (cell, optimizer) == ("relu", "momentum") else None
    options = Options(cell=cell, optimizer=optimizer, hidden=32, seq_len=16, batch=4, steps=600, lr=lr)
    trainer = Trainer(TEXT, options)
    first = trainer.evaluate()
    trainer.run()
    assert first == pytest.approx(np.log(len(trainer.vocabulary)), rel=0.1)
    assert trainer.metrics[-1].validation < 0.4
    written = sample(trainer.rnn, trainer.vocabulary, "the quick", length=30, temperature=0)
    assert written.startswith(" brown fox jumps over")


def test_the_same_seed_gives_the_same_bits():
    def run():
        trainer = Trainer(TEXT, Options(hidden=8, seq_len=8, batch=4, steps=20, seed=7))
        trainer.run()
        return trainer.rnn.params, trainer.metrics

    (first, metrics), (second, again) = run(), run()
    assert metrics == again
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_learning_rate_that_is_too_high_ends_training_with_a_word(capsys, text_file, tmp_path):
    command = ["train", str(text_file), *SMALL, "--lr", "1e38", "--optimizer", "sgd", "--cell", "relu"]
    assert cli.main([*command, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "training diverged at step 2: the loss is " in said
    assert "at a learning rate of 9.66667e+37; use a smaller one, or clip" in said
    assert f"the last good checkpoint, of step 0, is in {tmp_path / 'run'}: --resume " in said
    assert checkpoints.newest_checkpoint(tmp_path / "run", print).events[0]["step"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "hidden=0"),
        ({"steps": 0}, "steps=0"),
        ({"cell": "elman"}, "cell='elman' is unknown"),
        ({"layers": 0}, "layers=0"),
        ({"members": 0}, "members=0"),
        ({"dropout": 1.0, "layers": 2}, "dropout=1.0"),
        ({"dropout": 0.5}, "dropout=0.5 is between layers, but layers=1: give layers=2 or more"),
        ({"recurrent_dropout": -0.1}, "recurrent_dropout=-0.1"),
        ({"forget_bias": 1.0}, "forget_bias=1, but cell='tanh' has no forget gate"),
        ({"forget_bias": float("inf"), "cell": "lstm"}, "forget_bias=inf"),
        ({"bidirectional": True}, "bidirectional=True makes no sense here: a second direction would read the char"),
        ({"optimizer": "lion"}, "optimizer='lion' is unknown"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"clip": -1}, "clip=-1"),
        ({"validation": 1.0}, "validation=1.0"),
        ({"eval_every": 0}, "eval_every=0"),
        ({"init": "zeros"}, "init='zeros' is unknown"),
    ],
)
def test_options_that_make_no_sense_say_why(options, message):
    with pytest.raises(ValueError, match=message):
        Trainer(TEXT, Options(**options))


def test_without_a_validation_text_and_without_clipping_it_still_trains():
    trainer = Trainer(TEXT, Options(hidden=8, seq_len=8, batch=4, steps=3, validation=0, clip=0))
    trainer.run()
    assert trainer.metrics[-1].validation is None
    (line,) = plots.plot_loss(trainer.metrics).axes[0].lines
    assert line.get_ydata().tolist() == [m.loss for m in trainer.metrics]


def test_the_loss_on_a_validation_text_is_in_nats_per_character():
    """Against a plain loop over every character that is evaluated."""
    trainer = Trainer(TEXT, Options(hidden=8, seq_len=8, batch=4, steps=5, eval_characters=0))
    trainer.run()
    total, count = 0.0, 0
    columns = trainer.validation.streams.inputs.shape[0] // 8 * 8
    for n in range(trainer.validation.streams.inputs.shape[1]):
        state = None
        for t in range(columns):
            y, state = trainer.rnn(trainer.validation.streams.inputs[t : t + 1, n : n + 1], state)
            total -= np.log(float(y[0, 0, trainer.validation.streams.targets[t, n]]))
            count += 1
    assert trainer.evaluate() == pytest.approx(total / count, rel=1e-5)


# ---- layers, dropout, members -----------------------------------------------------------------------------


TINY = {"hidden": 8, "seq_len": 8, "batch": 4, "steps": 6}


def trained(**options):
    trainer = Trainer(TEXT, Options(**TINY | options))
    trainer.run()
    return trainer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cell": "lstm", "layers": 2, "dropout": 0.3, "recurrent_dropout": 0.2, "forget_bias": 1.0},
        {"cell": "gru", "optimizer": "momentum"},
        {"cell": "relu", "init": "identity", "optimizer": "sgd", "recurrent_dropout": 0.2},
    ],
    ids=lambda options: options.get("cell", "tanh"),
)
def test_a_member_learns_what_a_network_of_its_seed_learns_alone(options):
    options = options | {"dtype": "float64", "clip": 0.1}  # which is less than the norms are
    ensemble = trained(members=3, seed=5, **options)
    for k in range(3):
        alone = trained(seed=5 + k, **options)
        for name, value in ensemble.rnn.member(k).params.items():
            assert np.allclose(value, alone.rnn.params[name], rtol=1e-9, atol=1e-12), (k, name)
        (line,), (ours,) = alone.metrics[-1:], ensemble.metrics[-1:]
        assert ours.members_loss[k] == pytest.approx(line.loss, rel=1e-9)
        assert ours.members_validation[k] == pytest.approx(line.validation, rel=1e-9)


def test_metrics_of_an_ensemble_are_means_over_its_members_and_those_of_each():
    first, *_, last = trained(members=3, eval_every=4, steps=15).metrics
    for line, validated in ((first, True), (last, True)):
        assert line.loss == pytest.approx(np.mean(line.members_loss), rel=1e-6)
        assert len(set(line.members_loss)) == 3
        assert (line.members_validation is not None) == validated
    assert last.validation == pytest.approx(np.mean(last.members_validation), rel=1e-6)
    (between,) = [line for line in trained(members=2, eval_every=15, steps=15).metrics if line.step == 10]
    assert between.validation is between.members_validation is None
    assert len(trained(members=1).metrics[-1].members_validation) == 1
    alone = trained().metrics[-1]
    assert alone.members_loss is alone.members_validation is None


@pytest.mark.parametrize("option", [{"dropout": 0.5, "layers": 2}, {"recurrent_dropout": 0.5}, {}], ids=str)
def test_every_step_drops_out_by_masks_of_its_own_and_validation_does_not(option, monkeypatch):
    seeds = []

    def spied(name, call):
        def spy(*arguments, **more):
            seeds.append((name, more.get("dropout_seed")))
            return call(*arguments, **more)

        return spy

    for name in ("loss_and_grad", "loss"):
        monkeypatch.setattr(ba.RNN, name, spied(name, getattr(ba.RNN, name)))
    trained(**option)
    dropout = any(name.endswith("dropout") for name in option)
    assert [seed for name, seed in seeds if name == "loss_and_grad"] == [k if dropout else None for k in range(1, 7)]
    assert {seed for name, seed in seeds if name == "loss"} == {None}


def test_an_ensemble_writes_by_the_mean_of_its_probabilities_and_a_member_by_its_own():
    rnn = ba.RNN(2, 4, 2, output="softmax", members=2)
    rnn.params["W_hy"][...] = 0
    rnn.params["b_y"][...] = np.log([[0.6, 0.4], [0.1, 0.9]])
    vocabulary = Vocabulary("ab")
    assert sample(rnn, vocabulary, length=3, temperature=0) == "bbb"
    assert sample(rnn, vocabulary, length=3, temperature=0, member=0) == "aaa"
    text = sample(rnn, vocabulary, length=2000, temperature=1)
    assert text.count("a") / 2000 == pytest.approx(0.35, abs=0.04)
    assert sample(rnn, vocabulary, "ab", length=50, member=1) == sample(rnn.member(1), vocabulary, "ab", length=50)


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize(
    ("logit", "temperature"), [(110.0, 100.0), (800.0, 400.0), (2e4, 1e4), (110.0, 1e-3), (3.0, 1.0)]
)
def test_a_temperature_divides_the_logits_however_far_apart_they_are(members, logit, temperature):
    rnn = ba.RNN(4, 3, 4, output="softmax", members=members)
    rnn.params["W_hy"][...] = 0
    rnn.params["b_y"][...] = [logit, 0, 0, 0]
    written = sample(rnn, Vocabulary("abcd"), length=2000, temperature=temperature, seed=1)
    expected = 1 / (1 + 3 * np.exp(-logit / temperature))
    assert written.count("a") / 2000 == pytest.approx(expected, abs=0.04)


def test_a_character_that_cannot_be_is_never_written_and_temperature_one_is_softmax():
    rnn = ba.RNN(4, 3, 4, output="softmax", seed=3)
    rnn.params["b_y"][2] = -np.inf
    vocabulary = Vocabulary("abcd")
    assert "c" not in sample(rnn, vocabulary, "ab", length=500, temperature=1e6)
    written, rng, text, state = "", np.random.default_rng(5), np.array([[0], [1]]), None
    for _ in range(200):  # by the outputs of the network themselves
        y, state = rnn(text, state)
        p = y[-1, 0].astype(float)
        text = np.array([[rng.choice(4, p=p / p.sum())]])
        written += "abcd"[text.item()]
    assert sample(rnn, vocabulary, "ab", length=200, temperature=1, seed=5) == written


@pytest.mark.parametrize(("make", "dtype"), backends_and_dtypes())
def test_every_member_is_clipped_by_its_own_norm_as_the_single_network_is(make, dtype):
    """Bit for bit where it is NumPy that computes; members that explode, vanish or are no numbers included."""
    backend = make()
    rng = np.random.default_rng(0)
    host = {name: rng.standard_normal((6, *shape)).astype(dtype) for name, shape in SHAPES.items()}
    for value in host.values():
        value *= np.array([1, 1e-3, 1e30, 1e-30, 0, 1], dtype).reshape(-1, *(1,) * (value.ndim - 1))
    host["W"][5, 0, 0] = np.nan
    grads = {name: backend.from_host(value) for name, value in host.items()}
    norm, clipped = ba.global_norm(grads, members=6), ba.clip_by_global_norm(grads, 2.0, members=6)
    assert backend.owns(norm)
    assert norm.shape == (6,)
    same = np.testing.assert_array_equal if backend.xp is NumpyBackend().xp else RELATIVE[dtype]
    for k in range(6):
        alone = {name: value[k, ...] for name, value in grads.items()}
        expected = ba.clip_by_global_norm(alone, 2.0)
        same(backend.to_host(norm)[k], backend.to_host(ba.global_norm(alone)))
        for name in grads:
            assert clipped[name].dtype == grads[name].dtype
            same(backend.to_host(clipped[name])[k], backend.to_host(expected[name]))
    assert np.array_equal(backend.to_host(clipped["W"])[1], host["W"][1])  # nothing to clip
    assert np.isnan(backend.to_host(norm)).tolist() == [False] * 5 + [True]


SHAPES = {"W": (5, 4), "b": (3,), "scalar": ()}
RELATIVE = {
    dtype: functools.partial(np.testing.assert_allclose, rtol=8 * np.finfo(dtype).eps, atol=0)
    for dtype in ("float32", "float64")
}


@needs_torch
def test_clipping_of_members_reads_nothing_back():
    import torch

    grads = {"W": torch.ones((3, 2, 2), device="meta")}
    assert ba.clip_by_global_norm(grads, 1.0, members=3)["W"].device.type == "meta"


@each_optimizer
def test_an_update_of_an_ensemble_is_that_of_every_member(make):
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal((3, *shape)).astype("float32") for name, shape in SHAPES.items()}
    alone = [{name: np.array(value[k]) for name, value in params.items()} for k in range(3)]
    together, optimizers = make(), [make() for _ in range(3)]
    for _ in range(4):
        grads = {name: rng.standard_normal(value.shape).astype("float32") for name, value in params.items()}
        together.update(params, ba.clip_by_global_norm(grads, 1.0, members=3))
        for k, optimizer in enumerate(optimizers):
            own = {name: np.array(value[k]) for name, value in grads.items()}
            optimizer.update(alone[k], {name: np.asarray(v) for name, v in ba.clip_by_global_norm(own, 1.0).items()})
    for k, own in enumerate(alone):
        assert all(np.array_equal(params[name][k], own[name]) for name in params)


@pytest.mark.parametrize("call", [ba.global_norm, lambda grads, **more: ba.clip_by_global_norm(grads, 1.0, **more)])
def test_gradients_without_an_axis_for_the_members_are_named(call):
    grads = {"W": np.ones((3, 2)), "b": np.ones(2)}
    with pytest.raises(ValueError, match=r"grads\['b'\] has shape \(2,\); expected a first axis of members=3"):
        call(grads, members=3)
    with pytest.raises(ValueError, match=r"grads\['a'\] has shape \(\); expected a first axis of members=1"):
        call({"a": np.array(1.0)}, members=1)
    with pytest.raises(ValueError, match="members=0 is too small"):
        call(grads, members=0)
    with pytest.raises(TypeError, match="members=True is a bool"):
        call(grads, members=True)


# ---- the command line -------------------------------------------------------------------------------------


def test_a_run_folder_holds_model_metrics_and_plot(run_folder):
    assert sorted(path.name for path in run_folder.iterdir()) == [
        "checkpoints",
        "environment.json",
        "loss.png",
        "metrics.jsonl",
        "model.safetensors",
        "times.jsonl",
    ]
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines][-1] == 30
    assert lines[-1]["characters"] == 30 * 8 * 4
    assert lines[-1]["validation"] < lines[0]["validation"]
    assert lines[-1]["lr"] < lines[0]["lr"]
    assert len(lines[-1]["sample"]) == training.SAMPLE_LENGTH
    times = [json.loads(line) for line in (run_folder / "times.jsonl").read_text().splitlines()]
    assert [time["step"] for time in times] == [line["step"] for line in lines]
    seconds = [time["seconds"] for time in times]
    assert 0 < seconds[0] < seconds[-1] == max(seconds)
    (started,) = json.loads((run_folder / "environment.json").read_text())
    assert started["device"] == "cpu"
    assert started["numpy"] == np.__version__
    assert (run_folder / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    rnn, vocabulary = runs.load(run_folder)
    assert vocabulary.characters == "".join(sorted(set(TEXT)))
    assert rnn.hidden_size == 16


@pytest.mark.parametrize(
    ("options", "built"),
    [
        (
            "--cell lstm --layers 2 --dropout 0.2 --recurrent-dropout 0.1 --forget-bias 1",
            {"cell": "lstm", "num_layers": 2, "dropout": 0.2, "recurrent_dropout": 0.1},
        ),
        ("--cell gru", {"cell": "gru"}),
        ("--members 3 --seed 5", {"members": 3, "seed": 5}),
        ("--members 2 --cell gru --layers 2 --dropout 0.5", {"members": 2, "num_layers": 2}),
    ],
)
def test_every_kind_of_network_is_trained_saved_and_sampled(options, built, text_file, tmp_path, capsys):
    folder = tmp_path / "run"
    assert cli.main(["train", str(text_file), *SMALL, *options.split(), "--out", str(folder)]) == 0
    assert "A sample" in capsys.readouterr().out
    rnn, _ = runs.load(folder)
    assert rnn.config | built == rnn.config
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["validation"] < lines[0]["validation"]
    for name in ("members_loss", "members_validation"):
        assert (lines[-1][name] is None) if rnn.members is None else (len(lines[-1][name]) == rnn.members)
    written = []
    for more in ([], *(["--member", str(k)] for k in range(rnn.members or 0))):
        assert cli.main(["sample", str(folder), "--length", "60", "--temperature", "1", *more]) == 0
        written.append(capsys.readouterr().out)
    assert all(len(text) == 61 for text in written)
    assert len(set(written)) == len(written)


def test_a_run_folder_of_the_time_before_layers_and_members_is_read(run_folder, capsys):
    model = run_folder / "model.safetensors"
    architecture, params, metadata = models.read_model(model)
    old = ("input_size", "hidden_size", "output_size", "cell", "output", "readout", "dtype", "seed")
    options = json.loads(metadata["options"])
    for name in ("layers", "members", "bidirectional", "dropout", "recurrent_dropout", "forget_bias"):
        del options[name]
    before = sample(*runs.load(run_folder), length=20)
    config = json.dumps({name: architecture.config[name] for name in old})
    metadata = {"format": "bptt_array.RNN", "config": config, "options": json.dumps(options)} | metadata
    save_file(params, model, metadata)
    assert cli.main(["sample", str(run_folder), "--length", "20"]) == 0
    assert capsys.readouterr().out == before + "\n"


def test_train_shows_progress_and_a_sample(text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(["train", str(text_file), *SMALL, "--eval-every", "15"]) == 0
    out, err = capsys.readouterr()
    assert f"learning {text_file}: {len(TEXT):,} characters" in out
    assert out.count("nats per character") == 2
    assert "A sample" in out
    assert "char/s, loss " in err
    assert "100%" in err
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_there_is_no_progress_bar_where_there_is_no_terminal(text_file, tmp_path, capsys):
    assert cli.main(["train", str(text_file), *SMALL, "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().err == ""


def test_sample_continues_a_prompt_the_same_way_for_the_same_seed(run_folder, capsys):
    def write(*more):
        assert cli.main(["sample", str(run_folder), "--length", "40", *more]) == 0
        return capsys.readouterr().out

    text = write("--prompt", "the ", "--seed", "1")
    assert text.startswith("the ")
    assert len(text) == len("the ") + 40 + 1
    assert write("--prompt", "the ", "--seed", "1") == text
    assert write("--prompt", "the ", "--seed", "2") != text
    assert write("--temperature", "0") == write("--temperature", "0", "--seed", "9")
    assert len(write()) == 41


def test_temperature_makes_text_bolder_or_wilder(run_folder):
    rnn, vocabulary = runs.load(run_folder)
    different = [len(set(sample(rnn, vocabulary, length=300, temperature=t))) for t in (0.05, 1.0, 10.0)]
    assert different == sorted(different)
    assert different[0] < different[2]


def test_sample_refuses_what_it_cannot_do(run_folder, tmp_path, capsys, text_file):
    assert "prompt has the character 'Z', which the model has never seen" in fails(
        capsys, "sample", run_folder, "--prompt", "Z"
    )
    assert "--temperature=-1.0" in fails(capsys, "sample", run_folder, "--temperature", "-1")
    assert "--length=-1" in fails(capsys, "sample", run_folder, "--length", "-1")
    assert "--member=0, but this model is a single network" in fails(capsys, "sample", run_folder, "--member", "0")
    assert "--device='tpu' is unknown" in fails(capsys, "sample", run_folder, "--device", "tpu")
    assert f"{tmp_path} is no run folder: it has no model.safetensors" in fails(capsys, "sample", tmp_path)
    assert "is damaged or no safetensors file" in fails(capsys, "sample", text_file)  # a file would be a model
    assert "is no run folder" in fails(capsys, "sample", tmp_path / "none")
    model = run_folder / "model.safetensors"
    data = model.read_bytes()
    model.write_bytes(data[: len(data) // 2])
    assert "is damaged or no safetensors file" in fails(capsys, "sample", run_folder)
    for characters, options in (
        ("ab", {}),
        ("aab", {}),
        ("cba", {}),
        ("abc", {"bidirectional": True}),
        ("abc", {"time_major": False}),
        ("abc", {"readout": "last"}),
    ):
        ba.RNN(3, 4, 3, output="softmax", **options).save(model, {"characters": characters})
        assert "is no character model" in fails(capsys, "sample", run_folder)
    ba.RNN(2, 4, 2, output="softmax", members=3).save(model, {"characters": "ab"})
    assert "--member=3; expected 0 to 2" in fails(capsys, "sample", run_folder, "--member", "3")
    assert "--member=-1 is too small" in fails(capsys, "sample", run_folder, "--member", "-1")
    diverged = ba.RNN(2, 4, 2, output="softmax")
    diverged.params["b_y"][...] = np.nan
    diverged.save(model, {"characters": "ab"})
    assert "outputs are not numbers" in fails(capsys, "sample", run_folder)


def test_train_refuses_what_it_cannot_read_and_overwrites_nothing(run_folder, tmp_path, capsys, text_file):
    out = tmp_path / "new"
    before = {path: path.read_bytes() for path in run_folder.rglob("*.*")}
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "latin").write_bytes("größer".encode("latin-1") * 1000)
    (tmp_path / "short").write_text("abc" * 10)
    for file, message in [
        ("none", "none cannot be read: No such file or directory"),
        (".", "is a directory; expected the files in it"),
        ("empty", "empty is empty; expected a text"),
        ("latin", "latin is not UTF-8 (byte 2)"),
        (
            "short",
            "has 27 characters, too few for 32 streams of one sequence of 32; expected at least 1025: give more text",
        ),
    ]:
        assert message in fails(capsys, "train", tmp_path / file, "--out", out)
    assert "exists and is not an empty folder" in fails(capsys, "train", text_file, *SMALL, "--out", run_folder)
    assert "exists and is not an empty folder" in fails(capsys, "train", text_file, *SMALL, "--out", text_file)
    assert "lr=nan" in fails(capsys, "train", text_file, *SMALL, "--lr", "nan", "--out", out)
    assert "device='gpu' is unknown" in fails(capsys, "train", text_file, *SMALL, "--device", "gpu", "--out", out)
    assert "Not a directory" in fails(capsys, "train", text_file, *SMALL, "--out", text_file / "below")
    assert {path: path.read_bytes() for path in run_folder.rglob("*.*")} == before
    assert text_file.read_text(encoding="utf-8") == TEXT
    assert not out.exists()


def test_train_without_its_extras_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "train needs tqdm and matplotlib: pip install tqdm matplotlib" in fails(capsys, "train")


def test_running_out_of_memory_is_one_line(monkeypatch, capsys, text_file, tmp_path):
    def exhausted(self, *arguments):
        raise MemoryError("Unable to allocate 40 TiB")

    monkeypatch.setattr(training.Trainer, "__init__", exhausted)
    assert "not enough memory (Unable to allocate 40 TiB)" in fails(capsys, "train", text_file, "--out", tmp_path / "x")


def test_parity_prints_a_table_and_its_verdict(monkeypatch, capsys):
    assert cli.main(["parity", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "dl0.W_hh of loss" in out
    assert "within bounds" in out
    monkeypatch.setattr(ba.parity, "bound", lambda dtype: 1e-30)
    assert cli.main(["parity", "--device", "cpu"]) == 1
    assert "TOO LARGE" in capsys.readouterr().out


def test_info_prints_versions_and_devices(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"bptt_array        {ba.__version__}" in out
    assert f"numpy             {np.__version__}" in out
    assert "device cpu" in out
    assert "cuda" in out.lower()


def test_a_package_that_is_not_there_is_said_to_be_so():
    assert environment.version("no-such-package-at-all") == "not installed"


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["sample", "--help"], ["parity", "--help"]])
def test_there_is_help_and_every_option_is_in_it(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "usage: bptt-array" in out


def test_the_help_of_train_mentions_everything_a_run_is_made_of(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    out = capsys.readouterr().out
    for name in vars(Options()):
        assert f"\n  --{name.replace('_', '-')} " in out or f"\n  --{name.replace('_', '-')}\n" in out, name
    assert "{tanh,relu,lstm,gru,gru_reset_before}" in out


def test_every_option_has_a_help_text():
    (commands,) = [action for action in cli.parser()._actions if action.choices and "train" in action.choices]
    for name, command in commands.choices.items():
        assert all(action.help for action in command._actions), name


def start(*arguments, cwd, **more):
    """The program as a process, with the buffers that it has by default and ``more`` in its environment."""
    command = [sys.executable, "-m", "bptt_array", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | more
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    return subprocess.Popen(command, cwd=cwd, env=environment, **pipes)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_save_what_was_learnt(text_file, tmp_path, number, status):
    options = ["--hidden", "16", "--seq-len", "8", "--batch", "4", "--steps", "1000000", "--eval-every", "5"]
    process = start("train", text_file, *options, "--out", tmp_path / "run", cwd=tmp_path)
    seen = [process.stdout.readline() for _ in range(4)]
    assert "nats per character" in seen[3]
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == status
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("bptt-array: interrupted after step ")
    assert "to go on: " in last
    assert last.endswith(f"-m bptt_array train --resume {tmp_path / 'run'}")
    step = int(last.split("step ")[1].split(";")[0])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert step - 10 <= json.loads(lines[-1])["step"] <= step
    checkpoint = checkpoints.newest_checkpoint(tmp_path / "run", print)
    assert checkpoint.step == step
    assert cli.main(["sample", str(tmp_path / "run"), "--length", "5"]) == 0


def test_ctrl_c_anywhere_else_is_one_line(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.flags, "info", interrupted)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "bptt-array: interrupted\n"


def test_a_second_ctrl_c_does_not_wait():
    before = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        assert stop.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        done = []

        def write():
            with stop.held():
                signal.raise_signal(signal.SIGTERM)
                done.append("what was being written")

        with pytest.raises(KeyboardInterrupt):
            write()
        assert done
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_first_signal_is_answered_within_its_handler_unless_it_interrupts_at_once():
    answers = []
    with Stop(lambda: answers.append("heard")) as stop:
        signal.raise_signal(signal.SIGTERM)
        assert answers == ["heard"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            pytest.fail("it was asked to stop before")
    with Stop(lambda: answers.append("heard")) as stop:
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
    assert answers == ["heard"]


def test_a_signal_that_was_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_command_line_has_every_option_of_a_run_and_its_default(capsys):
    assert not set(vars(Options())) & set(vars(cli.parser().parse_args(["train"])))  # those of Options are taken
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    for name, value in vars(Options()).items():
        flag = f"--{name.replace('_', '-')}"
        assert flag in help_text
        if value is not None and value is not False:
            entry = help_text[help_text.rindex(f" {flag} ") :]
            assert re.match(rf"[^()]*(\([^d][^()]*\)[^()]*)*\(default: {value}\)", entry), entry[:200]


@pytest.mark.parametrize("field", dataclasses.fields(Options), ids=lambda field: field.name)
def test_every_option_of_a_run_is_a_flag(field):
    flag, choices = f"--{field.name.replace('_', '-')}", field.metadata["choices"]
    kind = type(field.default) if field.default is not None else float if field.name == "lr" else int
    value = True if kind is bool else [*choices][-1] if choices else kind(7)
    given = [flag] if kind is bool else [flag, str(value)]
    found = getattr(cli.parser().parse_args(["train", *given]), field.name)
    assert (found, type(found)) == (value, kind)
    assert field.metadata["help"]


def test_errors_name_the_option_of_the_command_line(run_folder, capsys, text_file):
    assert "--eval-every=0 is too small" in fails(capsys, "train", text_file, "--eval-every", "0")
    assert "--temperature=-1.0; expected" in fails(capsys, "sample", run_folder, "--temperature", "-1")
    for arguments, message in (
        ("--layers 0", "--layers=0 is too small; expected a whole number of at least 1"),
        ("--members 0", "--members=0 is too small"),
        ("--layers 2 --dropout 1", "--dropout=1.0; expected a finite number of at least 0 and below 1"),
        (
            "--dropout 0.5",
            "--dropout=0.5 is between layers, but --layers=1: give --layers=2 or more, or use --recurrent-dropout",
        ),
        ("--recurrent-dropout nan", "--recurrent-dropout=nan; expected"),
        ("--forget-bias 1", "--forget-bias=1, but --cell='tanh' has no forget gate; leave it at 0"),
        ("--cell lstm --forget-bias nan", "--forget-bias=nan; expected a finite number"),
        ("--bidirectional", "--bidirectional makes no sense here: a second direction would read the characters that"),
    ):
        assert f"error: {message}" in fails(capsys, "train", text_file, *SMALL, *arguments.split())
    for wrong in (["train", "--steps", "1.5"], ["train", "--dtype", "float16"], ["sample"], ["nothing"], []):
        with pytest.raises(SystemExit) as stop:
            cli.main(wrong)
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_belongs_to_one_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(claims.time, "strftime", lambda layout: "now")
    with claims.new_run(None) as first, claims.new_run(None) as second, claims.new_run(None) as third:
        assert [folder.path.name for folder in (first, second, third)] == ["now", "now-2", "now-3"]
    assert list((tmp_path / "runs").iterdir()) == []  # nothing was learnt
    mine = tmp_path / "mine"
    mine.mkdir()
    with claims.new_run(mine), pytest.raises(ValueError, match="is in use by another run"), claims.new_run(mine):
        pass  # nothing was written yet, and still
    assert list(mine.iterdir()) == []
    (mine / "note").touch()
    with pytest.raises(ValueError, match=r"out=.*mine exists and is not an empty folder"), claims.new_run(mine):
        pass
    assert [path.name for path in mine.iterdir()] == ["note"]


def test_a_closed_output_is_one_line_and_loses_nothing(text_file, tmp_path):
    often = ["--steps", "1000000", "--eval-every", "10", "--checkpoint-every", "1"]
    process = start("train", text_file, *SMALL, *often, "--out", tmp_path / "run", cwd=tmp_path)
    for _ in range(4):  # the network, the text, threads, step 10, whose checkpoint there is before step 20
        process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=300) == 2
    assert process.stderr.read().splitlines()[-1].endswith("output: Broken pipe")
    process.stderr.close()
    assert (tmp_path / "run" / "metrics.jsonl").read_text()
    assert runs.load(tmp_path / "run")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")
def test_a_full_output_is_one_line_and_leaves_no_claimed_folder(text_file, tmp_path):
    for arguments in (["info"], ["train", str(text_file), *SMALL, "--out", "run"]):
        with open("/dev/full", "w") as full:
            command = [sys.executable, "-m", "bptt_array", *arguments]
            done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
        assert done.returncode == 2
        assert done.stderr == "bptt-array: error: output: No space left on device\n"
    assert not (tmp_path / "run").exists()


def test_what_the_terminal_cannot_show_is_escaped(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    ba.RNN(1, 4, 1, output="softmax").save(folder / runs.MODEL, {"characters": "ö"})
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    process = start("sample", folder, "--length", "2", cwd=tmp_path, **ascii_only)
    assert process.communicate(timeout=300) == ("\\xf6" * 2 + "\n", "")


def test_file_names_are_not_taken_for_options_nor_broken_into_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, shown in (("steps=3", "steps=3"), ("two\nlines", "two\\nlines")):
        (tmp_path / name).touch()
        assert fails(capsys, "train", name) == f"bptt-array: error: {shown} is empty; expected a text to learn\n"


def test_the_module_and_the_console_script_are_the_same_program(tmp_path):
    process = start("--version", cwd=tmp_path)
    out, _ = process.communicate(timeout=300)
    assert out == f"bptt-array {ba.__version__}\n"
    scripts = importlib.metadata.entry_points(group="console_scripts", name="bptt-array")
    assert [script.load() for script in scripts] == [cli.main]
