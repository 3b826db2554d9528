"""The page about a run: all of it is there, nothing of it is asked for from elsewhere, and a browser shows it."""

import base64
import html.parser
import http.server
import json
import re
import shutil
import subprocess
import threading

import numpy as np
import pytest

from bptt_array import cli
from bptt_array.diagnostics import Diagnosis
from bptt_array.runs import checkpoints, report
from bptt_array.runs import folder as runs
from bptt_array.training.checkpoint import json_line
from bptt_array.training.options import Options

#: What would do harm if a page took it for more than text.
HOSTILE = "</pre><script>document.title='owned'</script><img src='http://127.0.0.1:{port}/leak.png'>&amp;\x00\x1b[2J"
TEXT = "the quick brown fox <b>jumps</b> over & under the lazy dog; größer!\n" * 30
SMALL = ["--hidden", "16", "--seq-len", "8", "--batch", "4", "--steps", "40"]

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that was resumed once and looked at its gradients four times."""
    here = tmp_path_factory.mktemp("report")
    (here / "text.txt").write_text(TEXT, encoding="utf-8")
    run = here / "a <run>"
    command = ["train", str(here / "text.txt"), *SMALL, "--diagnose-every", "10", "--out", str(run)]
    assert cli.main(command) == 0
    assert cli.main(["train", "--resume", str(run)]) == 0
    return run


class Page(html.parser.HTMLParser):
    """Text, by the tag it is in, and the attributes of tags."""

    def __init__(self, text):
        super().__init__()
        self.inside, self.texts, self.tags = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.inside.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag  # every one is closed

    def handle_data(self, data):
        if self.inside:
            self.texts[self.inside[-1]][-1] += data


def test_the_page_holds_curves_gradients_samples_configuration_and_environment(folder):
    page = Page(report.page(folder))
    assert page.texts["h1"] == page.texts["title"] == ["a <run>: tanh, 16 units, learning text.txt"]
    assert page.texts["h2"] == [
        "Loss",
        "How the gradient flows through time",
        "Samples as training went",
        "Configuration",
        "Environment",
    ]
    metrics = runs.read_metrics(folder)
    written = [m for m in metrics if m.sample is not None]
    assert page.texts["pre"] == [m.sample for m in written]
    assert len(written) == 10
    assert f"validation loss {metrics[-1].validation:.4f} nats per character" in page.texts["p"][0]
    assert "40 of 40 updates, 1,280 characters read" in page.texts["p"][0]
    cells = page.texts["td"]
    for name, value in {"hidden": "16", "seq len": "8", "on divergence": "stop", "numpy": np.__version__}.items():
        assert cells[cells.index(name) + 1] == value
    assert cells[cells.index("started") + 2] >= cells[cells.index("started") + 1]  # it was resumed
    assert cells[cells.index("text") + 1].endswith("text.txt")


def tables(folder):
    """Of the section about the configuration: rows of cells, and which cells are to the right."""
    section = report.page(folder).partition("<h2>Configuration</h2>")[2].partition("<h2>")[0]
    found = []
    for table in section.split("<table>")[1:]:
        rows = [re.findall(r"<td( class=number)?>(.*?)</td>", row) for row in table.split("<tr>")[1:]]
        found.append([(name, value, bool(right)) for (_, name), (right, value) in rows])
    return found


def test_the_configuration_says_what_is_done_where_an_option_was_left_out(folder, tmp_path):
    files, options = tables(folder)
    assert [name for name, _, _ in files] == ["text"]
    made = Options()
    may_be_none = {name for name, value in vars(made).items() if value is None}
    assert {name.replace("_", " ") for name in vars(made)} == {name for name, _, _ in options}
    assert may_be_none == {*report._INSTEAD, "lr", "eval_every", "checkpoint_every"}  # those have a value in the end
    values = {name: value for name, value, _ in options}
    assert {"lr", "eval every", "members", "diagnose every", "bidirectional"} < set(values)
    assert "" not in values.values()
    assert "None" not in values.values()
    assert (values["lr"], values["eval every"], values["members"]) == ("0.003", "4", "no ensemble")
    assert (values["diagnose every"], values["bidirectional"]) == ("10", "no")
    # Numbers are to the right and words to the left of a column that no long name makes wide.
    assert all(right == value.replace(".", "").isdigit() for _, value, right in options)
    assert max(map(len, values.values())) <= 12
    run, source = tmp_path / "run", str(folder.parent / "text.txt")
    assert cli.main(["train", source, *SMALL[2:], "--init-from", str(folder), "--out", str(run)]) == 0
    assert [name for name, _, _ in tables(run)[0]] == ["text", "weights to begin with"]
    assert {name: value for name, value, _ in tables(run)[1]}["diagnose every"] == "never"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--cell lstm --layers 2", "lstm, 16 units in each of 2 layers, learning text.txt, more.txt"),
        ("--cell gru --members 3", "gru, 16 units, 3 members, learning text.txt, more.txt"),
    ],
)
def test_the_title_says_what_learns_what(options, words, folder, tmp_path):
    source, run = folder.parent / "text.txt", tmp_path / "20260101-000000"
    shutil.copy(source, source.with_name("more.txt"))
    command = ["train", str(source), str(source.with_name("more.txt")), *SMALL, *options.split(), "--out", str(run)]
    assert cli.main(command) == 0
    page = Page(report.page(run))
    assert page.texts["title"] == page.texts["h1"] == [f"20260101-000000: {words}"]


def test_the_page_asks_for_nothing(folder):
    page = Page(report.page(folder))
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base", "form", "a"} == set()
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 4
    for picture in pictures:
        assert picture["alt"]
        svg = base64.b64decode(picture["src"].removeprefix("data:image/svg+xml;base64,")).decode()
        assert "<svg" in svg
        assert set(re.findall(r'href="([^"#][^"]{0,20})', svg)) <= {"data:image/png;base64"}
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not re.search(r"@import|url\(", report.page(folder))


def with_sample(folder, copy, sample):
    """A copy of a run that wrote something else."""
    shutil.copytree(folder, copy)
    lines = [json.loads(line) for line in (copy / runs.METRICS).read_text().splitlines()]
    lines[-1]["sample"] = sample
    (copy / runs.METRICS).write_bytes(b"".join(map(json_line, lines)))
    return copy


def test_what_a_network_writes_is_text_and_never_markup(folder, tmp_path):
    sample = HOSTILE.format(port=1)
    page = Page(report.page(with_sample(folder, tmp_path / "run", sample)))
    assert page.texts["pre"][-1] == sample.replace("\x00", "␀").replace("\x1b", "␛")
    assert "script" not in {tag for tag, _ in page.tags}


class Server:
    """A server on this machine that notes what it is asked for."""

    def __enter__(self):
        asked = self.asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                self.send_error(404)

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()


def browse(page, tmp_path, *more):
    """Open a page in a browser that may not talk to anybody but this machine."""
    options = [
        "--headless",
        "--no-sandbox",  # root has none
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        "--window-size=1000,4000",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    done = subprocess.run([BROWSER, *options, *more, page.as_uri()], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.decode()


@needs_browser
def test_a_browser_shows_the_page_and_asks_nobody_for_anything(folder, tmp_path):
    from matplotlib.image import imread

    with Server() as server:
        run = with_sample(folder, tmp_path / "run", HOSTILE.format(port=server.port))
        page = report.write_report(run)
        shot = tmp_path / "page.png"
        browse(page, tmp_path, f"--screenshot={shot}")
        dom = Page(browse(page, tmp_path, "--dump-dom"))
        assert server.asked == []
        # The same browser does ask where a page lets it, so there was something to be seen.
        loose = tmp_path / "loose.html"
        loose.write_text(f"<img src='http://127.0.0.1:{server.port}/leak.png'>")
        browse(loose, tmp_path, "--dump-dom")
        assert server.asked == ["/leak.png"]
    assert dom.texts["title"] == ["run: tanh, 16 units, learning text.txt"]
    assert "document.title='owned'" in dom.texts["pre"][-1]
    pixels = np.rint(imread(shot)[..., :3] * 255).astype(int)
    assert pixels.shape == (4000, 1000, 3)

    def seen(red, green, blue):
        return int((np.abs(pixels - (red, green, blue)).max(axis=-1) <= 2).sum())

    assert seen(31, 119, 180) > 200  # the training curve
    assert seen(255, 127, 14) > 200  # the validation curve
    assert seen(68, 1, 84) + seen(253, 231, 37) > 100  # both ends of the heat map
    assert seen(245, 245, 245) > 10_000  # behind the samples


def test_a_run_that_did_not_look_at_its_gradients_says_how_to(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / runs.DIAGNOSES)
    page = Page(report.page(tmp_path / "run"))
    assert "Not looked at: train with --diagnose-every STEPS." in page.texts["p"]


def test_a_run_without_a_checkpoint_that_can_be_read_still_has_a_page(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    for path in checkpoints.checkpoints(tmp_path / "run"):
        path.write_bytes(b"")
    page = Page(report.page(tmp_path / "run"))
    assert "Configuration" not in page.texts["h2"]
    assert page.texts["title"] == ["run: a training run"]
    assert any("has no checkpoint that can be read" in text for text in page.texts["p"])


def test_the_page_tells_where_training_diverged(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    last = checkpoints.read_checkpoint(checkpoints.checkpoints(tmp_path / "run")[-1])
    event = {"step": 13, "why": "the loss is nan & void", "back_to": 8, "lr": 0.5}
    changed = checkpoints.Checkpoint(**vars(last) | {"events": [event]})
    checkpoints.write_checkpoint(tmp_path / "run", changed)
    page = Page(report.page(tmp_path / "run"))
    assert "the loss is nan & void; went back to update 8 and on with a learning rate of 0.5" in page.texts["td"]


def test_diagnoses_are_those_of_the_steps_and_the_same_when_the_run_is_repeated(folder, tmp_path):
    found = runs.read_diagnoses(folder)
    assert list(found) == [10, 20, 30, 40]
    assert all(isinstance(diagnosis, Diagnosis) for diagnosis in found.values())
    assert found[10].flow.total.shape == (1, 1, 8, 4)
    source = str(folder.parent / "text.txt")
    again = tmp_path / "again"
    assert cli.main(["train", source, *SMALL, "--diagnose-every", "20", "--out", str(again)]) == 0
    for step, diagnosis in runs.read_diagnoses(again).items():
        for name, value in diagnosis.arrays().items():
            np.testing.assert_array_equal(value, found[step].arrays()[name])
    # Looking does not change what is learnt.
    assert (again / runs.METRICS).read_bytes() == (folder / runs.METRICS).read_bytes()


@pytest.mark.parametrize("kind", ["--cell lstm --layers 2 --members 2", "--cell gru", "--cell relu --init identity"])
def test_every_kind_of_network_has_a_page(kind, folder, tmp_path):
    run, source = tmp_path / "run", str(folder.parent / "text.txt")
    assert cli.main(["train", source, *SMALL, *kind.split(), "--diagnose-every", "20", "--out", str(run)]) == 0
    page = Page(report.page(run))
    assert sum(tag == "img" for tag, _ in page.tags) == 4


def test_the_command_writes_the_page_and_says_what_is_wrong(folder, tmp_path, capsys, monkeypatch):
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"wrote {folder / 'report.html'}\n"
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == report.page(folder)
    capsys.readouterr()
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "is no run folder: it has no metrics.jsonl" in capsys.readouterr().err
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "none" / "page.html")]) == 2
    assert "the folder does not exist" in capsys.readouterr().err
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / runs.DIAGNOSES / "step-00000010.safetensors").write_bytes(b"no")
    assert cli.main(["report", str(tmp_path / "run")]) == 2
    assert "is damaged or no safetensors file" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["report", str(folder)]) == 2
    assert "report needs matplotlib: pip install matplotlib" in capsys.readouterr().err
