"""The verdict is told before the files are written, and the files once they are there."""

import json
import subprocess
import sys

import pytest
import torch

from dar_probe.analysis import Analysis, open_analysis
from dar_probe.cli.shared import announcement, terminal
from dar_probe.errors import UsageError
from dar_probe.files import analysis_folder
from dar_probe.probe.options import OutputOptions
from tests.helpers import synthetic, tiny
from tests.helpers.shell import run
from tests.hostile.commands import call

GRID = ["--samples", "2", "--noise-levels", "2", "--data", "digits"]


@pytest.fixture(scope="module")
def analysis():
    return Analysis(synthetic.dataset(blocks=4, samples=2, levels=2))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.save(tiny.model(size=8, dtype=torch.float32).state_dict(), path)
    return path


def said(analysis, folder, *, as_json=False, figures=True, report=True, early=True):
    show_json = terminal.show_json if as_json else None
    output = OutputOptions(out=folder, figures=figures, report=report)
    with announcement.announced(
        "measuring", output, show=terminal.show, show_json=show_json
    ) as told:
        if early:
            told.verdict(analysis)
    told.files(analysis)


@pytest.mark.parametrize(
    ("figures", "report", "what"),
    [
        (True, True, "The figures and the page follow ..."),
        (False, True, "The page follows ..."),
        (True, False, "The figures follow ..."),
        (False, False, "The data follow ..."),
    ],
)
def test_verdict_then_files(analysis, tmp_path, capsys, figures, report, what):
    said(analysis, tmp_path, figures=figures, report=report)
    before, after = capsys.readouterr().out.split(what)
    assert analysis.verdict.status.upper() in before and "report.html" not in before
    assert (str(tmp_path / "report.html") in after) == report
    assert str(tmp_path / "analysis.nc") in after
    assert after.count("dar-probe report") == (not figures) + (not report)


def test_an_analysis_that_was_finished_before_is_told_once(analysis, tmp_path, capsys):
    said(analysis, tmp_path, early=False)
    out = capsys.readouterr().out
    assert "follow" not in out and out.count(analysis.verdict.status.upper()) == 1
    assert "report.html" in out


def test_json_is_one_document(analysis, tmp_path, capsys):
    said(analysis, tmp_path, as_json=True)
    assert json.loads(capsys.readouterr().out) == analysis.summary


def test_a_reader_of_a_pipe_has_the_verdict_before_any_file_is_there(checkpoint, tmp_path):
    """The writer waits for the reader to see the verdict, as no buffer must hold it back."""
    code = (
        "import sys, os\n"
        "from dar_probe.files.analysis_folder import OutputFolder\n"
        "from dar_probe import cli\n"
        "real = OutputFolder.publish\n"
        "def publish(folder, write):\n"
        "    sys.stdin.readline()\n"
        "    real(folder, write)\n"
        "OutputFolder.publish = publish\n"
        f"sys.argv = ['dar-probe', 'analyze', {str(checkpoint)!r}, '--heads', '2', '--out', 'out',"
        f" '--no-figures', *{GRID!r}]\n"
        "cli.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        lines = []
        for line in child.stdout:
            lines.append(line)
            if "follow" in line:
                break
        assert any(word in "".join(lines) for word in ("PASS", "WARN", "FAIL", "UNTRAINED"))
        assert not (tmp_path / "out").exists()
        child.stdin.write("\n")
        child.stdin.flush()
        rest = child.stdout.read()
    assert child.returncode == 0 and "out/report.html" in rest
    assert (tmp_path / "out" / "report.html").is_file()


def test_files_that_cannot_be_written_are_not_announced(checkpoint, tmp_path, monkeypatch):
    def publish(folder, write):
        raise UsageError("no room", hint="make some")

    monkeypatch.setattr(analysis_folder.OutputFolder, "publish", publish)
    line = ["analyze", str(checkpoint), "--heads", "2", *GRID, "--out", str(tmp_path / "out")]
    done = call(line)
    done.refused()
    assert "follow" in done.stdout and "report.html" not in done.stdout
    assert call([*line, "--json"]).stdout == ""


def test_without_figures_and_then_with_them(checkpoint, tmp_path):
    line = ["analyze", checkpoint, "--heads", "2", *GRID, "--out", "out", "--resume"]
    done = run(*line, "--no-figures", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert names == {"analysis.nc", "summary.json", "report.html"}
    assert "dar-probe report out" in done.stdout
    first = open_analysis(out).dataset
    stamp = (out / "analysis.nc").stat().st_mtime_ns
    again = run(*line, "--no-figures", cwd=tmp_path)  # nothing is left to do
    assert again.returncode == 0 and (out / "analysis.nc").stat().st_mtime_ns == stamp
    drawn = run(*line, cwd=tmp_path, light=True)
    assert drawn.returncode == 0, drawn.stderr
    assert open_analysis(out).dataset.identical(first), "nothing was measured again"
    assert (out / "analysis.nc").stat().st_mtime_ns != stamp
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
