"""Every example on every page and in every docstring runs, and every link leads somewhere."""

import ast
import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import bptt_array
from bptt_array import cli

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PACKAGE = Path(bptt_array.__file__).parent

#: The pages, and how many examples in Python each has.
PAGES = {
    "README.md": 4,
    "benchmarks/README.md": 0,
    "bptt_array/README.md": 0,
    "bptt_array/backend/README.md": 0,
    "bptt_array/bptt/README.md": 0,
    "bptt_array/cli/README.md": 0,
    "bptt_array/data/README.md": 2,
    "bptt_array/diagnostics/README.md": 1,
    "bptt_array/distributed/README.md": 2,
    "bptt_array/equations/README.md": 3,
    "bptt_array/kernels/README.md": 0,
    "bptt_array/optimizers/README.md": 1,
    "bptt_array/rnn/README.md": 8,
    "bptt_array/runs/README.md": 1,
    "bptt_array/schedules/README.md": 3,
    "bptt_array/tracing/README.md": 0,
    "bptt_array/training/README.md": 0,
    "tests/README.md": 0,
}

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(bptt_array.__path__, "bptt_array.")
    if not module.name.endswith("__main__")
)


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(language, page):
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL)


def cell_of_the_page(name="UpdateGate"):
    """The class of a cell that ``equations/README.md`` shows."""
    [example] = [block for block in blocks("python", "bptt_array/equations/README.md") if f"class {name}" in block]
    namespace = {"ba": bptt_array}
    exec(example.partition("\n\n\nown = ")[0], namespace)
    return namespace[name]


# ---- docstrings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bptt_array", *MODULES])
def test_docstring_examples_run(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
    assert module.__doc__


def test_all_docstring_examples_are_found():
    """A module that is not walked to would leave its examples out, and every test here green."""
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py"]
    assert len(MODULES) + 1 == len(files) > 90
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in ["bptt_array", *MODULES] for test in finder.find(importlib.import_module(name))]
    written = sum(len(re.findall(r"^ *>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)) for path in files)
    assert sum(len(test.examples) for test in found) == written >= 115


# ---- pages ------------------------------------------------------------------------------------------------


def test_every_page_is_known():
    there = [
        ROOT / "README.md",
        *(path for folder in ("bptt_array", "benchmarks", "tests") for path in (ROOT / folder).rglob("README.md")),
    ]
    assert sorted(path.relative_to(ROOT).as_posix() for path in there) == sorted(PAGES)


def test_every_room_has_a_page_that_names_its_files():
    for room in (path.parent for path in PACKAGE.glob("*/__init__.py")):
        page = text_of(f"bptt_array/{room.name}/README.md")
        files = {path.name for path in room.glob("*.py")} - {"__init__.py"}
        assert {name for name in files if name not in page} == set(), room.name


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = blocks("python", page)
    assert len(examples) == PAGES[page]
    namespace = {}
    for example in examples:
        exec(compile(example, str(ROOT / page), "exec"), namespace)


@pytest.mark.parametrize(
    ("page", "call", "lines"),
    [
        ("bptt_array/schedules/README.md", "rnn.plan(", 4),
        ("bptt_array/diagnostics/README.md", "diagnostics.diagnose(", 3),
    ],
)
def test_what_an_example_prints_is_what_stands_below_it(page, call, lines, capsys):
    (example,) = [block for block in blocks("python", page) if call in block]
    exec(example, {})
    expected = [line[2:] for line in example.splitlines() if line.startswith("# ")]
    assert len(expected) == lines
    assert capsys.readouterr().out.splitlines() == expected


def test_the_readme_is_a_page_that_is_read_to_its_end():
    assert len(text_of("README.md").splitlines()) <= 150


def test_from_data_to_a_trained_network_in_ten_lines():
    forecast, classification, words, by_hand = blocks("python", "README.md")
    for example, made_by in (
        (forecast, "windows"),
        (classification, "pad"),
        (words, "embedding_size"),
        (by_hand, "RNN"),
    ):
        lines = [line for line in example.splitlines() if line.strip() and not line.startswith("import ")]
        assert len(lines) <= 10
        assert made_by in example


def test_commands_of_the_pages_are_commands():
    lines = [line for page in PAGES for block in blocks("sh", page) for line in block.replace("\\\n", " ").splitlines()]
    calls = [line.split("python -m bptt_array ", 1)[1] for line in lines if "python -m bptt_array " in line]
    assert {call.split()[0] for call in calls} == {"train", "sample", "report", "parity", "info"}
    for call in calls:
        cli.parser().parse_args(shlex.split(call, comments=True))


def anchors(page):
    """What a link may name on a page: its headings, as they are written in an address."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text_of(page))
    for target in (a or b for a, b in links):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), target
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), target


# ---- the table of equations -------------------------------------------------------------------------------


def rows():
    """(number, [(name, file, line), ...]) of every row of the README's table of equations."""
    found = re.findall(r"^\| (\([0-9.]+\)|§[0-9.-]+|LSTM|GRU) \|.*\| ([^|]*) \|$", text_of("README.md"), re.MULTILINE)
    link = re.compile(r"\[([^\]]+)\]\((bptt_array/[^)#]+)#L([0-9]+)\)")
    return [
        (number, [(m[1].replace("\\", ""), m[2], int(m[3])) for m in link.finditer(links)]) for number, links in found
    ]


def definition(file, name):
    node = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for part in name.split("."):
        (node,) = [one for one in node.body if isinstance(one, (ast.ClassDef, ast.FunctionDef)) and one.name == part]
    return node


def test_every_equation_has_a_row():
    numbers = [number for number, _ in rows()]
    assert numbers == ["(1.1)", "LSTM", "GRU", "(1.2)", "(2.1)", "(3.1)", "(3.2)", "(3.3)", "§3.2-3.4", "(4)"]


@pytest.mark.parametrize(("number", "targets"), rows(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_equation_is_one_click_away(number, targets):
    assert targets
    for name, file, line in targets:
        node = definition(file, name)
        assert line == node.lineno, f"{name} is on line {node.lineno} of {file}: mend the link of {number} in README.md"
        if number.startswith("("):
            assert number in (ROOT / file).read_text(encoding="utf-8"), f"{file} does not say {number}"


def test_the_step_of_the_elman_cell_is_one_page_both_ways():
    page = (PACKAGE / "equations" / "elman.py").read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 60
    assert "(1.1)" in page
    assert "(3.1)" in page


def test_the_three_sums_of_the_weights_stand_on_consecutive_lines():
    lines = (PACKAGE / "equations" / "sums.py").read_text(encoding="utf-8").splitlines()
    first = next(k for k, line in enumerate(lines) if "# §3.3" in line)
    equations = ("dW_hh = sum_t dz_t h_{t-1}^T", "dW_xh = sum_t dz_t x_t^T", "db_h = sum_t dz_t")
    for line, equation in zip(lines[first : first + 3], equations, strict=True):
        assert line.endswith(equation)


def test_the_product_of_jacobians_is_the_product():
    """(3.3), by hand, from the states of a network."""
    rnn = bptt_array.RNN(2, 3, dtype="float64", seed=1)
    x = np.random.default_rng(0).standard_normal((6, 1, 2))
    h, W_hh = rnn(x)[0][:, 0], rnn.params["l0.W_hh"]
    product = np.eye(3)
    for j in (2, 3, 4, 5):  # j = t+1 .. k
        product = np.diag(1 - h[j - 1] ** 2) @ W_hh @ product
    assert np.allclose(bptt_array.diagnostics.jacobian(rnn, x, 1, 5)[0], product, rtol=1e-12)
