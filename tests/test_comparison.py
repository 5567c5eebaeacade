"""A comparison as people meet it: in Python, as figures, as a page and on the command line."""

import csv
import io
import json

import numpy as np
import pytest
from typer.testing import CliRunner

import dar_probe as dp
from dar_probe.analysis import Analysis
from dar_probe.cli import app
from dar_probe.comparison import Comparison, compare
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.files.analysis_folder import CONTENTS
from dar_probe.reports.draw import matplotlib
from dar_probe.reports.figures import differences
from dar_probe.reports.pages import comparison, document
from dar_probe.reports.style import palette
from dar_probe.results import schema, store
from dar_probe.results.fail_rule import parse_rule
from dar_probe.results.paired import NUMBERS, over_depth
from dar_probe.results.streams import single
from tests.helpers.drawn import printed, screened, unpacked
from tests.helpers.synthetic import dataset, trained
from tests.reports.test_figures import drawn_text
from tests.reports.test_page import HOSTILE, Parsed, browse
from tests.test_architecture import python

SMALL = {"blocks": 4, "samples": 6, "levels": 3}


def model(name: str, **changes):
    """Return a dataset of the name and the one seed of noise."""
    ds = dataset(**{**SMALL, **changes})
    whole = schema.manifest(ds)
    whole |= {"seed": 0, "model": {**whole["model"], "name": name}}
    ds.attrs["manifest"] = json.dumps(whole)
    return ds


def three(*names: str) -> list:
    return [
        model(names[0]),
        model(names[1], routing="dar", chunk_size=4, seed=1),
        model(names[2], seed=2, levels=2),
    ]


@pytest.fixture(scope="module")
def usual():
    return Comparison(*map(Analysis, three("plain", "routed", "other levels")))


@pytest.fixture(scope="module")
def hostile():
    return Comparison(*map(Analysis, three(HOSTILE, HOSTILE, HOSTILE)))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Return the folders of analyses: plain, routed, other levels, and a training run."""
    folder = tmp_path_factory.mktemp("analyses")
    made = dict(zip(("plain", "routed", "levels"), three("plain", "routed", "levels"), strict=True))
    run = trained(**SMALL, steps=2)
    whole = schema.manifest(run)
    made["run"] = run.assign_attrs(manifest=json.dumps({**whole, "seed": 0}))
    whole = schema.manifest(made["run"])
    for step in whole["steps"]:
        step["seed"] = 0
    made["run"].attrs["manifest"] = json.dumps(whole)
    for name, ds in made.items():
        (folder / name).mkdir()
        store.write(ds, folder / name / "analysis.nc")
    return {name: folder / name for name in made}


# --- in Python -----------------------------------------------------------------------------------


def test_compare_takes_analyses_folders_and_files(paths):
    found = dp.compare(
        paths["plain"], str(paths["routed"] / "analysis.nc"), Analysis(model("plain"))
    )
    assert found.names == ["plain (1)", "routed", "plain (2)"]
    assert [pair.reference for pair in found.pairs] == ["plain (1)"] * 2
    assert found.pairs[1].changes[0].difference.value == 0
    assert dp.compare is compare  # no module of the package hides the function
    assert dp.Comparison is Comparison


def test_too_few_or_no_analyses_are_refused_before_any_is_opened(tmp_path):
    for given in ([], [tmp_path / "missing"]):
        with pytest.raises(UsageError, match="cannot be compared with anything"):
            compare(*given)
    with pytest.raises(CheckpointError, match="no file"):
        compare(tmp_path / "one", tmp_path / "two")


def test_the_frame_is_tidy_and_complete(usual):
    frame = usual.to_dataframe()
    assert len(frame) == 2 * len(NUMBERS)
    assert not frame.duplicated(["reference", "other", "number"]).any()
    for change in usual.pairs[0].changes:
        row = frame[(frame["other"] == "routed") & (frame["number"] == change.name)].iloc[0]
        found = row[["difference_low", "difference_value", "difference_high"]].to_numpy(float)
        expected = [change.difference.low, change.difference.value, change.difference.high]
        np.testing.assert_array_equal(found, expected)
        assert row["sentence"] == change.sentence
    apart = frame[frame["other"] == "other levels"]
    assert apart["difference_value"].isna().all()
    assert apart["sentence"].str.contains("because the noise levels differ").all()


def test_text_and_notebook_say_every_sentence(usual, hostile):
    for pair in usual.pairs:
        assert pair.sentence in repr(usual)
    html = usual._repr_html_()
    for change in usual.pairs[0].changes:
        assert change.sentence in html
    assert "the noise levels differ" in html
    unsafe = hostile._repr_html_()
    assert "<img" not in unsafe and "</script>" not in unsafe
    assert "&lt;img" in unsafe
    assert all(len(name) < 70 and name.isprintable() for name in hostile.names)
    assert len(set(hostile.names)) == 3


def test_rules_are_of_differences(usual):
    def met(text):
        return [pair.other for pair in usual.meeting(parse_rule(text, NUMBERS))]

    fall = usual.pairs[0].changes[0].difference.value
    assert fall < 0
    assert met(f"inflation < {fall / 2}") == ["routed"]
    assert met(f"inflation < {fall * 2}") == []
    assert met("loss > -100") == ["routed"]
    rule = parse_rule("selectivity > 0 or loss > 100", NUMBERS)
    assert [(pair.other, names) for pair, names in usual.undecided(rule)] == [
        ("routed", ["selectivity"])
    ]
    assert usual.undecided(parse_rule("selectivity > 0 or loss > -100", NUMBERS)) == []
    assert usual.undecided(parse_rule("selectivity > 0 and loss > 100", NUMBERS)) == []
    with pytest.raises(UsageError, match="'loss' where the name of a metric"):
        parse_rule("loss > 1")  # one analysis alone is not judged by its loss
    with pytest.raises(UsageError) as refused:
        parse_rule("speed > 1", NUMBERS)
    assert ", ".join(NUMBERS) in refused.value.hint


def test_of_a_training_run_the_last_step_is_compared(paths):
    found = compare(paths["run"], paths["routed"])
    assert "its last step, 200, is compared" in found.pairs[0].notes[0]
    last = single(store.read(paths["run"] / "analysis.nc"))
    alone = Comparison(Analysis(last), found.analyses[1])
    assert repr(alone.pairs[0].changes) == repr(found.pairs[0].changes)
    assert found.named[0][1].equals(last)


def test_a_name_is_no_formula_of_a_spreadsheet(tmp_path):
    names = ["=1+1", "@SUM(A1)"]
    folder = compare(*(Analysis(model(name)) for name in names)).save(tmp_path / "out")
    row = next(csv.DictReader(io.StringIO((folder / "comparison.csv").read_text())))
    assert [row["reference"], row["other"]] == ["'=1+1", "'@SUM(A1)"]
    assert float(row["difference_value"]) == 0


def test_save_writes_everything_or_nothing(usual, tmp_path, monkeypatch):
    folder = usual.save(tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == CONTENTS["comparison"]
    assert sorted(path.name for path in (folder / "figures").iterdir()) == [
        "differences.pdf", "differences.png", "dilution.pdf", "dilution.png",
    ]  # fmt: skip
    text = (folder / "comparison.json").read_text()
    assert json.loads(text) == usual.summary and "NaN" not in text
    rows = list(csv.DictReader(io.StringIO((folder / "comparison.csv").read_text())))
    frame = usual.to_dataframe()
    assert [float(row["difference_low"] or "nan") for row in rows] == pytest.approx(
        frame["difference_low"].tolist(), rel=1e-12, nan_ok=True
    )
    first = (folder / "comparison.html").read_bytes()
    monkeypatch.setattr(matplotlib, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        usual.save(folder)
    assert (folder / "comparison.html").read_bytes() == first


def test_folders_of_analyses_and_of_comparisons_do_not_mix(usual, tmp_path):
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "analysis.nc").write_text("")
    with pytest.raises(UsageError, match="no part of a comparison"):
        usual.save(tmp_path / "analysis")
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "comparison.csv").write_text("")
    with pytest.raises(UsageError, match="no part of an analysis"):
        usual.analyses[0].save(tmp_path / "comparison")


def test_a_comparison_needs_no_torch(paths, tmp_path):
    code = (
        "import dar_probe as dp\n"
        f"found = dp.compare({str(paths['plain'])!r}, {str(paths['routed'])!r})\n"
        f"found.save({str(tmp_path / 'out')!r})\n"
        "print(found)"
    )
    done = python(code, "torch", "nnsight")
    assert done.returncode == 0, done.stderr
    assert "Against plain, routed has lower inflation" in done.stdout


# --- figures -------------------------------------------------------------------------------------


def test_differences_are_drawn_with_their_intervals(usual):
    drawn = screened.differences(usual.named)
    lines = [trace for trace in drawn["data"] if "name" in trace]
    assert [(line["name"], line["showlegend"]) for line in lines] == [
        ("routed", True), ("routed", False), ("routed", False),
    ]  # fmt: skip
    bands = [trace for trace in drawn["data"] if trace.get("fill") == "toself"]
    for line, band, panel in zip(lines, bands, palette.PANELS, strict=True):
        gap = over_depth(usual.named[0][1], usual.named[1][1], panel.variable)
        gap = gap.sel(block=slice(1, None))
        value, ends = unpacked(line["y"]), unpacked(band["y"])
        np.testing.assert_allclose(value, gap["value"])
        np.testing.assert_allclose(ends[: len(value)], gap["high"])
        np.testing.assert_allclose(ends[len(value) :], gap["low"][::-1])
    printed = usual.plot.differences()
    for axis, line in zip(printed.axes, lines, strict=True):
        zero, value = axis.get_lines()
        assert list(zero.get_ydata()) == [0, 0]
        np.testing.assert_allclose(value.get_ydata(), unpacked(line["y"]))


def test_zero_lies_within_every_panel_and_lines_look_as_in_the_overlay(usual):
    drawn = screened.differences(usual.named)
    for panel in range(3):
        low, high = drawn["layout"][f"yaxis{panel + 1 if panel else ''}"]["range"]
        assert low < 0 < high
    for axis in usual.plot.differences().axes:
        low, high = axis.get_ylim()
        assert low < 0 < high
    same = Comparison(usual.analyses[0], usual.analyses[0])
    low, high = screened.differences(same.named)["layout"]["yaxis"]["range"]
    assert low < 0 < high
    overlay = [line for line in usual.plot.dilution().axes[0].get_lines()]
    own = usual.plot.differences().axes[0].get_lines()[1]
    assert own.get_color() == overlay[1].get_color()
    assert own.get_linestyle() == overlay[1].get_linestyle()


def test_models_of_another_depth_or_grid_are_left_out(usual):
    deeper = Analysis(model("deeper", blocks=5))
    both = Comparison(usual.analyses[0], deeper, usual.analyses[2])
    assert differences.drawable(both.named) == []
    for draw in (screened.differences, printed.differences):
        with pytest.raises(UsageError, match="nothing differs over depth"):
            draw(both.named)
    words = Parsed(comparison.render(both.named, both.pairs)).words
    assert "All models over depth" in words and "Differences over depth" not in words
    assert both.pairs[0].changes and not both.pairs[1].changes


def test_smallest_and_unmeasured_models_are_drawn(tmp_path):
    single = [model(name, samples=1, blocks=1, levels=1) for name in "ab"]
    empty = model("c", samples=1, blocks=1, levels=1)
    for name in schema.VARIABLES:
        empty[name][:] = np.nan
    found = Comparison(*map(Analysis, [*single, empty]))
    words = Parsed(comparison.render(found.named, found.pairs)).words
    assert "no difference has an interval" in words
    assert "nan" not in words.replace("NaN", "").lower().split()
    found.save(tmp_path / "out")


def test_hostile_names_are_printed(hostile):
    for drawn in (hostile.plot.differences(), hostile.plot.dilution()):
        assert any("<img" in text for text in drawn_text(drawn))


# --- the page ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile_page(hostile):
    named = [(name, ds.copy()) for name, ds in hostile.named]
    for _, ds in named:
        whole = schema.manifest(ds)
        texts = {"warnings": [HOSTILE], "assumptions": [HOSTILE], "device": HOSTILE}
        ds.attrs["manifest"] = json.dumps({**whole, **texts, "data": {"name": HOSTILE}})
    return comparison.render(named, hostile.pairs)


def test_the_page_says_what_differs_first(usual):
    text = comparison.render(usual.named, usual.pairs)
    words = Parsed(text).words
    order = [
        "dar-probe comparison routed and other levels against plain",
        "Read this first",
        usual.pairs[1].sentence,
        usual.pairs[0].sentence,
        "Verdict of each model",
        usual.analyses[1].verdict.sentence,
        "routed minus plain",
        usual.pairs[0].changes[0].sentence,
        "All models over depth",
        "Differences over depth",
        "The numbers of each model",
        "1,000 draws of the 6 samples",
        "eprint = {2605.20708}",
        "0" * 64,
    ]
    at = 0
    for part in order:  # each after the one before, and after the contents
        at = words.index(part, at)
    for change in usual.pairs[0].changes:
        assert change.sentence in words
    assert "Not of the reference's samples or levels: other levels" in words
    assert schema.VARIABLES["loss"].definition[4:] in words
    assert text == comparison.render(usual.named, usual.pairs)


def test_the_page_links_its_panels_and_names_its_lines(usual):
    parsed = Parsed(comparison.render(usual.named, usual.pairs))
    specs = [json.loads(text) for attrs, text in parsed.scripts if "data-figure" in attrs]
    assert len(specs) == 2
    panels = specs[1]["layout"]["meta"]["panels"]
    assert [panel["x"]["dim"] for panel in panels] == ["block"] * 3
    for spec in specs:
        meta = spec["layout"]["meta"]
        assert (
            meta["narrow"]["margin.t"] >= 60 and meta["wide"]["height"] < meta["narrow"]["height"]
        )
    shown = [attrs["aria-label"] for tag, attrs in parsed.tags if attrs.get("class") == "plot"]
    assert "hidden-state RMS, routed: from " in shown[1]


def test_nothing_of_a_hostile_file_runs_or_loads(hostile_page):
    parsed = Parsed(hostile_page)
    assert not parsed.open
    assert "<img" not in hostile_page
    assert "\u202e" not in hostile_page
    for tag, attrs in parsed.tags:
        assert tag not in {"link", "iframe", "img", "object", "embed", "base", "form"}
        assert "src" not in attrs
        assert not [name for name in attrs if name.startswith("on")]
    template = document.template("comparison.html.j2")
    assert "safe" not in template and "autoescape" not in template


def test_chromium_opens_the_page_offline_and_draws_its_figures(hostile_page, tmp_path):
    dom, console = browse(hostile_page, tmp_path)
    assert console == []
    for figure in ("fig-01", "fig-02"):
        start = dom.index(f'id="{figure}"')
        assert "main-svg" in dom[start : dom.index("</figure>", start)]


# --- the command line ----------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "80"})


def test_a_table_and_sentences_in_80_columns(paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(paths["plain"], paths["routed"])
    assert done.exit_code == 0, done.output
    assert list(tmp_path.iterdir()) == []  # without --out nothing is written
    assert max(map(len, done.stdout.splitlines())) <= 80
    text = " ".join(done.stdout.split())
    found = compare(paths["plain"], paths["routed"])
    for change in found.pairs[0].changes:
        assert change.sentence in text
    assert found.pairs[0].sentence in text
    assert "number reference other difference, 95 % interval" in text
    assert text.index("FAIL plain") < text.index("PASS routed") < text.index("Against plain")


def test_json_is_what_the_file_holds_and_nothing_else(paths):
    done = run(paths["plain"], paths["routed"], paths["levels"], "--json")
    assert done.exit_code == 4
    found = compare(paths["plain"], paths["routed"], paths["levels"])
    assert json.loads(done.stdout) == found.summary
    assert "cannot be compared with plain because" in " ".join(done.stderr.split())


def test_out_writes_also_what_can_be_compared_beside_what_cannot(paths, tmp_path):
    done = run(paths["plain"], paths["levels"], paths["routed"], "--out", tmp_path / "out")
    assert done.exit_code == 4
    assert "comparison.html" in done.stdout.replace("\n", "")
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [pair["comparable"] for pair in found["pairs"]] == [False, True]


@pytest.mark.parametrize(
    ("others", "rule", "code", "said"),
    [
        (["routed"], "inflation < -1", 1, "routed against plain meets the rule to fail on"),
        (["routed"], "inflation > 1 or loss > 10", 0, ""),
        (["routed"], "selectivity > 0", 4, "The rule cannot judge routed against plain"),
        (["levels"], None, 4, ""),
        (["levels", "routed"], "inflation > 1", 4, ""),
        (["levels", "routed"], "inflation < -1", 1, "meets the rule"),
        (["routed"], "speed > 1", 2, "'speed' where the name of a metric should stand"),
        ([], None, 2, "1 analysis cannot be compared with anything"),
        (["missing"], None, 3, "there is no file"),
    ],
)
def test_exit_codes(paths, others, rule, code, said):
    places = [paths.get(name, name) for name in ["plain", *others]]
    done = run(*places, *([] if rule is None else ["--fail-on", rule]))
    assert done.exit_code == code, done.output
    assert said in " ".join(done.stderr.split())
    if "levels" in others:
        assert "cannot be compared with plain because the noise levels" in done.stdout
    if "routed" in others and code in (0, 1, 4):
        assert "Inflation falls by" in done.stdout


def test_a_folder_with_other_things_is_refused_first(paths):
    done = run(paths["plain"], "missing", "--out", paths["routed"])
    assert done.exit_code == 2 and "no part of a comparison" in done.stderr


def test_hostile_names_and_runs_on_the_terminal(paths, tmp_path):
    for at, name in enumerate((HOSTILE, "\u0645\u0631\u062d\u0628\u0627")):
        store.write(model(name), tmp_path / f"{at}.nc")
    done = run(tmp_path / "0.nc", tmp_path / "1.nc", paths["run"])
    assert done.exit_code == 0, done.output
    assert "\u202e" not in done.stdout and "\udcff" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "its last step, 200, is compared" in " ".join(done.stdout.split())
