"""Every example in the README and in the docstrings runs."""

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import pytest

import bptt_array
from bptt_array import cli

README = Path(__file__).parent.parent / "README.md"
MODULES = [module.name for module in pkgutil.walk_packages(bptt_array.__path__) if module.name != "__main__"]


@pytest.mark.parametrize("name", ["", *MODULES])
def test_docstring_examples_run(name):
    module = importlib.import_module(f"bptt_array.{name}".rstrip("."))
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
    assert module.__doc__


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_readme_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = blocks("python")
    assert len(examples) >= 3
    namespace = {}
    for example in examples:
        exec(compile(example, str(README), "exec"), namespace)


def test_the_plans_of_the_readme_are_what_is_printed(capsys):
    (example,) = [block for block in blocks("python") if "rnn.plan(" in block]
    lines = example.splitlines()
    import numpy as np

    namespace = {"np": np, "ba": bptt_array, "rng": np.random.default_rng(0)}
    exec("\n".join(line for line in lines if not line.startswith("_,") and "assert" not in line), namespace)
    assert capsys.readouterr().out.splitlines() == [line[2:] for line in lines if line.startswith("# ")]


def test_the_diagnoses_of_the_readme_are_what_is_printed(capsys):
    (example,) = [block for block in blocks("python") if "diagnostics.diagnose(" in block]
    import numpy as np

    exec(example, {"np": np, "ba": bptt_array})
    expected = [line[2:] for line in example.splitlines() if line.startswith("# ")]
    assert len(expected) == 3
    assert capsys.readouterr().out.splitlines() == expected


def test_commands_of_the_readme_are_commands():
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    calls = [line.split("python -m bptt_array ", 1)[1] for line in lines if "python -m bptt_array " in line]
    assert {call.split()[0] for call in calls} == {"train", "sample", "report", "parity", "info"}
    for call in calls:
        cli.parser().parse_args(shlex.split(call, comments=True))


def test_every_file_that_the_readme_names_is_there():
    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([^):#]+)\)", text))
    assert named
    assert [path for path in named if not (README.parent / path).exists()] == []


def test_every_numbered_equation_is_in_the_source_that_the_readme_points_to():
    """The README's table of equations: number in the first column, a link to the file in the last."""
    rows = re.findall(
        r"^\| (\([0-9.]+\)|§[0-9.]+[^|]*) \|.*\| (.*) \|$", README.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) >= 8
    for number, files in rows:
        for path in re.findall(r"\]\((bptt_array/[^)]+)\)", files):
            source = (README.parent / path).read_text(encoding="utf-8")
            assert number.split()[0].rstrip("-") in source, (number, path)
