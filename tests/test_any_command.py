"""Whatever is typed: every command ends with a status, and where that is an error, in one line on standard error.

Arguments are drawn by hypothesis, texts are of any encoding. Commands run in this process, apart from the calls of the
library (``test_any_input.py``) because each takes tenths of a second: 400 where ``CI`` is set, 60 otherwise.
"""

import argparse
import contextlib
import io
import itertools
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from conftest import IN_CI
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt_array import cli, parity
from bptt_array.cli.start import main
from bptt_array.training import text

CASES = 400 if IN_CI else 60

#: Errors of the library and of argparse; everything else that is said on standard error begins with the program's name.
ERROR = re.compile(r"bptt-array( \w+)?: error: \S")

GOOD = "it was the best of times, it was the worst of times\n" * 4
FILES = {
    "good": GOOD.encode(),
    "with a mark": b"\xef\xbb\xbf" + GOOD.encode(),
    "line ends of another system": GOOD.replace("\n", "\r\n").encode(),
    "far away": ("\U0001d4b3é٣\n\0\x1b[31m" * 30).encode(),
    "one character": b"a" * 200,
    "short": b"ab",
    "empty": b"",
    "latin-1": b"caf\xe9 " * 40,
    "utf-16": GOOD.encode("utf-16"),
    "surrogates": b"\xed\xa0\x80" * 40,
    "nulls": bytes(200),
}
PATHS = [*FILES, "good", "good", "good", "nowhere", ".", "", "a\0", "\ud800", "n" * 300, "runs", "good/model"]


def run(arguments):
    """Status, standard output and standard error."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as stopped:  # argparse
            status = stopped.code
        sys.stdout.flush()
        sys.stderr.flush()
    return status, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


def check(arguments):
    """Returns the status."""
    status, out, err = run(arguments)
    assert status in (0, 1, 2), (status, err)
    assert "Traceback" not in out + err
    lines = err.splitlines()
    assert all(line.startswith("bptt-array") for line in lines), err
    assert sum(bool(ERROR.match(line)) for line in lines) == (status == 2), err
    if status == 2:
        assert ERROR.match(lines[-1]), err
    return status


# ---- what is typed ----------------------------------------------------------------------------------------

#: Numbers of things that are allocated or waited for: few, or more than there can be.
small = st.sampled_from(["1", "2", "3", "3", "+2", " 2", "٣"])
bad_counts = st.sampled_from(
    ["0", "-1", "2.0", "1e3", "x", "", "nan", "9" * 5000, "1" + "0" * 30, "1_000_000_000_000_000", "\ud800"]
)
counts = small | small | bad_counts
few = small | small | bad_counts.filter(lambda n: not n.replace("_", "").isdigit() or n == "0")  # what is waited for
rates = st.sampled_from(
    ["0", "0.5", "0.1", "0.9", "1", "1.0", "-0.1", "nan", "inf", "-inf", "1e400", "1e30", "half", "", "0,5", "1e-320"]
)
seeds = st.sampled_from(["0", "1", "4294967296", "1" + "0" * 30, "1" + "0" * 60, "-1", "1.5", "x"])
devices = st.sampled_from(["cpu", "cpu", "auto", "cuda", "cuda:99", "CPU", "", "gpu", "cuda:x", "\ud800"])
names = itertools.count()

TRAIN = {
    "--cell": st.sampled_from(["tanh", "relu", "lstm", "gru", "elu", ""]),
    "--hidden": counts,
    "--layers": counts,
    "--members": counts,
    "--dropout": rates,
    "--recurrent-dropout": rates,
    "--seq-len": counts,
    "--batch": counts,
    "--lr": rates,
    "--optimizer": st.sampled_from(["adam", "sgd", "momentum", "Adam"]),
    "--clip": rates,
    "--init": st.sampled_from(["uniform", "orthogonal", "identity", "zeros"]),
    "--forget-bias": rates,
    "--validation": rates,
    "--eval-every": counts,
    "--device": devices,
    "--dtype": st.sampled_from(["float32", "float64", "float16"]),
    "--seed": seeds,
    "--out": st.sampled_from(["good", ".", "", "a\0", "\ud800", "n" * 300, "good/run", "run"]),
    "--bidirectional": st.none(),
    "--nonsense": st.none(),
    # where there are none of these yet, argparse says so
    "--checkpoint-every": counts,
    "--keep-checkpoints": counts,
    "--on-divergence": st.sampled_from(["stop", "halve-lr", "go on"]),
    "--diagnose-every": counts,
    "--lr-schedule": st.sampled_from(["linear", "constant", "cosine"]),
    "--init-from": st.sampled_from(
        ["run", "run/model.safetensors", "ensemble", "damaged", "good", "nowhere", "", "a\0"]
    ),
    "--steps": few,
}
SAMPLE = {
    "--prompt": st.sampled_from(["", "it", "the\n", "é", "\0", "\ud800", "-x", "--", "x" * 10_000]),
    "--length": few,
    "--temperature": rates,
    "--seed": seeds,
    "--member": st.sampled_from(["0", "1", "2", "-1", "x"]),
    "--device": devices,
}


@st.composite
def options(draw, of, most):
    """Up to ``most`` of them, as they stand on a command line."""
    typed = []
    for name in draw(st.lists(st.sampled_from(sorted(of)), max_size=most, unique=True)):
        value = draw(of[name])
        if value is None:
            typed.append(name)
        else:
            typed += draw(st.sampled_from([[name, value], [f"{name}={value}"]]))
    return typed


@st.composite
def trains(draw):
    if draw(st.integers(0, 3)) == 0:
        resumed = f"again-{next(names)}"
        shutil.copytree("run", resumed)
        which = draw(st.sampled_from([resumed, resumed, "good", "nowhere", "", "a\0", "\ud800"]))
        return ["train", "--resume", which, *draw(options(TRAIN, 2))]
    files = draw(st.just(["good"]) | st.lists(st.sampled_from(PATHS), max_size=2))
    right = ["--hidden=3", "--batch=2", "--seq-len=4", "--steps=2", f"--out=run-{next(names)}"]
    return ["train", *right, *draw(options(TRAIN, 3)), *draw(st.just([]) | st.just(["--"])), *files]


#: Good ones often enough that some commands have nothing wrong, whatever else is drawn.
runs = st.sampled_from(
    [*["run"] * 6, *["ensemble"] * 3, "run/model.safetensors", "good", "nowhere", ".", "", "a\0", "\ud800", "damaged"]
)


@st.composite
def samples(draw):
    return ["sample", draw(runs), *draw(st.just(["--length=3"])), *draw(options(SAMPLE, 3))]


@st.composite
def reports(draw):
    return ["report", draw(runs)]


@st.composite
def others(draw):
    parities = devices.map(lambda device: ["parity", "--device", device])
    plain = st.sampled_from(
        [
            ["info"],
            ["info", "x"],
            ["--version"],
            ["--help"],
            ["train", "--help"],
            [],
            [""],
            ["\ud800"],
            ["trian"],
            ["parity", "x"],
        ]
    )
    return draw(parities | plain)


#: Commands, and the part of all cases that each has.
COMMANDS = {"train": (trains(), 5), "sample": (samples(), 4), "report": (reports(), 2), "others": (others(), 1)}


@pytest.fixture(scope="module", autouse=True)
def in_a_folder_of_its_own(tmp_path_factory):
    """With the texts, two runs and a damaged one, and little to learn where no text is given."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("commands")
        patch.chdir(folder)
        patch.setattr(text, "language_reference", lambda: GOOD)
        patch.setattr(parity, "CASES", {"tanh, mse": parity.CASES["tanh, mse"]})
        for name, content in FILES.items():
            (folder / name).write_bytes(content)
        tiny = ["--hidden=3", "--batch=2", "--seq-len=4", "--steps=3"]
        assert check(["train", *tiny, "--out=run", "good"]) == 0
        assert check(["train", *tiny, "--members=2", "--cell=lstm", "--out=ensemble", "good"]) == 0
        shutil.copytree("run", "damaged")
        for path in (folder / "damaged").rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:-7])
        yield


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_with_a_status_and_errors_are_one_line(name):
    commands, part = COMMANDS[name]
    total = sum(part for _, part in COMMANDS.values())

    ended = Counter()

    @settings(max_examples=max(12, -(-CASES * part // total)))
    @given(commands)
    def drive(arguments):
        ended["error" if check(arguments) == 2 else "result"] += 1

    drive()
    for kind in ("result", "error"):  # there were both
        assert ended[kind] >= (0.1 * ended.total() if IN_CI else 1), ended


def test_two_dashes_after_an_equals_sign_are_a_value():
    """Some Pythons take them for the end of options, wherever they stand."""
    assert cli.parser().parse_args(["sample", "run", "--prompt=--"]).prompt == "--"
    for typed in (["--prompt=--"], ["--length=--"], ["--length=3", "--prompt=--", "--device=--"]):
        assert check(["sample", "run", *typed]) == 2
    assert check(["train", "--cell=--", "good"]) == 2
    assert check(["train", "--out=--", "--hidden=3", "--batch=2", "--seq-len=4", "--steps=2", "--", "good"]) == 0


#: What parsers of command lines and systems take for something else than a value.
AWKWARD = ["--", "-", "", "-1", "=", "\0", "-x", "---", "--help", "--=--"]


def actions():
    """Every option and argument of every command, as the parser knows them."""
    (commands,) = [a.choices for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return [(name, action) for name, command in commands.items() for action in command._actions]


@pytest.mark.parametrize(
    ("name", "action"), [pytest.param(*of, id=f"{of[0]} {(*of[1].option_strings, of[1].dest)[-1]}") for of in actions()]
)
def test_an_awkward_value_of_any_option_is_a_value_or_one_line(name, action):
    arguments = {"train": ["good"], "sample": ["run"], "report": ["run"]}.get(name, [])
    little = ["--hidden=3", "--batch=2", "--seq-len=4", "--steps=2"]
    before = {"train": [] if action.dest == "resume" else little, "sample": ["--length=2"]}.get(name, [])
    takes_text = action.option_strings and action.nargs is None and action.type is None and action.choices is None
    for value in AWKWARD:
        if action.dest not in ("out", "resume") and name == "train":
            before = [*(typed for typed in before if "--out" not in typed), f"--out=run-{next(names)}"]
        for flag in action.option_strings:
            typed = [name, *before, f"{flag}={value}", *arguments]
            if takes_text:
                assert getattr(cli.parser().parse_args(typed), action.dest) == value
            check(typed)
            check([name, *before, flag, value, *arguments])
        if not action.option_strings:
            check([name, *before, value])
            check([name, *before, "--", value])


@pytest.mark.parametrize("folder", ["-x", "--", "-", "--out", "with a space", "it's", "-1", "$HOME"])
def test_the_commands_that_a_run_says_are_commands_whatever_its_folder_is_called(folder, capsys):
    shutil.rmtree(folder, ignore_errors=True)
    assert check(["train", "--hidden=3", "--batch=2", "--seq-len=4", "--steps=2", f"--out={folder}", "good"]) == 0
    _, out, _ = run(["train", f"--resume={folder}"])
    said = [shlex.split(line)[3:] for line in out.splitlines() if " -m bptt_array " in line]
    assert [arguments[0] for arguments in said] == ["sample", "report"]
    for arguments in said:
        assert check(arguments) == 0


def test_a_python_without_parts_of_its_library_learns_a_text_that_is_given(tmp_path):
    """Pyodide has no pydoc_data, and the first of the others only where somebody asks for them."""
    missing = ["pydoc_data", "pydoc_data.topics", "lzma", "_lzma", "bz2", "_bz2", "ssl", "sqlite3", "fcntl", "resource"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing}));"
        "from bptt_array.cli.start import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "train", "--hidden=3", "--batch=2", "--seq-len=4", "--steps=2"]
    for files, status in ((["good"], 0), ([], 2)):
        out = f"--out={tmp_path / str(status)}"
        done = subprocess.run([*command, out, *files], capture_output=True, text=True, timeout=300)
        assert done.returncode == status, done.stderr
    assert done.stderr == (
        "bptt-array: error: this Python has no pydoc_data, in which the language reference is: "
        "give the FILE of a text\n"
    )
    assert not (tmp_path / "2").exists()
