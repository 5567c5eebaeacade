"""The report: one offline file in which nothing runs but our own two scripts."""

import base64
import gzip
import hashlib
import json
import re
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from dar_probe.errors import CheckpointError
from dar_probe.files.text import decimal
from dar_probe.reports.figures import study_curves
from dar_probe.reports.pages import analysis, comparison, document, study
from dar_probe.results import importance, metrics, paired, schema, trajectory
from dar_probe.results.fail_rule import apply_rule, parse_rule
from dar_probe.results.study import aggregate, summary
from dar_probe.results.symptoms import SYMPTOMS
from dar_probe.results.verdict import Thresholds, judge
from tests.helpers import chromium
from tests.helpers.studies import everything
from tests.helpers.synthetic import dataset, trained
from tests.results.test_interventions import dataset as ablated

HOSTILE = "</script><img src=x onerror=alert(1)>\n\udcff \u202e{{ 7 * 7 }}" + "x" * 300 + ".pt"
VOID = {"meta", "br", "img", "link", "input", "hr"}
EVERY_FIGURE = 5 + len(schema.MAPS)


class Parsed(HTMLParser):
    """What a browser would make of the page: every tag, script and style, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            attrs, text = self.scripts[-1]
            self.scripts[-1] = attrs, text + data
        elif not self.open or self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def with_manifest(ds, **changes):
    ds = ds.copy()
    ds.attrs["manifest"] = json.dumps({**schema.manifest(ds), **changes})
    return ds


def render(ds) -> str:
    found = metrics.compute(ds)
    return analysis.render(ds, found, judge(ds, found))


@pytest.fixture(scope="module")
def plain():
    return dataset(blocks=6, samples=4, levels=3, name="step-0400000.pt")


@pytest.fixture(scope="module")
def plain_page(plain):
    return render(plain)


@pytest.fixture(scope="module")
def hostile():
    ds = dataset(blocks=4, samples=3, levels=3, routing="dar", chunk_size=4, name=HOSTILE)
    ds["reader_name"] = ("reader", np.array([f"{HOSTILE}{at}" for at in range(9)], dtype=object))
    ds["source_name"] = ("source", np.array([HOSTILE] * 9, dtype=object))
    whole = schema.manifest(ds)
    model = {**whole["model"], "name": HOSTILE, "routing": HOSTILE}
    return with_manifest(
        ds,
        model=model,
        data={"name": HOSTILE, "description": HOSTILE},
        versions={HOSTILE: HOSTILE},
        config={HOSTILE: [HOSTILE]},
        assumptions=[HOSTILE],
        warnings=[HOSTILE],
        device=HOSTILE,
        created=HOSTILE,
    )


@pytest.fixture(scope="module")
def hostile_page(hostile):
    return render(hostile)


@pytest.fixture(params=["plain_page", "hostile_page"])
def parsed(request):
    return Parsed(request.getfixturevalue(request.param))


def test_nothing_is_loaded_from_anywhere(parsed):
    assert not parsed.open
    for tag, attrs in parsed.tags:
        assert tag not in {"link", "iframe", "img", "object", "embed", "base", "form"}
        assert "src" not in attrs
        assert not [name for name in attrs if name.startswith("on")]
        if "href" in attrs:
            assert tag == "a"
            assert attrs["href"] == "https://arxiv.org/abs/2605.20708" or attrs["href"][0] == "#"
    assert "url(" not in document.template("style.css")
    assert "@import" not in document.template("style.css")


def test_only_our_scripts_and_the_policy_names_them(parsed):
    code = [text for attrs, text in parsed.scripts if "type" not in attrs]
    assert code == [document.page_script()]
    (packed,) = [text for attrs, text in parsed.scripts if attrs.get("id") == "plotly"]
    code.append(gzip.decompress(base64.b64decode(packed)).decode("utf-8"))
    assert code[1] == get_plotlyjs()
    kinds = {attrs["type"] for attrs, _ in parsed.scripts if "type" in attrs}
    assert kinds == {"application/json", "application/gzip"}
    for name in document.SCRIPTS:
        assert document.template(name) in code[0]
    policy = next(a["content"] for _, a in parsed.tags if "http-equiv" in a)
    for text in code:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    script_part = policy.split("script-src")[1].split(";")[0]
    assert "unsafe" not in script_part
    assert "http" not in policy


def test_every_figure_has_its_place_and_its_json(parsed):
    plots = [attrs for _, attrs in parsed.tags if attrs.get("class") == "plot"]
    places = [attrs["id"] for attrs in plots]
    data = {a["data-figure"]: json.loads(text) for a, text in parsed.scripts if "data-figure" in a}
    assert places == list(data) == [f"fig-{at:02d}" for at in range(1, len(places) + 1)]
    assert len(places) in (EVERY_FIGURE - 1, EVERY_FIGURE)  # a plain model has no entropy
    for attrs in plots:
        assert attrs["role"] == "img"
        assert re.search(r"\d", attrs["aria-label"])
    for spec in data.values():
        assert spec["data"]
        assert {"wide", "narrow", "room"} <= set(spec["layout"]["meta"])
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)


def test_every_number_has_a_definition_beside_it(parsed):
    opened = [attrs["popovertarget"] for _, attrs in parsed.tags if "popovertarget" in attrs]
    there = {attrs["id"] for _, attrs in parsed.tags if "popover" in attrs}
    assert set(opened) <= there
    assert {f"define-metric-{name.replace('_', '-')}" for name in SYMPTOMS} <= set(opened)
    heads = [at for at, (tag, a) in enumerate(parsed.tags) if tag == "th" and "data-kind" in a]
    assert len(heads) > 10
    for at in heads:
        nearby = parsed.tags[at + 1 : at + 4]
        in_figures = "data-short" in parsed.tags[at][1] or ("button", "define") in [
            (tag, attrs.get("class")) for tag, attrs in nearby
        ]
        assert in_figures or parsed.tags[at][1]["data-name"] == "value"  # each row has its own


def test_hostile_names_are_text_and_nothing_else(hostile_page):
    assert "<img" not in hostile_page
    assert "\u202e" not in hostile_page
    parsed = Parsed(hostile_page)
    assert "</script><img src=x onerror=alert(1)> \ufffd {{ 7 * 7 }}xxx" in parsed.words
    hostile_page.encode("utf-8")


def test_the_page_is_small_equal_and_has_plotly_once(plain, plain_page, hostile_page):
    assert len(hostile_page.encode()) < 4e6
    assert plain_page.count('<script type="application/gzip" id="plotly">') == 1
    assert "Copyright 2012" not in plain_page, "plotly.js is there packed alone"
    assert render(plain) == plain_page


def test_the_largest_model_stays_below_the_limit():
    ds = dataset(blocks=28, samples=6, levels=20, routing="dar")  # enough samples for dots
    assert len(render(ds).encode()) < 8e6


def test_first_screen_says_name_verdict_and_symptoms(plain, plain_page):
    words = Parsed(plain_page).words
    found = metrics.compute(plain)
    verdict = judge(plain, found)
    order = [
        "step-0400000.pt",
        verdict.sentence,
        "Forward magnitude inflation",
        "Backward gradient decay",
        "Block-wise redundancy",
        "What was assumed",
        schema.manifest(plain)["assumptions"][0],
        "Figures",
    ]
    at = [words.index("dar-probe report")]
    for part in order:  # each after the one before
        at.append(words.index(part, at[-1]))
    card = words[at[5] : at[6]]
    redundancy = found["redundancy"]
    assert card.startswith(f"Block-wise redundancy {redundancy.value:.3f}")
    assert f"95 % interval {redundancy.low:.3f} to {redundancy.high:.3f}" in card
    assert "warning above 0.9, failure above 0.96" in card
    assert "Read this first" not in words
    for finding in verdict.findings:
        assert finding.sentence in words
    for name, spec in schema.VARIABLES.items():
        assert f"{name} {spec.long_name}" in words
        assert spec.definition in words
    for value in ("0" * 64, "torch 2.13.0", "2026-01-01", "eprint = {2605.20708}"):
        assert value in words


def test_the_tables_hold_every_number_in_full(plain, plain_page):
    rows = re.findall(r'<tr data-block="(\d+)">(.*?)</tr>', plain_page, flags=re.DOTALL)
    of_blocks, of_readers = rows[: plain.sizes["block"]], rows[plain.sizes["block"] :]
    assert [int(block) for block, _ in of_blocks] == plain["block"].values.tolist()
    assert [int(block) for block, _ in of_readers] == plain["reader_block"].values.tolist()
    for name in ("rms", "cosine"):
        for number in metrics.profile(plain, name)["value"].values[1:]:
            assert sum(f'data-value="{float(number)!r}"' in row for _, row in of_blocks) == 1
    shares = importance.importance(plain)
    for level in (0, -1):
        largest = shares[level, 5].argmax("source")
        name, share = plain["source_name"].values[largest], float(shares[level, 5, largest])
        assert f"{name} ({decimal(share, 2)})" in of_readers[5][1]


def test_a_training_run_has_its_own_figures():
    joined = trained(steps=3, blocks=4, samples=3, levels=2)
    pairs = trajectory.split(joined)
    last = pairs[-1][1]
    found = metrics.compute(last)
    text = analysis.render(last, found, judge(last, found), trajectory=joined)
    heads = headings(text)
    at = heads.index("Over training")
    assert heads[at + 1] == "Symptoms over training"
    assert at < heads.index("Figures") < heads.index("Depth")  # what was asked for comes first
    specs = [json.loads(code) for a, code in Parsed(text).scripts if "data-figure" in a]
    over = next(s for s in specs if s["layout"]["xaxis"]["title"]["text"] == "training step")
    lines = [trace for trace in over["data"] if trace.get("mode") == "lines+markers"]
    for line, name in zip(lines, SYMPTOMS, strict=True):
        y = np.frombuffer(base64.b64decode(line["y"]["bdata"]), dtype=line["y"]["dtype"])
        np.testing.assert_allclose(y, [metrics.compute(ds)[name].value for _, ds in pairs])
    limits = [trace["y"] for trace in over["data"] if "limit" in trace.get("name", "")]
    assert limits == [[3.0] * 2, [10.0] * 2] * 2 + [[0.9] * 2, [0.96] * 2]
    for title in ("Hidden-state RMS", "Gradient RMS", "Cosine to the block before"):
        assert f"{title} over training" in heads
    assert "Over training" not in Parsed(render(last)).words


def test_many_assumptions_are_folded_but_there(plain):
    many = [f"assumption number {at}" for at in range(9)]
    text = render(with_manifest(plain, assumptions=many))
    assert "and 6 more" in Parsed(text).words
    assert all(text.count(f">{one}<") == 1 for one in many)


def test_warnings_come_before_the_verdict(plain):
    ds = with_manifest(plain, warnings=["the clock runs the other way"])
    words = Parsed(render(ds)).words
    verdict = judge(ds, metrics.compute(ds))
    assert words.index("Read this first the clock runs the other way") < words.index(
        verdict.sentence
    )


def test_cards_show_the_thresholds_that_were_used(plain):
    found = metrics.compute(plain)
    limits = Thresholds(inflation_warn=20.0, inflation_fail=40.0)
    text = analysis.render(plain, found, judge(plain, found, limits), thresholds=limits)
    assert "warning above 20x, failure above 40x" in Parsed(text).words
    ruled = apply_rule(judge(plain, found), parse_rule("inflation > 2"), found)
    assert "fail Meets the rule" in Parsed(analysis.render(plain, found, ruled)).words


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({"samples": 1}, "no interval: one sample"),
        ({"blocks": 1}, "n/a not measurable"),
        ({"levels": 1}, "1 noise level"),
        ({"blocks": 2, "samples": 1, "levels": 1, "routing": "dar"}, "1 sample "),
    ],
)
def test_smallest_datasets_have_a_page(shape, expected):
    words = Parsed(render(dataset(**{"blocks": 3, "samples": 2, "levels": 2, **shape}))).words
    assert expected in words
    assert "nan" not in words.replace("NaN", "").lower().split()


def test_untrained_and_unmeasured_models_have_a_page(plain):
    ds = plain.copy(deep=True)
    for name in ("gate", "write_ratio", "grad_rms"):
        ds[name][:] = 0
    words = Parsed(render(ds)).words
    assert "untrained Untrained:" in words
    assert "Every reader and every source" not in words
    for name in schema.VARIABLES:
        ds[name][:] = np.nan
    assert "not measurable PreNorm dilution cannot be judged" in Parsed(render(ds)).words


def test_captions_say_what_dots_mean_and_where_nothing_was_decoded():
    few, many = (Parsed(render(dataset(blocks=3, samples=n, levels=2))).words for n in (5, 6))
    assert "A dot marks the few cells whose gate has a consistent sign" in many
    assert "A dot marks the few" not in few
    assert "fewer than six samples" in few
    title = "Where the noise level can be read"
    assert title in many
    assert title not in Parsed(render(dataset(blocks=3, samples=2, levels=1))).words


def headings(text: str) -> list[str]:
    """Return the titles of a page in order."""
    found = re.findall(r"<h[123][^>]*>(.*?)</h[123]>", text, flags=re.DOTALL)
    return [" ".join(re.sub(r"<.*?>", "", title).split()) for title in found]


def defined(text: str, title: str) -> list[str]:
    """Return what is offered as defined below the figure of this title."""
    place = text.index(f"<h3>{title}</h3>")
    words = text[place : text.index("</figcaption>", place)].split("Defined: ")[1]
    return re.findall(r">([^<>]+)</button>", words)


def test_the_contents_lead_to_every_part_and_no_title_is_used_twice(parsed, request):
    links = [attrs["href"][1:] for tag, attrs in parsed.tags if attrs.get("href", "")[:1] == "#"]
    ids = {attrs["id"] for _, attrs in parsed.tags if "id" in attrs}
    assert len(links) > 9
    assert len(set(links)) == len(links)
    assert set(links) <= ids
    folds = {a["id"] for tag, a in parsed.tags if tag == "details" and a.get("class") == "fold"}
    assert len(folds) == 2
    assert folds < set(links)
    page = request.getfixturevalue(request.node.callspec.params["parsed"])
    titles = headings(page)
    assert len(set(titles)) == len(titles)
    assert "Depth" in titles
    figures = [attrs for tag, attrs in parsed.tags if tag == "figure"]
    assert len(figures) == len(re.findall(r"<figcaption><h3>", page))


def test_interventions_come_first_on_a_page_that_has_them():
    titles = headings(render(ablated()))
    assert titles.index("Figures") + 1 == titles.index("What interventions did")
    assert titles.index("What interventions did") < titles.index("Depth")


def test_below_a_figure_stands_only_what_it_shows(plain_page):
    sources = defined(plain_page, "Sources over noise levels")
    assert sources == ["Importance"]  # four samples: no dots; no router: no routes
    many = render(dataset(blocks=6, samples=12, levels=3, routing="dar"))
    maps = defined(many, "Every reader and every source")
    assert maps == ["Importance", "Route", "Consistent sign"]
    assert len(defined(many, "Where the noise level can be read")) == 1
    assert "Spread over samples" in defined(many, "Depth")
    one = render(dataset(blocks=3, samples=1, levels=2))
    assert len(defined(one, "Depth")) == 3


def test_a_comparison_defines_differences_only_where_they_are_drawn():
    pairs = [
        (name, dataset(blocks=4, samples=4, levels=2, inflation=growth))
        for name, growth in (("a", 2.0), ("b", 4.0))
    ]
    text = comparison.render(pairs, paired.compare(pairs))
    assert "Paired difference" in defined(text, "Differences over depth")
    assert "Paired difference" not in defined(text, "All models over depth")
    assert "Spread over samples" in defined(text, "All models over depth")
    assert "Spread over samples" not in defined(text, "Differences over depth")
    titles = headings(text)
    assert len(set(titles)) == len(titles)


def test_a_study_is_short_and_defines_what_each_figure_shows():
    found = aggregate.Results(everything())
    text = study.render(found, study_curves.drawings(found))
    short = text[text.index('id="short"') : text.index('id="claims"')]
    seen, _, folded = short.partition("<details>")
    assert 0 < seen.count("<li>") <= 5
    assert seen.count("<li>") + folded.count("<li>") == len(summary.sentences(found))
    titles = headings(text)
    assert len(set(titles)) == len(titles)
    assert defined(text, "Validation loss") == [
        "Validation loss",
        "Paired over seeds",
        "Price of a step",
    ]
    assert len(defined(text, "The symptoms over depth")) == 3
    assert "Price of a step" in defined(text, "Every scheme at the end of training")
    assert "Paired over seeds" not in defined(text, "Chunk size S")


def test_a_bare_manifest_is_enough(plain):
    ds = plain.copy()
    ds.attrs["manifest"] = json.dumps({"checkpoint": None, "model": {"name": "mine"}})
    words = Parsed(render(ds)).words
    assert "dar-probe report mine" in words
    assert "routing: unknown" in words
    assert "None" not in words
    ds.attrs["manifest"] = "[]"
    with pytest.raises(CheckpointError):
        analysis.render(ds, metrics.compute(ds), judge(plain, metrics.compute(plain)))


def test_the_template_trusts_only_our_own_files():
    folder = files("dar_probe.reports.pages") / "templates"
    template = (folder / "document.html.j2").read_text()
    others = [path for path in folder.iterdir() if path.name.endswith(".j2")]
    assert len(others) >= 2
    for path in others:
        assert path.name == "document.html.j2" or not re.search(
            r"\|\s*safe|autoescape", path.read_text()
        )
    assert re.findall(r"{{[^}]*\|\s*safe[^}]*}}", template) == [
        "{{ css|safe }}",
        "{{ page_js|safe }}",
    ]
    assert template.count("safe") == 2
    assert "autoescape" not in template
    source = Path(document.__file__).read_text(encoding="utf-8")
    assert source.count("Environment(") == 1
    assert re.search(r"autoescape=True,\s+undefined=jinja2.StrictUndefined", source)
    assert "Markup" not in source


def browse(text: str, folder: Path, *flags: str) -> tuple[str, list[str]]:
    """Open a page without any network; return its final DOM and the console's messages."""
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    command = [
        chromium.executable(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1200,2400",
        "--virtual-time-budget=8000",
        "--enable-logging=stderr",
        "--v=0",
        *flags,
        "--dump-dom",
        path.as_uri(),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=120
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_chromium_draws_every_figure_without_an_error(hostile_page, tmp_path):
    unfolded = hostile_page.replace("<details", "<details open")  # what is folded waits
    dom, console = browse(unfolded, tmp_path)
    assert console == []
    assert dom.count('data-figure="') == EVERY_FIGURE
    for at in range(1, EVERY_FIGURE + 1):
        start = dom.index(f'id="fig-{at:02d}"')
        assert "main-svg" in dom[start : dom.index("</figure>", start)]
    assert "<img" not in re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)


def test_chromium_refuses_a_foreign_script(tmp_path):
    policy = document._policy([document.page_script()])
    text = (
        '<!doctype html><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<p id="a">kept</p><script>document.getElementById("a").textContent = "run"</script>'
    )
    dom, console = browse(text, tmp_path)
    assert ">kept</p>" in dom
    assert console
