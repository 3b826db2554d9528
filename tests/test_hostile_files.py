"""Nothing comes in: files with flipped bits, wrong headers and absurd sizes are an error or the right model.

Never a crash, a hang, another file opened, a name executed, or an allocation that the file does not justify.
"""

import contextlib
import functools
import io
import json
import math
import random
import re
import shutil
import signal
import sys
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save

import bptt_array as ba
from bptt_array import cli, serialization
from bptt_array.equations.cell import Cell
from bptt_array.runs import checkpoints
from bptt_array.runs import folder as runs
from bptt_array.training.listener import Listener
from bptt_array.training.options import Options
from bptt_array.training.trainer import Trainer

TEXT = "the quick brown fox jumps over the lazy dog; größer!\n" * 30

watched = []


def _hook(event, arguments):
    if watched and event in ("open", "exec", "compile", "import", "os.system", "subprocess.Popen", "pickle.find_class"):
        watched[-1].append((event, arguments[0]))


sys.addaudithook(_hook)  # which cannot be taken away again: it does nothing where nobody watches


@contextlib.contextmanager
def nothing_happens(path, seconds=20, room=1 << 24):
    """Within: only ``path`` is opened, nothing runs or is imported, for some seconds of computing, in 16 MiB."""

    def too_long(number, frame):
        raise TimeoutError(f"{path} took more than {seconds} s")

    events = []
    before = signal.signal(signal.SIGPROF, too_long), signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of computing, whatever else the machine does, ...
    signal.alarm(15 * seconds)  # ... and of waiting, which only a read that hangs does so long
    tracemalloc.start()
    watched.append(events)
    try:
        yield
    finally:
        watched.pop()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        signal.signal(signal.SIGPROF, before[0])
        signal.signal(signal.SIGALRM, before[1])
    assert peak < room
    assert {event for event in events if event != ("open", str(path))} == set()


@pytest.fixture(scope="module", autouse=True)
def model(tmp_path_factory):
    """A model, its file, and what the file holds."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    rnn = ba.RNN(3, 5, 2, cell="lstm", num_layers=2, members=2, output="softmax", seed=4)
    rnn.save(path, {"characters": "ab", "note": "ö"})
    ba.RNN.load(path)  # what is imported late is imported now
    return rnn, path, path.read_bytes()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    class Kept(Listener):
        def checkpoint(self, checkpoint):
            self.last = checkpoint

    listener, folder = Kept(), tmp_path_factory.mktemp("run")
    Trainer(TEXT, Options(hidden=4, seq_len=4, batch=2, steps=12, cell="lstm")).run(listener)
    path = checkpoints.write_checkpoint(folder, listener.last)
    return listener.last, path, path.read_bytes()


def refusal(path, read):
    """What ``read(path)`` gives, or the message with which it refuses; it must not do anything else."""
    with nothing_happens(path):
        try:
            return read(path), None
        except ValueError as error:
            message = str(error)
    start = f"path={str(path)!r} "
    assert (message[: len(start)], len(message) < 1000) == (start, True)
    return None, message


def same_model(rnn, other, metadata):
    return (
        rnn.config == other.config
        and metadata == {"characters": "ab", "note": "ö"}
        and set(rnn.params) == set(other.params)
        and all(np.array_equal(rnn.params[name], value) for name, value in other.params.items())
    )


def flipped(data, rng):
    """One to three bits of it, anywhere, or all of them in the header, where most of the danger is."""
    changed = bytearray(data)
    end = len(data) if rng.random() < 0.4 else 8 + int.from_bytes(data[:8], "little")
    for _ in range(rng.choice((1, 1, 2, 3))):
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_or_grown(data, rng):
    place = rng.randrange(len(data))
    return rng.choice(
        (
            data[:place],
            data + bytes(rng.randrange(1, 100)),
            data[:place] + data[place + rng.randrange(1, 9) :],
            data[:place] + rng.randbytes(rng.randrange(1, 9)) + data[place:],
            data[:place] + bytes(len(data) - place),
            rng.randbytes(len(data)),
            data[:8] + data[8:][::-1],
        )
    )


def overwritten(data, rng):
    """A number or a brace of the header by another."""
    length = 8 + int.from_bytes(data[:8], "little")
    places = [match.start() for match in re.finditer(rb'[0-9{}\[\],:"]', data[8:length])]
    place = 8 + rng.choice(places)
    return data[:place] + rng.choice(rb'0123456789{}[],:"-.eE\x00 \xff').to_bytes(1, "little") + data[place + 1 :]


@pytest.mark.parametrize(("mutate", "count"), [(flipped, 700), (cut_or_grown, 200), (overwritten, 300)])
def test_a_damaged_model_is_an_error_or_the_same_model(mutate, count, model, tmp_path):
    rnn, _, data = model
    path, rng, refused = tmp_path / "model.safetensors", random.Random(1), 0
    for _ in range(count):
        path.write_bytes(mutate(data, rng))
        found, message = refusal(path, ba.RNN.load_with_metadata)
        assert message or same_model(rnn, *found)
        refused += message is not None
    assert refused > 0.9 * count
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("mutate", "count"), [(flipped, 200), (cut_or_grown, 100), (overwritten, 100)])
def test_a_damaged_checkpoint_is_an_error_or_the_same_checkpoint(mutate, count, checkpoint, tmp_path):
    expected, path, data = checkpoint
    path, rng, refused = tmp_path / path.name, random.Random(2), 0
    for _ in range(count):
        path.write_bytes(mutate(data, rng))
        found, message = refusal(path, checkpoints.read_checkpoint)
        for name, value in vars(expected).items() if found else ():
            np.testing.assert_equal(getattr(found, name), value)
        refused += message is not None
    assert refused > 0.9 * count


# ---- headers that are well formed, and mean harm ----------------------------------------------------------

HUGE = (10**9, 10**18, 2**63, 2**64, 10**40, -1, -(2**63))
NOT_COUNTS = (1.5, 1e308, True, None, "5", [5], {"a": 1}, float("nan"))
NAMES = (
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\windows\\system.ini",
    "l0.W_hh\x00.txt",
    "\x1b[2J\x1b]0;gone\x07",
    "‮txt.exe",
    "l0.W_hh" * 10_000,
    "__class__",
    "__metadata__.x",
    "",
    "%s%n{0.__class__}",
    "\ud800",
)


def headers(rng, header):
    """Headers like that of a model, each with one thing in it that it should not have."""
    names = [name for name in header if name != "__metadata__"]
    changed = json.loads(json.dumps(header))
    name = rng.choice(names)
    entry, value = changed[name], rng.choice((*HUGE, *NOT_COUNTS))
    match rng.randrange(9):
        case 0:
            entry["shape"][rng.randrange(len(entry["shape"]))] = value
        case 1:
            entry["data_offsets"][rng.randrange(2)] = value
        case 2:
            entry["dtype"] = rng.choice(("F16", "BF16", "I64", "U8", "BOOL", "f32", "object", "O", 5, None, ["F32"]))
        case 3:
            changed[rng.choice(NAMES)] = changed.pop(name)
        case 4:
            changed[rng.choice(NAMES)] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        case 5:
            entry["shape"] = rng.choice(([], [1] * 100, [2**32, 2**32, 0], entry["shape"][::-1], "shape", None))
        case 6:
            other = rng.choice(names)
            entry["data_offsets"], changed[other]["data_offsets"] = (
                changed[other]["data_offsets"],
                entry["data_offsets"],
            )
        case 7:
            changed[name] = rng.choice((None, [], {}, "x", {**entry, "more": 1}, {"dtype": "F32"}))
        case 8:
            changed["__metadata__"] = rng.choice(
                (None, [], "x", {}, {"bptt_array": 5}, {"format": "pt"}, {"bptt_array": "[" * 100_000})
            )
    return changed


def with_header(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data


def parts_of(data):
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def test_headers_that_mean_harm_are_an_error_or_the_same_model(model, tmp_path):
    rnn, _, data = model
    header, body = parts_of(data)
    path, rng = tmp_path / "model.safetensors", random.Random(3)
    for _ in range(600):
        path.write_bytes(with_header(headers(rng, header), body))
        found, message = refusal(path, ba.RNN.load_with_metadata)
        assert message or same_model(rnn, *found)  # two of them had changed places with themselves


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"5",
        b'{"a": 1, "a": 1}',
        b"{" * 200_000,
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"1" * 100_000,
        b"\xff\xfe{}",
        b'{"a": NaN}',
        b"{}" + b" " * 1000 + b"x",
        b'{"a":[' + b"[]," * 2_000_000 + b"[]]}",
    ],
    ids=lambda header: repr(header[:20]),
)
def test_headers_that_are_no_table_are_refused(header, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(with_header(header, b""))
    with (
        nothing_happens(path),
        pytest.raises(ValueError, match=r"is damaged or no safetensors file: its header|its data"),
    ):
        ba.RNN.load(path)


@pytest.mark.parametrize("length", [0, 1, 7, 100, 2**31, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_header_of_an_absurd_length_is_refused(length, model, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + model[2][8:])
    with nothing_happens(path), pytest.raises(ValueError, match="is damaged or no safetensors file: its header"):
        ba.RNN.load(path)


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((1 << 32).to_bytes(8, "little"))
        file.truncate(8 + (1 << 33))  # a hole: it takes no room on the disk
    with nothing_happens(path), pytest.raises(ValueError, match="header would be of 4,294,967,296 bytes in a file of"):
        ba.RNN.load(path)


def test_a_file_of_gigabytes_that_its_configuration_does_not_need_is_not_read(model, tmp_path):
    header, _ = parts_of(model[2])
    header["l0.W_hh"] |= {"shape": [1 << 16, 1 << 16]}
    place = 0
    for name, entry in sorted(header.items()):
        if name != "__metadata__":
            size = 4 * math.prod(entry["shape"])
            entry["data_offsets"] = [place, place + size]
            place += size
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(with_header(header, b""))
        file.truncate(file.tell() + place)
    message = r"holds 'l0\.W_hh' as float32 \[65536, 65536\]; its configuration needs float32 \[2, 20, 5\]"
    with nothing_happens(path), pytest.raises(ValueError, match=message):
        ba.RNN.load(path)


def configurations(rng, config):
    changed = dict(config)
    name = rng.choice(list(config))
    values = (*HUGE, *NOT_COUNTS, "", "tanh", "../x", "a" * 10**5, 10**5000, [[]] * 1000, False, 0, 7, 1.0)
    match rng.randrange(3):
        case 0:
            changed[name] = rng.choice(values)
        case 1:
            changed.pop(name)
        case 2:
            changed[rng.choice(("evil", "__init__", "self", "cls", "given", "device", *NAMES[:4]))] = rng.choice(values)
    return changed


def test_a_configuration_that_means_harm_is_an_error_or_a_model_as_it_says(model, tmp_path):
    """With the right checksum: whoever means harm can compute it."""
    rnn, _, _ = model
    limit = sys.get_int_max_str_digits()
    path, rng, loaded = tmp_path / "model.safetensors", random.Random(4), 0
    for _ in range(500):
        config = configurations(rng, rnn.config)
        sys.set_int_max_str_digits(0)
        try:
            serialization.write_file(path, "model", rnn.params, {"config": config, "metadata": {}})
        finally:
            sys.set_int_max_str_digits(limit)
        other, message = refusal(path, ba.RNN.load)
        if message:
            continue
        loaded += 1
        assert all(type(other.config[name]) is type(rnn.config[name]) or name == "seed" for name in rnn.config)
        assert all(np.array_equal(rnn.params[name], value) for name, value in other.params.items())
        y, _ = other(
            np.zeros((2, 1, 3), "float32") if other.architecture.time_major else np.zeros((1, 2, 3), "float32")
        )
        assert np.isfinite(y).all()
    assert loaded > 10


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({}, "no readable configuration"),
        ({"config": {}, "metadata": {}}, "unusable configuration"),
        ({"config": [], "metadata": {}}, "no readable configuration"),
        ({"config": {}, "metadata": []}, "no readable configuration"),
        (
            {"config": {}, "metadata": {"a": json.loads("[" * 40 + "]" * 40)}},
            "has unusable metadata: .32 lists and dictionaries stand",
        ),
    ],
)
def test_a_header_without_what_a_model_needs_is_refused(about, message, model, tmp_path):
    path = tmp_path / "model.safetensors"
    serialization.write_file(path, "model", model[0].params, about)
    with pytest.raises(ValueError, match=message):
        ba.RNN.load(path)


def test_no_file_is_taken_for_another_kind(model, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="is a 'training checkpoint' of bptt_array; expected a model"):
        ba.RNN.load(checkpoint[1])
    with pytest.raises(ValueError, match="is a 'model' of bptt_array; expected a training checkpoint"):
        checkpoints.read_checkpoint(model[1])
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(save({"a": np.ones(2)}, {"format": "pt"}))
    for read in (ba.RNN.load, checkpoints.read_checkpoint):
        with pytest.raises(ValueError, match="was not written by bptt_array"):
            read(foreign)
    said = json.dumps({"kind": "training checkpoint", "about": {"step": 1}})
    foreign.write_bytes(save({"a": np.ones(2)}, {"bptt_array": said}))
    with pytest.raises(ValueError, match="its checksum is not that of what it holds"):
        checkpoints.read_checkpoint(foreign)


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"step": -1},
        {"step": True},
        {"step": "5"},
        {"step": 1e3},
        {"updates": None},
        {"updates": {}},
        {"updates": {"W_hy": -1}},
        {"evil": 1},
        {"lr": "x"},
        {"lr": None},
        {"lr": float("inf")},
        {"elapsed": "x"},
        {"device": 5},
        {"options": [1]},
        {"source": [1]},
        {"source": "text.txt"},
        {"events": [1]},
        {"events": "abc"},
        {"events": [{"step": 1}]},
        {"text": None},
    ],
)
def test_a_checkpoint_that_lacks_something_is_refused(about, checkpoint, tmp_path):
    _, path, _ = checkpoint
    with serialization.open_file(path) as file:
        said, arrays = file.about(checkpoints.KIND), file.arrays()
    changed = {} if not about else said | about
    path = tmp_path / path.name
    serialization.write_file(path, checkpoints.KIND, arrays, changed)
    with pytest.raises(ValueError, match="does not hold what a checkpoint does"):
        checkpoints.read_checkpoint(path)
    del arrays["metrics"]
    serialization.write_file(path, checkpoints.KIND, arrays, said)
    with pytest.raises(ValueError, match="does not hold what a checkpoint does"):
        checkpoints.read_checkpoint(path)


ARRAYS = [
    {"seconds": np.zeros(9)},
    {"seconds": np.zeros((1, 1))},
    {"metrics": np.frombuffer(b'{"step": 1}\n', np.uint8)},
    {"metrics": np.frombuffer(b"[1]\n", np.uint8)},
    {"metrics": np.frombuffer(b"\xff\n", np.uint8)},
    {"evil": np.zeros(1)},
    {"params.W_hy": np.full((1, 1), np.nan)},
    {"params.W_hy": np.zeros((1, 1), "float32")},
    {"params.more": np.zeros(1, "float32")},
    {"losses": np.zeros((1, 2, 3), "float32")},
    {"state.h": np.zeros((1, 1), "float32")},
    {"kept.2.W_hy": np.zeros(1, "float32")},
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, to be copied."""
    here = tmp_path_factory.mktemp("finished")
    (here / "text.txt").write_text(TEXT, encoding="utf-8")
    small = ["--hidden", "4", "--seq-len", "4", "--batch", "2", "--steps", "24", "--checkpoint-every", "6"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(["train", str(here / "text.txt"), *small, "--out", str(here / "run")]) == 0
    return here / "run"


@pytest.fixture
def run_with(finished, tmp_path):
    """A function that makes a run folder with one thing in it that is not as it was; all checksums are right."""
    return functools.partial(_run_with, finished, tmp_path / "run")


def _run_with(finished, folder, about=None, arrays=None, environment=None, metrics=None):
    shutil.copytree(finished, folder)
    *_, path = checkpoints.checkpoints(folder)
    with serialization.open_file(path) as file:
        content, there = file.about(checkpoints.KIND), file.arrays()
    if about is not None or arrays is not None:
        for path in checkpoints.checkpoints(folder):  # there is none to fall back on
            serialization.write_file(path, checkpoints.KIND, there | (arrays or {}), content | (about or {}))
    if environment is not None:
        (folder / runs.ENVIRONMENT).write_text(environment)
    if metrics is not None:
        (folder / runs.METRICS).write_text(metrics)
    return folder


def commands_end_well(folder, capsys):
    """``train --resume`` and ``report`` give a result or an error of one line; returns what each said."""
    said = []
    for command in (["train", "--resume", str(folder)], ["report", str(folder)]):
        capsys.readouterr()
        status = cli.main(command)
        err = capsys.readouterr().err
        assert status in (0, 2)
        assert (status == 2) == ("bptt-array: error: " in err)
        assert all(line.startswith("bptt-array: ") for line in err.splitlines())
        said.append(err)
    return said


@pytest.mark.parametrize("arrays", ARRAYS, ids=lambda arrays: str(list(arrays)))
def test_a_checkpoint_with_other_arrays_is_refused(arrays, run_with, capsys):
    resumed, _ = commands_end_well(run_with(arrays=arrays), capsys)
    assert "bptt-array: error: " in resumed


@pytest.mark.parametrize(
    "about",
    [
        {"options": {"hidden": 100_000}},
        {"options": {"hidden": "x"}},
        {"options": {"evil": 1}},
        {"options": {"layers": 10**12}},
        {"options": {"members": 10**12}},
        {"options": {"steps": 1}},
        {"options": {"cell": "../x"}},
        {"device": "cuda:97"},
        {"device": "\x1b[2J"},
        {"text": "0" * 64},
        {"source": ["/dev/zero"]},
        {"source": ["\0"]},
        {"source": ["<script>alert(1)</script>"]},
        {"step": 10**9},
    ],
    ids=str,
)
def test_a_checkpoint_that_says_something_else_is_refused_before_anything_is_made(about, run_with, capsys):
    if "options" in about:
        about = {
            "options": vars(Options(hidden=4, seq_len=4, batch=2, steps=24, checkpoint_every=6)) | about["options"]
        }
    folder = run_with(about=about)
    tracemalloc.start()
    resumed, _ = commands_end_well(folder, capsys)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "bptt-array: error: " in resumed
    assert peak < 1 << 27  # most of it matplotlib's, for the page


@pytest.mark.parametrize("text", ["[1]", "[null]", '[["<b>"]]', "{}", "[" * 200_000, "", '[{"a": 1}]', "\x00"])
def test_an_environment_that_is_none_is_left_out(text, run_with, capsys):
    assert all("error" not in said for said in commands_end_well(run_with(environment=text), capsys))


@pytest.mark.parametrize(
    "change",
    [{"loss": None}, {"step": None}, {"step": [1]}, {"characters": "x"}, {"validation": "x"}, {"validation": 1e308},
     {"loss": float("nan")}, {"sample": 5}, {"members_loss": 5}, {"members_loss": ["x"]}],
    ids=str,
)  # fmt: skip
def test_metrics_that_are_none_are_named(change, run_with, tmp_path, capsys):
    line = {"step": 1, "characters": 2, "lr": 0.1, "loss": 3.0} | change
    resumed, page = commands_end_well(run_with(metrics=json.dumps(line) + "\n"), capsys)
    assert resumed == ""  # they are in the checkpoint, and written anew,
    assert page == ""
    (tmp_path / "run" / runs.METRICS).write_text(json.dumps(line) + "\n")
    assert cli.main(["report", str(tmp_path / "run")]) == 2
    assert "metrics.jsonl is damaged; expected a line of JSON" in capsys.readouterr().err


def test_what_is_no_plain_file_is_not_waited_for(tmp_path):
    import os

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with nothing_happens(pipe), pytest.raises(FileNotFoundError, match="no such file"):
        ba.RNN.load(pipe)
    with pytest.raises(FileNotFoundError, match="no such file"):
        ba.RNN.load("/dev/zero")


def test_a_pickle_is_no_model(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Evil()))
    with nothing_happens(path), pytest.raises(ValueError, match="is damaged or no safetensors file"):
        ba.RNN.load(path)


def test_the_cell_of_a_file_is_a_name_and_nothing_is_looked_up_by_it(model, tmp_path):
    rnn, path, _ = model
    for name in ("os.system", "__import__('os')", "Cell", "custom", "\x1b[31m"):
        serialization.write_file(
            tmp_path / "bad", "model", rnn.params, {"config": rnn.config | {"cell": name}, "metadata": {}}
        )
        with nothing_happens(tmp_path / "bad"), pytest.raises(ValueError, match="which is not in the library; give it"):
            ba.RNN.load(tmp_path / "bad")

    class Mine(Cell):
        pass

    with pytest.raises(ValueError, match=r"cell='Mine', but path=.* was written with cell='lstm'"):
        ba.RNN.load(path, cell=Mine())


def test_the_same_network_is_the_same_bytes(model, tmp_path):
    rnn, _, data = model
    rnn.save(tmp_path / "again", {"note": "ö", "characters": "ab"})
    assert (tmp_path / "again").read_bytes() == data


def test_metadata_that_no_header_could_hold_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"metadata takes 8,000,.* bytes; expected at most 6,291,456"):
        model[0].save(tmp_path / "model", {"long": "x" * 8_000_000})
    itself = []
    itself.append(itself)
    for metadata, message in (
        ({"deep": itself}, r"32 lists and dictionaries stand in each other at metadata\['deep'\]\[0\]"),
        (
            {"wide": [[]] * 150_000},
            r"metadata has 150,\d* lists, dictionaries and opening brackets; expected at most 131,",
        ),
        ({"wide": "[" * 150_000}, r"metadata has 150,\d* lists, dictionaries and opening brackets"),
        ({"large": 10**5000}, r"metadata\['large'\] is a huge number; expected fewer digits"),
    ):
        with pytest.raises(ValueError, match=message):
            model[0].save(tmp_path / "model", metadata)
    assert list(tmp_path.iterdir()) == []


def test_metadata_that_are_no_strings_are_read_where_strings_are_expected(model, tmp_path, capsys):
    rnn, _, _ = model
    for characters in (5, ["a"], {"a": "b"}, None):
        about = {"config": rnn.config, "metadata": {"characters": characters}}
        serialization.write_file(tmp_path / runs.MODEL, "model", rnn.params, about)
        assert cli.main(["sample", str(tmp_path)]) == 2
        assert "is no character model" in capsys.readouterr().err


def test_every_character_of_unicode_fits_into_a_header(tmp_path):
    everything = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    ba.RNN(1, 1).save(tmp_path / "model", {"characters": everything})
    assert ba.RNN.load_with_metadata(tmp_path / "model")[1]["characters"] == everything
    ba.RNN(1, 1).save(tmp_path / "model", {"characters": "a\udc80"})  # which UTF-8 has not
    assert ba.RNN.load_with_metadata(tmp_path / "model")[1]["characters"] == "a\udc80"


def test_what_a_file_says_neither_breaks_the_line_nor_moves_the_cursor(model, tmp_path, capsys):
    rnn, _, _ = model
    for config in ({"cell": "\x1b[2J\nroot:"}, {"evil\n\x1b]0;x\x07": 1}):
        about = {"config": rnn.config | config, "metadata": {}}
        serialization.write_file(tmp_path / runs.MODEL, "model", rnn.params, about)
        assert cli.main(["sample", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("bptt-array: error: ")
        assert err.endswith("\n")
        assert err[:-1].isprintable()


def test_damaged_metrics_are_an_error(tmp_path):
    good = '{"step": 1, "characters": 2, "lr": 0.1, "loss": 3.0}\n'
    path = tmp_path / runs.METRICS
    path.write_text(good)
    assert [progress.step for progress in runs.read_metrics(tmp_path)] == [1]
    for bad in ("{", "[]", "5", '{"step": 1}', "[" * 10**5, good[:-5], "\x00"):
        path.write_text(good + bad)
        with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged"):
            runs.read_metrics(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is damaged"):
        runs.read_metrics(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="is no run folder"):
        runs.read_metrics(tmp_path)


def test_reading_needs_no_more_memory_than_a_few_times_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    ba.RNN(256, 512, 256).save(path)
    size = path.stat().st_size
    with nothing_happens(path, room=4 * size):
        ba.RNN.load(path)
