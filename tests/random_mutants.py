"""Random mistakes: one small change at a random place of the package at a time, and whether a test sees it.

    python tests/random_mutants.py --seed 1 --number 20

A file is drawn in proportion to its lines, a line of it, and one of the changes that this line allows. The tests that
fit the file (:data:`TESTS`, cheap ones first) run in a copy of the tree, up to the first that fails. What none of them
sees is printed with its difference, to be judged: the same program written otherwise, a matter of speed or of the words
of an error, or a test that is missing. Nothing of this runs in ``.ci/run``: 200 mutants take hours.
"""

import argparse
import ast
import contextlib
import difflib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COPIED = ("bptt_array", "tests", "benchmarks", ".ci", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE")

_GRADIENTS = "mutants::test_the_copy_without_a_mistake_passes"
_EQUATIONS = f"{_GRADIENTS} parts dropout cells padding parallel gradients schedules parity layout costs tasks"
#: The tests that fit the files whose paths begin so, by what stands between ``test_`` and ``.py``, in the order in
#: which they run; of several paths the first that fits counts.
TESTS = {
    "backend/cpu_norms.py": "cpu_updates parts extremes training",
    "backend/cpu_updates.py": "cpu_updates parts",
    "backend/": "parts namespaces bad_input parity costs torch any_input",
    "bptt/streaming.py": "streaming",
    "bptt/": _EQUATIONS,
    "cli/": "training report runs any_command jobs",
    "diagnostics/": "diagnostics bad_input docs",
    "distributed/": "distributed jobs",
    "equations/token_sums.py": "tokens mutants schedules",
    "equations/": _EQUATIONS,
    "rnn/streamer.py": "streaming attributes advice any_input",
    "rnn/torch_weights.py": "torch any_input",
    "rnn/files.py": "older_files pickling hostile_files bad_input any_input",
    "rnn/conversions.py": "parts advice bad_input any_input",
    "rnn/memory.py": "schedules parallel",
    "rnn/": f"{_GRADIENTS} parts attributes pickling bad_input advice docs layout gradients schedules parity any_input",
    "kernels/": "kernels",
    **dict.fromkeys(("runs/fit.py", "runs/fit_listener.py", "runs/identity.py"), "fit"),
    "runs/": "report runs jobs training",
    "schedules/": "schedules parallel docs any_input gradients",
    "tracing/": "kernels cuda_rest",
    "training/threads.py": "threads",
    **dict.fromkeys(("training/feed.py", "training/fitting.py", "training/history.py"), "fit"),
    "training/loop.py": "fit runs training",
    "training/": "training older_files any_input runs distributed",
    "checks.py": "bad_input any_input",
    "gradcheck.py": "gradients bad_input any_input",
    "optimizers/lr_schedules.py": "lr_schedules",
    "optimizers/": "mutants torch parts cpu_updates pickling training parity bad_input costs any_input",
    "parity.py": "parity any_input",
    "plots.py": "report training diagnostics",
    "serialization.py": "hostile_files older_files runs",
    "": "rooms docs training",
}


def fitting(file):
    """The tests that fit a file of the package, as pytest knows them."""
    names = next(tests.split() for start, tests in TESTS.items() if file.startswith(start))
    return ["test_{}.py{}{}".format(*name.partition("::")) for name in names]


# ---- mutants ------------------------------------------------------------------------------------------

COMPARED = {
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
COMPUTED = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "%"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.BitXor: ("^", "|"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
}
_PAIRS = [
    ("min", "max"),
    ("any", "all"),
    ("minimum", "maximum"),
    ("zeros", "ones"),
    ("zeros_like", "ones_like"),
    ("floor", "ceil"),
    ("add_", "subtract_"),
    ("append", "remove"),
]
EXCHANGED = {name: other for pair in _PAIRS for name, other in (pair, pair[::-1])}


class Mutant(NamedTuple):
    """A file of the package, its source as it is, and with one change at a line."""

    file: str
    line: int
    before: str
    after: str

    @property
    def difference(self):
        lines = (source.splitlines(keepends=True) for source in (self.before, self.after))
        return "".join(difflib.unified_diff(*lines, self.file, self.file, n=1))


class Change(NamedTuple):
    """Bytes of a source and what is put in their place."""

    start: int
    stop: int
    new: str

    def made(self, source):
        """The source after it; None if that is no Python any more, as with half of a pair of brackets, or the same."""
        text = source.encode()
        after = (text[: self.start] + self.new.encode() + text[self.stop :]).decode()
        try:
            return after if ast.dump(ast.parse(after)) != ast.dump(ast.parse(source)) else None
        except SyntaxError:
            return None


class Source:
    """A source as bytes, in which nodes of its tree know where they are, and what may become of these."""

    def __init__(self, source):
        self.text = source.encode()
        self.lines = [0, *itertools.accumulate(map(len, self.text.splitlines(keepends=True)))]

    def begin(self, node):
        return self.lines[node.lineno - 1] + node.col_offset

    def end(self, node):
        return self.lines[node.end_lineno - 1] + node.end_col_offset

    def written(self, start, stop):
        return self.text[start:stop].decode()

    def all_of(self, node, new):
        return Change(self.begin(node), self.end(node), new)

    def operator(self, left, right, old, new):
        """Between two operands, where nothing else stands but brackets."""
        at = self.text.index(old.encode(), self.end(left), self.begin(right))
        return Change(at, at + len(old), new)

    def negated(self, test):
        return self.all_of(test, f"not ({self.written(self.begin(test), self.end(test))})")

    def of_operators(self, node):
        """Another operator, or none."""
        match node:
            case ast.Compare(left, ops, comparators):
                for op, (a, b) in zip(ops, pairwise([left, *comparators]), strict=True):
                    yield self.operator(a, b, *COMPARED[type(op)])
            case ast.BinOp(left, op, right) if type(op) in COMPUTED:
                yield self.operator(left, right, *COMPUTED[type(op)])
            case ast.AugAssign(target, op, value) if type(op) in COMPUTED:
                yield self.operator(target, value, *COMPUTED[type(op)])
            case ast.BoolOp(op, values):
                names = ("and", "or") if isinstance(op, ast.And) else ("or", "and")
                yield from (self.operator(a, b, *names) for a, b in pairwise(values))
            case ast.UnaryOp(ast.Not() | ast.USub(), operand):
                yield Change(self.begin(node), self.begin(operand), "")

    def of_values(self, node):
        """Another number, a limit less, a function that is taken for its neighbour."""
        match node:
            case ast.Constant(bool(value)):
                yield self.all_of(node, str(not value))
            case ast.Constant(int(value)):
                yield from (self.all_of(node, str(value + more)) for more in (1, -1))
            case ast.Constant(float(value)):
                yield self.all_of(node, repr(2 * value if value else 1.0))
            case ast.Slice(lower, upper):
                yield from (self.all_of(limit, "") for limit in (lower, upper) if limit is not None)
            case ast.Name(name) | ast.Attribute(attr=name) if name in EXCHANGED:
                yield Change(self.end(node) - len(name), self.end(node), EXCHANGED[name])

    def of_calls(self, node):
        """An argument that has a name forgotten, or two that have none exchanged."""
        if not isinstance(node, ast.Call):
            return
        arguments = sorted([*node.args, *node.keywords], key=self.begin)
        for k, argument in enumerate(arguments):
            if isinstance(argument, ast.keyword) and argument.arg is not None:
                yield Change(self.end(arguments[k - 1]) if k else self.begin(argument), self.end(argument), "")
        for a, b in pairwise(node.args):
            if not isinstance(a, ast.Starred) and not isinstance(b, ast.Starred):
                places = (self.begin(b), self.end(b)), (self.end(a), self.begin(b)), (self.begin(a), self.end(a))
                yield Change(self.begin(a), self.end(b), "".join(self.written(*place) for place in places))

    def of_control(self, node):
        """Another branch, another way out of a loop, or a statement that is forgotten."""
        match node:
            case ast.IfExp(test) | ast.While(test):
                yield self.negated(test)
            case ast.If(test):
                yield self.negated(test)
                yield self.all_of(test, "True")
            case ast.comprehension(ifs=ifs):
                yield from (self.all_of(test, "True") for test in ifs)
            case ast.Break():
                yield self.all_of(node, "continue")
            case ast.Continue():
                yield self.all_of(node, "break")
            case ast.Expr(ast.Call()) | ast.Raise() | ast.Delete() | ast.AugAssign():
                yield self.all_of(node, "pass")
            case ast.Assign([ast.Attribute() | ast.Subscript()]):
                yield self.all_of(node, "pass")


def walk(node):
    """Nodes whose change is one of the program: not types, and not the words of an error."""
    yield node
    if isinstance(node, (ast.Raise, ast.JoinedStr)):
        return
    for field, child in ast.iter_fields(node):
        if field not in ("annotation", "returns", "decorator_list"):
            for one in child if isinstance(child, list) else [child]:
                yield from walk(one) if isinstance(one, ast.AST) else ()


def changes(source):
    """Every small change of a source, by its line; some leave no Python."""
    of, found = Source(source), defaultdict(list)
    for node in walk(ast.parse(source)):
        for change in (*of.of_operators(node), *of.of_values(node), *of.of_calls(node), *of.of_control(node)):
            found[of.text.count(b"\n", 0, change.start) + 1].append(change)
    return found


def mutants(package, seed):
    """Without end, none of them twice: from files in proportion to their lines, and from every line that allows any."""
    rng, seen = random.Random(seed), set()
    sources = {path.relative_to(package).as_posix(): path.read_text("utf-8") for path in sorted(package.rglob("*.py"))}
    names, weights = list(sources), [source.count("\n") for source in sources.values()]

    by_line = cache(lambda name: changes(sources[name]))
    while True:
        (name,) = rng.choices(names, weights)
        if not by_line(name):
            continue
        line = rng.choice(list(by_line(name)))
        after = rng.choice(by_line(name)[line]).made(sources[name])
        mutant = Mutant(name, line, sources[name], after)
        if after is not None and mutant not in seen:
            seen.add(mutant)
            yield mutant


# ---- whether a test sees them ---------------------------------------------------------------------------


class Copy:
    """A copy of the tree, in which one mutant after the other takes its file's place.

    ``limit``: seconds for one test; a file of them may take twenty times that.
    """

    def __init__(self, root, scratch, limit):
        self.root, self.scratch, self.limit = root, scratch, limit
        self.changed = 0
        self.right = set()  # tests known to pass without any mutant
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, scratch / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
            elif (root / name).exists():
                shutil.copy2(root / name, scratch / name)

    def write(self, mutant, source):
        path = self.scratch / "bptt_array" / mutant.file
        path.write_text(source, "utf-8")
        self.changed += 1  # else the compiled one of a file as long, written within the same second, would be taken
        os.utime(path, (self.changed, self.changed))

    def first_failure(self, test):
        """The first of a file of tests that fails or does not end, the file if none could run; None if all pass."""
        environment = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_ADDOPTS")}
        environment |= {"PYTHONPATH": str(self.scratch), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        options = "-x -v -p no:cacheprovider --tb=no --no-header --no-summary --hypothesis-profile=mutants"
        limit = "-o addopts= -o faulthandler_exit_on_timeout=true -o faulthandler_timeout="
        command = [sys.executable, "-m", "pytest", *options.split(), *f"{limit}{self.limit}".split()]
        command += ["-m", "not gpu", "--rootdir", str(self.scratch), f"tests/{test}"]
        log = self.scratch / "log"
        with log.open("w") as out:
            run = subprocess.Popen(
                command, cwd=self.scratch, env=environment, stdout=out, stderr=out, start_new_session=True
            )
            try:
                code = run.wait(20 * self.limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(run.pid, signal.SIGKILL)  # with what it started
                run.wait()
        if code == 0:
            return None
        begun = re.findall(
            r"^tests/(\S+?\.py::.*?)(?: (?:PASSED|SKIPPED|FAILED|ERROR|Timeout).*)?$", log.read_text(), re.M
        )
        return begun[-1].rstrip() if begun else test

    def seen_by(self, mutant):
        """The test that fails with a mutant, and passes without; None: there is none."""
        self.write(mutant, mutant.after)
        try:
            test = next(filter(None, map(self.first_failure, fitting(mutant.file))), None)
        finally:
            self.write(mutant, mutant.before)
        if test is not None and test not in self.right:
            if self.first_failure(test) is not None:
                raise RuntimeError(f"{test} fails without any mutant: mend that first")
            self.right.add(test)
        return test


def main(arguments=None, root=ROOT):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")
    parser.add_argument("--number", type=int, default=20, help="of mutants (default 20)")
    parser.add_argument("--first", type=int, default=1, help="begin with this one, to go on where a run ended")
    parser.add_argument("--limit", type=int, default=120, help="seconds for a test that may not end (default 120)")
    parser.add_argument("--only", nargs="*", default=[""], metavar="PATH", help="those of files that begin so")
    given = parser.parse_args(arguments)
    drawn = list(itertools.islice(mutants(root / "bptt_array", given.seed), given.number))
    chosen = [k for k in range(given.first, len(drawn) + 1) if drawn[k - 1].file.startswith(tuple(given.only))]
    survivors = []
    with tempfile.TemporaryDirectory() as scratch:
        copy = Copy(root, Path(scratch), given.limit)
        for k in chosen:
            mutant = drawn[k - 1]
            test = copy.seen_by(mutant)
            print(f"{k}/{given.number} {mutant.file}:{mutant.line} {test or 'SURVIVES'}", flush=True)
            if test is None:
                survivors.append(mutant)
                print(mutant.difference, flush=True)
    print(f"{len(survivors)} of {len(chosen)} mutants survive")
    return survivors


if __name__ == "__main__":
    main()
