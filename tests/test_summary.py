"""What pytest prints at the end of this suite: skips in one line a reason and file, failures in the last lines."""

import os
import re
import subprocess
import sys
from pathlib import Path

import conftest
import pytest
import skips

HERE = Path(__file__).parent
TESTS = """
import pytest

@pytest.mark.parametrize("k", range(40))
def test_many(k):
    pytest.skip("needs a device" if k % 4 else "needs a browser")

@pytest.mark.skipif(True, reason="needs a device")
def test_marked():
    pass

def test_fails():
    assert 1 == 2, "as it should"
"""


def test_this_suite_prints_so():
    assert conftest.pytest_terminal_summary is skips.pytest_terminal_summary


@pytest.mark.parametrize("workers", ["0", "2"])
def test_skips_are_one_line_a_reason_and_file_and_failures_stand_last(workers, tmp_path):
    (tmp_path / "conftest.py").write_text("from skips import pytest_terminal_summary\n")
    for name in ("test_a.py", "test_b.py"):
        (tmp_path / name).write_text(TESTS)
    code = f"import sys, pytest; sys.path.insert(0, {str(HERE)!r}); sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-c", str(HERE.parent / "pyproject.toml"), "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    command = [sys.executable, "-c", code, *options, "-n", workers, str(tmp_path)]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV_"))}
    done = subprocess.run(command, cwd=tmp_path, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    skips = [line.strip() for line in lines if "needs a" in line]
    assert skips == [
        f"{count} in test_{letter}.py: needs a {what}"
        for letter in "ab"
        for what, count in (("browser", 10), ("device", 31))
    ]
    _, _, last = done.stdout.partition("short test summary info")
    assert len(re.findall(r"^FAILED .*test_[ab].py::test_fails - .*as it should", last, re.M)) == 2
    assert "needs a" not in last
    assert re.search(r"2 failed, 82 skipped in", lines[-1])
    again = subprocess.run([*command, "-rs"], cwd=tmp_path, env=plain, capture_output=True, text=True, check=False)
    assert "in test_a.py" not in again.stdout  # pytest's own list was asked for
    assert "needs a device" in again.stdout
