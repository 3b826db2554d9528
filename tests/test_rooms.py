"""What holds between the rooms beside the layers, which import-linter holds (pyproject.toml)."""

import ast
import importlib.metadata
import tomllib
from pathlib import Path

import pytest

import bptt_array

PACKAGE = Path(bptt_array.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

#: Private names that are methods of a NamedTuple.
OF_NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}


def is_private(name):
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def imported(tree, file):
    """What a file imports: the full name of a module, and names of it; none for the module itself."""
    package = ["bptt_array", *Path(file).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*above, *filter(None, [node.module])]), [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "import_module":
            yield from ((name.value, []) for name in node.args[:1] if isinstance(name, ast.Constant))


def own_names(tree):
    """Names that a file gives to things of its own."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def broken(source, file):
    """The rules that a file breaks, in words."""
    tree = ast.parse(source)
    found = []
    for module, names in imported(tree, file):
        if module == "bptt_array" and file != "__init__.py":
            found.append(f"imports the public face: {names}")
        if module.split(".")[0] in ("cupy", "cupyx") and not file.startswith("backend/"):
            found.append(f"imports {module}, which only backend/ does")
        if module.startswith("bptt_array.") and any(map(is_private, names)):
            found.append(f"imports private names of {module}: {names}")
    own = {*own_names(tree), *OF_NAMED_TUPLES}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            found.append(f"line {node.lineno} takes {node.attr}, a private name of something else")
    return found


@pytest.mark.parametrize("file", FILES)
def test_a_file_keeps_the_rules(file):
    assert broken((PACKAGE / file).read_text(encoding="utf-8"), file) == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("import bptt_array", "imports the public face"),
        ("from bptt_array import RNN", "imports the public face"),
        ("from .. import State", "imports the public face"),
        ("import cupy", "imports cupy"),
        ("def f():\n    from cupyx.distributed import init_process_group", "imports cupyx.distributed"),
        ("importlib.import_module('cupy.cuda')", "imports cupy.cuda"),
        ("from ..schedules.plans import _within", "imports private names of bptt_array.schedules.plans"),
        ("from .passes import _gradients", "imports private names of bptt_array.bptt.passes"),
        ("rnn._layout.inward(x)", "takes _layout"),
    ],
)
def test_a_line_that_breaks_a_rule_is_found(line, what):
    (found,) = broken(line, "bptt/layer.py")
    assert what in found


def test_a_line_that_keeps_them_is_none():
    for line in (
        "from ..equations import sums",
        "from .passes import Network",
        "class A:\n    def _own(self): return self._own",
        "plan._replace(T=1)",
    ):
        assert broken(line, "bptt/layer.py") == []
    assert broken("import cupy", "backend/cuda.py") == []


def test_every_room_is_in_the_layers():
    """import-linter says the same; this needs nothing installed."""
    with open(PACKAGE.parent / "pyproject.toml", "rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    named = {name.strip() for layer in layers for name in layer.split("|")}
    there = {Path(file).parts[0].removesuffix(".py") for file in FILES} - {"__init__", "__main__"}
    assert named == there


def test_the_version_is_said_once():
    assert importlib.metadata.version("bptt-array") == bptt_array.__version__
    sources = [file for file in FILES if bptt_array.__version__ in (PACKAGE / file).read_text(encoding="utf-8")]
    assert sources == ["_version.py"]
