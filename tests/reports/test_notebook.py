"""A notebook shows verdict and figures by themselves; the committed tour runs as it stands."""

import json
import os
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser

import nbformat
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter

from dar_probe.analysis import Analysis
from dar_probe.files.text import quantity, sparkline
from dar_probe.reports.pages import headline, notebook
from dar_probe.reports.pages.wording import STATUS_WORDS
from dar_probe.results import metrics, schema, verdict
from tests.helpers.shell import ROOT
from tests.helpers.synthetic import dataset

TOUR = ROOT / "reports" / "gallery" / "tour.ipynb"
RUN = """
import sys
import nbformat
from nbclient import NotebookClient
source, folder, target = sys.argv[1:]
book = nbformat.read(source, as_version=4)
for cell in book.cells:
    if cell.cell_type == "code":
        cell.outputs = []
where = {"metadata": {"path": folder}}
NotebookClient(
    book, timeout=120, iopub_timeout=60, coalesce_streams=True, resources=where
).execute()
nbformat.write(book, target)
"""
HOSTILE = {
    "script": "</script><script>alert(1)</script>",
    "attribute": "\"'><img src=x onerror=alert(1)>",
    "math": r"$\frac{a}{b}$ \(x\)",
    "template": "{{ 7 * 7 }}{% raw %}",
    "newline": "line\nfeed\u2028end",
    "long": "x" * 300,
    "right-to-left": "\u202egnp.exe \u05e9\u05dc\u05d5\u05dd",
    "surrogate": "bad\udcff.pt",
}


class Parsed(HTMLParser):
    """Tags, attributes and texts; every tag that opens must close."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open[-1:] == [tag]:
            self.open.pop()
        else:
            assert tag in ("polyline", "circle")

    def handle_data(self, data):
        self.texts.append(data)


def renamed(name):
    ds = dataset(blocks=3, samples=2, levels=2)
    manifest = json.loads(ds.attrs["manifest"])
    manifest["model"] |= {"name": name, "routing": name}
    manifest["data"]["name"] = name
    manifest["warnings"] = [f"look at {name}"]
    return Analysis(ds.assign_attrs(manifest=json.dumps(manifest)))


@pytest.fixture(scope="module")
def analysis():
    return Analysis(dataset(blocks=6, samples=4, levels=2))


def test_html_tells_what_the_analysis_says(analysis):
    page = Parsed(analysis._repr_html_())
    text = "".join(page.texts)
    assert analysis.verdict.sentence in text and analysis.name in text
    for symptom in headline.symptoms(analysis.dataset, analysis.metrics, analysis.verdict):
        for shown in (symptom.label, symptom.value, symptom.interval):
            assert shown in page.texts
    named = [text for text in page.texts if text in STATUS_WORDS.values()]
    symptoms = analysis.verdict.findings[:3]
    assert named == [STATUS_WORDS[f.status] for f in (analysis.verdict, *symptoms)]
    assert [tag for tag, _ in page.tags].count("svg") == 3


def test_a_dataset_folds_its_attributes(analysis):
    """The JSON of the manifest is a screen long; the facts in it are attributes of their own."""
    ds = analysis.dataset
    section = ds._repr_html_().split("Attributes: ")[0].rsplit("<input", 1)[1]
    assert "checked" not in section.split(">")[0]
    assert ds.attrs["title"] == f"dar-probe analysis of {analysis.name}"
    assert ds.attrs["torch"] == analysis.manifest["versions"]["torch"]
    assert list(ds.attrs)[-1] == "manifest"
    assert all("\n" not in value for value in map(str, ds.attrs.values()))
    again = schema.with_facts(ds.assign_attrs(title="other"))
    assert again.identical(ds), "what the manifest says is told"


def test_text_has_verdict_curves_and_what_finds_out_more(analysis):
    lines = repr(analysis).splitlines()
    assert lines[1] == analysis.verdict.sentence
    for line, symptom in zip(lines[2:], headline.symptoms(
        analysis.dataset, analysis.metrics, analysis.verdict
    ), strict=False):  # fmt: skip
        assert symptom.label in line and sparkline(symptom.curve) in line
        assert line.endswith(STATUS_WORDS[symptom.status])
    advised = [finding for finding in analysis.verdict.findings if finding.advice]
    assert [line.split(": ", 1)[1] for line in lines[5:]] == [
        finding.advice.commands[0] for finding in advised
    ]
    assert advised


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_names_stay_text(kind):
    found = renamed(HOSTILE[kind])
    html = found._repr_html_()
    page = Parsed(html)
    known = {"div", "b", "bdi", "span", "table", "thead", "tbody", "tr", "th", "td", "details",
             "summary", "code", "svg", "title", "polyline", "circle"}  # fmt: skip
    assert {tag for tag, _ in page.tags} <= known
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith(("on", "src"))]
    assert not [text for text in page.texts if "$" in text and text != "$"]  # no pair for MathJax
    assert "mathjax_ignore" in page.tags[0][1]["class"]
    html.encode("utf-8")
    assert "\u202e" not in html and "x" * 200 not in html
    advised = [finding for finding in found.verdict.findings if finding.advice]
    assert len(repr(found).splitlines()) == 5 + len(advised)
    assert all(c.isprintable() or c == "\n" for c in repr(found))


def test_a_name_is_there_as_it_is():
    text = "".join(Parsed(renamed("a<b>&{{ 7 * 7 }}$x$.pt")._repr_html_()).texts)
    assert "a<b>&{{ 7 * 7 }}$x$.pt" in text


def test_white_on_every_badge_is_readable(analysis):
    def linear(part):
        return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4

    pages = [analysis, Analysis(dataset(blocks=6, samples=4, inflation=1, decay=1, cosine=0.5))]
    colours = set(re.findall(r"background:(#\w{6})", "".join(a._repr_html_() for a in pages)))
    assert len(colours) == 3  # pass, warn and fail
    for colour in colours:
        parts = [linear(int(colour[at : at + 2], 16) / 255) for at in (1, 3, 5)]
        assert 1.05 / (np.dot(parts, [0.2126, 0.7152, 0.0722]) + 0.05) >= 4.5


def test_before_training_has_a_column(analysis):
    after = Analysis(
        dataset(blocks=6, samples=4, levels=2, inflation=1.0), before=Analysis(analysis.dataset)
    )
    texts = Parsed(after._repr_html_()).texts
    assert "before training" in texts
    assert quantity(analysis.metrics["inflation"].value, "x") in texts


def test_one_sample_and_nothing_measured():
    ds = dataset(blocks=3, samples=1, levels=1)
    found = Analysis(ds)
    assert "one sample" in Parsed(found._repr_html_()).texts
    assert "1 noise level x 1 sample, 3 blocks" in repr(found)
    ds["cosine"][:] = np.nan  # states of different shapes
    page = Parsed(Analysis(ds)._repr_html_())
    assert page.texts.count("n/a") == 3 and page.texts.count("not measurable") == 4
    assert [tag for tag, _ in page.tags].count("svg") == 2


def test_a_sparkline_keeps_to_the_numbers():
    nan = float("nan")
    symptom = headline.PrintedSymptom(
        "<label>", "", "", "pass", [nan, 1.0, 3.0, nan, nan, 2.0, 2.5]
    )
    page = Parsed(str(notebook.sparkline(symptom)))
    lines = [attrs["points"] for tag, attrs in page.tags if tag == "polyline"]
    points = [[tuple(map(float, p.split(","))) for p in line.split()] for line in lines]
    assert [len(run) for run in points] == [2, 2]  # a gap between them
    x, y = zip(*sum(points, []), strict=True)
    steps = np.diff(x) / np.diff([1, 2, 5, 6])
    np.testing.assert_allclose(steps, steps[0], atol=0.1)
    assert np.argsort(y).tolist() == [1, 3, 2, 0]  # higher values are further up
    assert 0 <= min(y) and max(y) <= notebook.HIGH and max(x) <= notebook.WIDE
    assert "<label>: 1.00 at block 2, 2.50 at block 7, between 1.00 and 3.00" in page.texts
    assert notebook.sparkline(symptom._replace(curve=[nan])) == ""
    page = Parsed(str(notebook.sparkline(symptom._replace(curve=[1.0, 1 + 1e-7, 1 - 1e-7]))))
    (line,) = (attrs["points"] for tag, attrs in page.tags if tag == "polyline")
    assert len({p.split(",")[1] for p in line.split()}) == 1, "rounding is no rise"


def test_numbers_have_short_reprs(analysis):
    metric = metrics.Metric(name="inflation", value=1.23456, low=1.1, high=1.4, definition="")
    assert repr(metric) == "<inflation 1.235 [1.1, 1.4]>"
    lines = repr(analysis.verdict).splitlines()
    assert len(lines) == 1 + len(analysis.verdict.findings)
    assert analysis.verdict.sentence in lines[0]
    assert repr(verdict.judge(analysis.dataset, analysis.metrics)) == repr(analysis.verdict)


def test_a_figure_shows_itself(analysis):
    figure = analysis.plot.heatmap("rms")
    data, about = DisplayFormatter().format(figure)
    png = data["image/png"]
    width, height = struct.unpack(">II", png[16:24])
    shown = about["image/png"]
    assert png[:4] == b"\x89PNG" and "text/plain" in data
    assert width / shown["width"] == pytest.approx(1.5, rel=0.02)
    assert height / shown["height"] == pytest.approx(1.5, rel=0.02)


@pytest.fixture(scope="module")
def tour():
    return nbformat.read(TOUR, as_version=4)


def outputs(book):
    """The outputs of every cell, and their kinds."""
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    kinds = [[(o.output_type, *sorted(o.get("data", ()))) for o in c.outputs] for c in cells]
    return kinds, [output for cell in cells for output in cell.outputs]


def test_the_committed_tour_was_run_and_is_clean(tour):
    nbformat.validate(tour)
    code = [cell for cell in tour.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    _, found = outputs(tour)
    assert sum("image/png" in output.get("data", {}) for output in found) >= 4
    assert not [o for o in found if o.output_type == "error" or o.get("name") == "stderr"]
    texts = json.dumps([cell.source for cell in tour.cells]) + json.dumps(
        [{k: v for k, v in output.items() if k != "data"} for output in found]
        + [v for output in found for k, v in output.get("data", {}).items() if k != "image/png"]
    )
    assert not re.search(r"/(home|root|work|tmp|usr|Users|site-packages)/", texts)
    assert TOUR.stat().st_size < 600_000


def test_the_tour_runs(tour, tmp_path):
    spec = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "this Python", "language": "python"}  # fmt: skip
    kernel = tmp_path / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps(spec))
    # The command line sets a backend, and other tests run it in this process.
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    environment["JUPYTER_PATH"] = str(tmp_path)
    # A process of its own: the machinery leaves sockets open, which is an error in here.
    done = subprocess.run(
        [sys.executable, "-c", RUN, TOUR, TOUR.parent, tmp_path / "run.ipynb"],
        capture_output=True, text=True, check=False,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kinds, found = outputs(nbformat.read(tmp_path / "run.ipynb", as_version=4))
    assert not [o for o in found if o.output_type == "error" or o.get("name") == "stderr"]
    assert kinds == outputs(tour)[0]  # what is committed is what comes out
