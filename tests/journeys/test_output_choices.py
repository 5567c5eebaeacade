"""Which files an analysis comes with: all, or without the page or the figures, in some formats."""

import pytest

from dar_probe.analysis import open_analysis
from tests.helpers.shell import run, without_progress
from tests.hostile.playground import fill

GRID = ["--samples", "2", "--noise-levels", "2"]
COMMANDS = {
    "analyze": ["plain.pt", *GRID],
    "ablate": ["plain.pt", *GRID, "--kinds", "block"],
    "audit": ["mine:bare", "--input", "4,8", "--samples", "2"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("choices")
    fill(path)
    return path


def made(folder, name):
    return {path.relative_to(folder / name).as_posix() for path in (folder / name).rglob("*.*")}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_page_and_vector_graphics_alone(folder, command):
    line = [command, *COMMANDS[command], "--out", command]
    done = run(*line, "--no-report", "--formats", "svg", cwd=folder)
    assert done.returncode in (0, 1), done.stderr
    found = made(folder, command)
    assert {"analysis.nc", "summary.json", "figures/dilution.svg"} <= found
    assert "report.html" not in found and not any(name.endswith((".png", ".pdf")) for name in found)
    assert "none; write it with: dar-probe report" in done.stdout
    assert without_progress(done.stderr) == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_data_alone(folder, command):
    line = [command, *COMMANDS[command], "--out", f"{command}-data"]
    done = run(*line, "--no-report", "--no-figures", cwd=folder)
    assert done.returncode in (0, 1), done.stderr
    assert made(folder, f"{command}-data") == {"analysis.nc", "summary.json"}
    assert "The data follow ..." in done.stdout


def test_what_is_missing_is_drawn_by_resume_alone(folder):
    line = ["analyze", *COMMANDS["analyze"], "--out", "resumed", "--resume"]
    run(*line, "--no-report", "--no-figures", cwd=folder, light=True)
    first = open_analysis(folder / "resumed").dataset
    stamp = (folder / "resumed" / "analysis.nc").stat().st_mtime_ns
    run(*line, "--no-report", "--no-figures", cwd=folder, light=True)
    assert (folder / "resumed" / "analysis.nc").stat().st_mtime_ns == stamp, "nothing was missing"
    run(*line, "--no-figures", cwd=folder)
    assert "report.html" in made(folder, "resumed")
    run(*line, "--formats", "png", cwd=folder)
    found = made(folder, "resumed")
    assert "figures/dilution.png" in found and "figures/dilution.pdf" not in found
    run(*line, "--formats", "pdf,png", cwd=folder)
    assert "figures/dilution.pdf" in made(folder, "resumed")
    assert open_analysis(folder / "resumed").dataset.identical(first), "nothing is measured again"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--formats", "gif"], "there is no format 'gif'"),
        (["--formats", "png", "--no-figures"], "--no-figures leaves out what --formats is for"),
    ],
)
def test_what_cannot_be(folder, command, more, said):
    done = run(command, *COMMANDS[command], "--out", "refused", *more, cwd=folder)
    assert done.returncode == 2 and said in done.stderr
    assert not (folder / "refused").exists()


def test_figures_takes_both_names(folder):
    for name in ("--format", "--formats"):
        line = ["figures", "analysis", "--only", "dilution", name, "svg", "--out", f"by{name}"]
        assert run(*line, cwd=folder).returncode == 0
    assert made(folder, "by--format") == made(folder, "by--formats") == {"dilution.svg"}
