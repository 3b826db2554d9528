"""What holds between the rooms beside the layers, which import-linter holds (pyproject.toml)."""

import ast
import importlib.metadata
import subprocess
import sys
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


def name_of(function):
    """``f`` of ``f`` and of ``a.b.f``."""
    return getattr(function, "id", getattr(function, "attr", None))


def imported(tree, file):
    """What a file imports: the full name of a module, and names of it; none for the module itself."""
    package = ["bptt_array", *Path(file).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*above, *filter(None, [node.module])]), [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and name_of(node.func) in ("import_module", "__import__"):
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            yield from ((name.value, []) for name in given if isinstance(name, ast.Constant))
        elif isinstance(node, ast.Subscript) and name_of(node.value) == "modules":  # sys.modules["..."]
            yield from ((name.value, []) for name in [node.slice] if isinstance(name, ast.Constant))


def own_names(tree):
    """Attributes that a file gives to things of its own: methods, those of classes, and what it sets on ``self``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for one in node.body:
                targets = [one.target] if isinstance(one, ast.AnnAssign) else getattr(one, "targets", [])
                yield from (target.id for target in targets if isinstance(target, ast.Name))
                yield from [one.name] if isinstance(one, ast.FunctionDef) else []
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and name_of(node.value) == "self":
            yield node.attr


def looked_up(tree):
    """Attributes that a file takes of something, by a dot or by name: the node, and the attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node, node.attr
        elif isinstance(node, ast.Call) and name_of(node.func) in ("getattr", "setattr", "hasattr", "attrgetter"):
            yield from ((node, a.value) for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def broken(source, file):
    """The rules that a file breaks, in words."""
    tree, is_face = ast.parse(source), Path(file).name in ("__init__.py", "__main__.py")
    found = []
    for module, names in imported(tree, file):
        top, *parts = str(module).split(".")
        if top in ("cupy", "cupyx") and not file.startswith("backend/"):
            found.append(f"imports {module}, which only backend/ does")
        if top != "bptt_array" or is_face:
            continue
        folder = PACKAGE.joinpath(*parts)
        of_face = [name for name in names if not any((folder / f"{name}{end}").exists() for end in ("", ".py"))]
        if folder.is_dir() and (of_face or not names):
            found.append(f"imports the face of {module}: {of_face}")
        elif any(map(is_private, {*parts, *names} - {"_version"})):
            found.append(f"imports private names of {module}: {names}")
    own = {*own_names(tree), *OF_NAMED_TUPLES}
    for node, name in looked_up(tree):
        if is_private(name) and name not in own:
            found.append(f"line {node.lineno} takes {name}, a private name of something else")
    return found


@pytest.mark.parametrize("file", FILES)
def test_a_file_keeps_the_rules(file):
    assert broken((PACKAGE / file).read_text(encoding="utf-8"), file) == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("import bptt_array", "imports the face of bptt_array"),
        ("from bptt_array import RNN", "imports the face of bptt_array"),
        ("from .. import State", "imports the face of bptt_array"),
        ("sys.modules['bptt_array'].RNN", "imports the face of bptt_array"),
        ("from ..backend import resolve", "imports the face of bptt_array.backend"),
        ("from . import Batch", "imports the face of bptt_array.bptt"),
        ("import cupy", "imports cupy"),
        ("def f():\n    from cupyx.distributed import init_process_group", "imports cupyx.distributed"),
        ("importlib.import_module('cupy.cuda')", "imports cupy.cuda"),
        ("import_module(name='cupy')", "imports cupy"),
        ("__import__('cupy')", "imports cupy"),
        ("from ..schedules.plans import _within", "imports private names of bptt_array.schedules.plans"),
        ("from .passes import _gradients as gradients", "imports private names of bptt_array.bptt.passes"),
        ("from bptt_array.rnn._x import y", "imports private names of bptt_array.rnn._x"),
        ("getattr(rnn, '_with')", "takes _with"),
        ("def f(rnn):\n    _bound = 1\n    return rnn.calls._bound", "takes _bound"),
        ("rnn._layout.inward(x)", "takes _layout"),
    ],
)
def test_a_line_that_breaks_a_rule_is_found(line, what):
    (found,) = broken(line, "bptt/layer.py")
    assert what in found


def test_a_line_that_keeps_them_is_none():
    for line in (
        "from ..equations import sums",
        "from .passes import BoundNetwork",
        "from .._version import __version__",
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
    installed = importlib.metadata.version("bptt-array")
    assert installed == bptt_array.__version__, "installed before the version changed: pip install -e . once more"
    sources = [file for file in FILES if bptt_array.__version__ in (PACKAGE / file).read_text(encoding="utf-8")]
    assert sources == ["_version.py"]


#: Names of pages and docstrings that are not at the top.
DOCUMENTED = (
    *("backend.Backend", "backend.NumpyBackend", "backend.CupyBackend", "backend.resolve"),
    *(
        "schedules.plan",
        "schedules.Plan",
        "schedules.Costs",
        "plots.plot_loss",
        "plots.plot_gradient_flow",
        "plots.plot_history",
    ),
    *("diagnostics.diagnose", "diagnostics.Diagnosis", "diagnostics.gradient_flow", "diagnostics.GradientFlow"),
    *("diagnostics.jacobian", "diagnostics.jacobian_norms", "diagnostics.singular_values"),
    *("diagnostics.lyapunov_exponents", "diagnostics.saturation", "parity.compare_devices"),
    *("distributed.communicator", "distributed.Communicator", "distributed.OneProcess", "distributed.Reduced"),
    *("distributed.RanksError", "cli.main", "data.Batches"),
)


def test_every_documented_name_is_there_and_what_is_rarely_used_is_not_imported_before():
    code = (
        "import sys, operator, bptt_array as ba\n"
        "names = ('data', 'diagnostics', 'distributed', 'parity', 'plots', 'training', 'runs', 'serialization')\n"
        "loaded = {'cupy', 'matplotlib', *(f'bptt_array.{name}' for name in names)} & {*sys.modules}\n"
        "assert not loaded, loaded\n"
        "for name in (*dir(ba), *sys.argv[1:]):\n"
        "    if name.startswith('cli.'): import bptt_array.cli\n"
        "    operator.attrgetter(name)(ba)\n"
        "everything = {}\n"
        "exec('from bptt_array import *', everything)\n"
        "assert {*everything} - {'__builtins__'} == {*ba.__all__} <= {*dir(ba)}\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *DOCUMENTED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
