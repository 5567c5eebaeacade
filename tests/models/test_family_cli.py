"""The command line on a file of every family, and what reports make of fusions and stages."""

import json

import numpy as np
import pytest

from dar_probe.analysis import open_analysis
from dar_probe.reports.pages import analysis_figures
from dar_probe.reports.style import source_maps
from tests.helpers.drawn import screened, unpacked
from tests.helpers.shell import run, without_progress
from tests.models import files

GRID = ["--noise-levels", "0.2,0.7", "--samples", "3"]
UNDRAWN = {"SiT"}  # figures of plain residuals are drawn by many other tests


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    """Analyse the file of a case once: (what the command printed, its folder)."""
    done = {}

    def of(case):
        if case not in done:
            folder = tmp_path_factory.mktemp("cli")
            file = files.write(case, folder)
            words = [*file.words, *GRID, "--out", "out"]
            printed = run("analyze", *words, cwd=folder, light=case in UNDRAWN)
            assert printed.returncode == 0, printed.stderr
            done[case] = printed, folder / "out"
        return done[case]

    return of


# One of one stream, one with fusions, one of stages; test_analyze.py has all of them in Python.
@pytest.mark.parametrize("case", ["SiT", "U-ViT latent", "U-DiT"])
def test_analyze(case, analysed):
    printed, folder = analysed(case)
    assert max(map(len, printed.stdout.splitlines())) <= 80
    assert without_progress(printed.stderr) == ""
    made = {path.name for path in folder.iterdir()}
    assert made == {"analysis.nc", "report.html", "summary.json", "figures"}
    family = open_analysis(folder).manifest["model"]["family"]
    assert family == files.CASES[case][2]


def test_the_fusion_of_a_reader_s_own_block_is_shown(analysed):
    _, folder = analysed("U-ViT latent")
    ds = open_analysis(folder).dataset
    (importance,) = source_maps.block_maps(ds)
    fused = [str(name) for name in ds["source_name"].values if "fusion" in str(name)]
    assert fused == ["block 4 fusion", "block 5 fusion"]
    shallow, deep = source_maps.locations(importance.values, shallow=3, deep=4)
    assert shallow.names == ["embedding", "block 1", "block 2"]
    assert deep.names == ["embedding", "block 1", "block 2", "block 3", "fusion"]
    drawn = screened.sources(ds, shallow=3, deep=4, gaps=True)["data"][1]
    assert drawn["y"] == deep.names
    shown = unpacked(drawn["z"]).reshape(len(deep.names), -1)
    np.testing.assert_allclose(shown.sum(0), 1, rtol=1e-6)  # all that block 4 reads
    wanted = importance.values.isel(reader=deep.position).values[:, :5].T
    np.testing.assert_allclose(shown, wanted, rtol=1e-6)


def test_stages_are_said_and_not_compared(analysed):
    printed, folder = analysed("U-DiT")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["metrics"]["inflation"]["value"] is None
    assert summary["metrics"]["gradient_decay"]["value"] is None
    assert summary["metrics"]["redundancy"]["value"] is not None
    (sentence,) = (s for s in summary["assumptions"] if "a new stream begins" in s)
    assert sentence.startswith("a new stream begins before blocks 2, 4, 5, 6: cosines")
    assert "n/a" in printed.stdout
    assert "one sample" not in printed.stdout  # of what is not measurable there is no interval
    analysis = open_analysis(folder)
    drawn = screened.dilution([("", analysis.dataset)])["data"]
    bands = [t for t in drawn if t.get("fill") == "toself" and t.get("visible") is not False]
    cosines = [sorted({int(x) for x in unpacked(t["x"])}) for t in bands if t["xaxis"] == "x3"]
    assert cosines == [[2], [6]]  # no band across the stages between
    every = source_maps.sublayer_maps(analysis.dataset)
    titles = [f.title for f in analysis_figures.of_analysis(analysis.dataset, "U-DiT", every)]
    assert "Every reader and every source" in titles
    # Every stage has one source block: there is nothing to compare among blocks.
    assert "Sources over noise levels" not in titles
