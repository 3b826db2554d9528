"""What was skipped, one line a reason and file: where many tests need a device that is not there, pytest's is long."""

from collections import Counter


def pytest_terminal_summary(terminalreporter):
    """Before pytest's own summary, so that failures stand last, right above the result."""
    if set("sAa") & set(terminalreporter.reportchars):  # pytest lists them itself: it was asked to
        return
    found = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        _, _, reason = report.longrepr
        found[report.nodeid.partition("::")[0], reason.removeprefix("Skipped: ")] += 1
    if found:
        terminalreporter.section("skipped")
    for (file, reason), count in sorted(found.items()):
        terminalreporter.write_line(f"{count:4} in {file}: {reason}")
