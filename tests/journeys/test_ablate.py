"""``dar-probe ablate`` as a person and as a script use it."""

import json

import numpy as np
import pytest

from dar_probe.analysis import open_analysis
from tests.helpers.shell import FIXTURES, run

GRID = ["--samples", "2", "--noise-levels", "2"]


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablated")
    done = run(
        "ablate", FIXTURES / "digits-dar-static.pt", *GRID, "--pairs", 4, "--gate", "57:0",
        "--kinds", "gate,block,uniform", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "dar-probe-out" / "digits-dar-static-ablation", done


def test_effects_are_in_the_dataset_on_the_page_and_in_the_terminal(ablated):
    folder, done = ablated
    ds = open_analysis(folder).dataset
    assert ds.sizes["ablation"] == 4 + 28 + 56 and ds.sizes["intervention"] == 3
    assert len(set(ds["ablation_name"].values)) == 88  # the wanted gate is among the largest
    assert str(ds["ablation_name"].values[0]) == "head without embedding"
    expected = -ds["gate"].values[:, :, 56, 0]
    np.testing.assert_array_equal(ds["gate_linear"].values[:, :, 0], expected)
    assert "What interventions did" in (folder / "report.html").read_text()
    assert (folder / "figures" / "interventions.pdf").is_file()
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if not line.startswith(("Report", "Dataset")))
    assert "one block skipped" in done.stdout and "head without embedding" in done.stdout


def test_a_finished_run_is_not_repeated_and_json_is_parseable(ablated):
    folder, _ = ablated
    before = (folder / "analysis.nc").stat().st_mtime_ns
    done = run(
        "ablate", FIXTURES / "digits-dar-static.pt", *GRID, "--pairs", 4, "--gate", "57:0",
        "--kinds", "gate,block,uniform", "--out", folder, "--resume", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (folder / "analysis.nc").stat().st_mtime_ns == before
    found = json.loads(done.stdout)
    assert len(found["effects"]) == 88 and set(found["kinds"]) == {"gate", "block", "uniform"}
