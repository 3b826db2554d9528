"""The mutator of ``random_mutants.py``: what it changes, what it draws, and that it can tell a test from none."""

import ast
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import random_mutants
from random_mutants import TESTS, Change, changes, fitting, mutants

import bptt_array

PACKAGE, HERE = Path(bptt_array.__file__).parent, Path(__file__).parent


def made(source):
    """What becomes of a source by each of its changes."""
    all_changes = [change for of_line in changes(source).values() for change in of_line]
    return {after.strip() for change in all_changes if (after := change.made(source)) is not None}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", {"a <= b"}),
        ("a is b not in c", {"a is not b not in c", "a is b in c"}),
        ("(a + b) * c", {"(a - b) * c", "(a + b) / c"}),
        ("a and (b) and c", {"a or (b) and c", "a and (b) or c"}),
        ("not a", {"a"}),
        ("-a", {"a"}),
        ("a = True", {"a = False"}),
        ("a = 1, 2.5, 'é', None", {"a = 2, 2.5, 'é', None", "a = 0, 2.5, 'é', None", "a = 1, 5.0, 'é', None"}),
        ("a -= b", {"a += b", "pass"}),
        ("a.b = c", {"pass"}),
        ("f(a, b)", {"pass", "f(b, a)"}),
        ("a = f(b, axis=c, keepdims=d)", {"a = f(b, keepdims=d)", "a = f(b, axis=c)"}),
        ("a = f(**b)", set()),
        ("a = (b if c else d)", {"a = (b if not (c) else d)"}),
        ("if a:\n    b", {"if not (a):\n    b", "if True:\n    b"}),
        ("while a:\n    break", {"while not (a):\n    break", "while a:\n    continue"}),
        ("a = [b for b in c if d]", {"a = [b for b in c if True]"}),
        ("a[b:c]", {"a[:c]", "a[b:]"}),
        ("xp.max(a)", {"xp.min(a)", "pass"}),
        ("raise ValueError(f'{a + 1}', 2)", {"pass"}),
        ("def f(a: int | None) -> int | None:\n    'What it does.'", set()),
        ("é = 'é'; a < b", {"é = 'é'; a <= b"}),
    ],
)
def test_a_change_is_one_small_mistake(source, expected):
    assert made(source) == expected


def test_what_is_no_python_or_the_same_is_no_change():
    assert Change(1, 3, "").made("f(a)") is None
    assert Change(2, 3, " a ").made("f(a)") is None


def test_a_seed_draws_the_same_mutants_which_are_one_change_of_one_file():
    drawn = list(islice(mutants(PACKAGE, 5), 30))
    assert drawn == list(islice(mutants(PACKAGE, 5), 30)) != list(islice(mutants(PACKAGE, 6), 30))
    assert len(set(drawn)) == 30
    for mutant in drawn:
        assert mutant.before == (PACKAGE / mutant.file).read_text("utf-8")
        assert ast.dump(ast.parse(mutant.before)) != ast.dump(ast.parse(mutant.after))
        assert mutant.difference.count("\n@@") == 1
        lines = mutant.before.splitlines()
        assert lines[: mutant.line - 1] == mutant.after.splitlines()[: mutant.line - 1]


def test_files_are_drawn_in_proportion_to_their_lines(tmp_path):
    for name, lines in (("short", 100), ("long", 300), ("empty", 0)):
        (tmp_path / f"{name}.py").write_text("a = 1\n" * lines)
    drawn = Counter(mutant.file for mutant in islice(mutants(tmp_path, 0), 100))
    assert drawn.keys() == {"short.py", "long.py"}
    assert abs(drawn["long.py"] - 75) < 4 * (100 * 0.75 * 0.25) ** 0.5


def test_every_file_has_tests_that_are_there():
    for path in PACKAGE.rglob("*.py"):
        assert fitting(path.relative_to(PACKAGE).as_posix())
    for start in TESTS:
        assert (PACKAGE / start).exists()
        for test in fitting(start):
            file, _, function = test.partition("::")
            assert f"def {function}" in (HERE / file).read_text("utf-8")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A function that makes a tree with one file of each of the given sources and a test of it."""
    monkeypatch.setattr(random_mutants, "TESTS", {"": "it"})

    def make(source, test):
        for folder, name, text in (("bptt_array", "it.py", source), ("tests", "test_it.py", test)):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / name).write_text(text)
        (tmp_path / "bptt_array" / "__init__.py").touch()
        (tmp_path / "tests" / "conftest.py").write_text(
            "import hypothesis\nhypothesis.settings.register_profile('mutants')\n"
        )
        return tmp_path

    return make


SOURCE = "UNUSED = True\n\n\ndef f(n):\n    while n:\n        break\n    return -n\n"
TEST = "from bptt_array.it import f\n\n\ndef test_it_ends():\n    assert f(3) == -3\n"


def test_a_test_sees_a_mistake_and_one_without_end_and_not_what_is_the_same(tree, monkeypatch, capsys):
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k none_of_them")  # is for the tests outside, as are limits of coverage
    root = tree(SOURCE, TEST)
    survivors = random_mutants.main(["--number", "4", "--limit", "15"], root)
    changed = {mutant.line: mutant.after.splitlines()[mutant.line - 1].strip() for mutant in survivors}
    assert changed == {1: "UNUSED = False", 5: "while not (n):"}
    said = capsys.readouterr().out
    for line in (6, 7):  # on and on, and another sign
        assert f"it.py:{line} test_it.py::test_it_ends\n" in said
    assert "-UNUSED = True\n+UNUSED = False\n" in said
    assert said.endswith("2 of 4 mutants survive\n")
    assert random_mutants.main(["--number", "4", "--only", "is", "not"], root) == []
    assert random_mutants.main(["--number", "4", "--first", "5"], root) == []


def test_a_test_that_fails_by_itself_is_no_witness(tree):
    root = tree(SOURCE, TEST.replace("-3", "5"))
    with pytest.raises(RuntimeError, match=r"test_it\.py::test_it_ends fails without any mutant: mend that first"):
        random_mutants.main(["--number", "1"], root)
