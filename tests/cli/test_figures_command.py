"""``dar-probe figures``: which files it writes, what it refuses, and that it breaks nothing."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dar_probe.cli import app
from dar_probe.cli import figures as command
from dar_probe.reports.figures import registry
from dar_probe.results import store
from tests.helpers.synthetic import dataset, trained

HOSTILE = "../../$\\frac{<script>\n" + "x" * 300


@pytest.fixture(scope="module")
def analyses(tmp_path_factory):
    """Return the paths of a folder, a file and a trajectory."""
    folder = tmp_path_factory.mktemp("analyses")
    (folder / "plain").mkdir()
    store.write(dataset(blocks=3, samples=3, levels=2), folder / "plain" / "analysis.nc")
    dar = dataset(blocks=5, samples=6, levels=2, routing="dar", chunk_size=2)
    manifest = dar.attrs["manifest"].replace(
        "SiT-synthetic", HOSTILE.replace("\\", "\\\\").replace("\n", "\\n")
    )
    dar.attrs["manifest"] = manifest
    store.write(dar, folder / "dar.nc")
    store.write(trained(steps=2, blocks=2, samples=2, levels=2), folder / "run.nc")
    return [str(folder / name) for name in ("plain", "dar.nc", "run.nc")]


def run(*arguments):
    return CliRunner().invoke(app, ["figures", *map(str, arguments)])


def test_one_analysis_gives_every_figure_in_every_format(tmp_path, analyses):
    result = run(analyses[1], "--out", tmp_path / "new" / "figures", "--variable", "rms")
    assert result.exit_code == 0, result.output
    stems = ["dilution", "sources", "matrix", "spread", "decodability", "heatmap_rms"]
    names = [f"{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf", "svg")]
    assert [os.path.basename(line) for line in result.stdout.splitlines()] == names
    assert sorted(os.listdir(tmp_path / "new" / "figures")) == sorted(names)


def test_several_share_one_dilution_and_number_the_rest(tmp_path, analyses):
    other = tmp_path / "mine.txt"
    other.write_text("stays")
    (tmp_path / "dilution.png").write_text("replaced")
    only = ("--only", "spread,dilution,trajectory,sources", "--format", "png", "--width", "one")
    result = run(*analyses, "--out", tmp_path, *only)
    assert result.exit_code == 0, result.output
    written = {"dilution.png", "01-sources.png", "02-sources.png", "03-sources.png"}
    written |= {"02-spread.png", "03-trajectory.png"}
    assert set(os.listdir(tmp_path)) == written | {"mine.txt"}
    assert other.read_text() == "stays"
    assert {(tmp_path / name).read_bytes()[:4] for name in written} == {b"\x89PNG"}


def test_equal_names_are_told_apart(analyses):
    names = [name for name, _ in command._read([Path(path) for path in analyses * 2])]
    assert len(set(names)) == 6
    assert names[:1] == ["SiT-synthetic (1)"]


def test_the_same_command_gives_the_same_bytes(tmp_path, analyses):
    for turn in ("1", "2"):
        assert run(analyses[1], "--out", tmp_path / turn, "--only", "spread").exit_code == 0
    for suffix in ("png", "pdf", "svg"):
        first, second = (tmp_path / turn / f"spread.{suffix}" for turn in ("1", "2"))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--only", "dilution,nothing"], 2, "trajectory, interventions, heatmap"),
        (["--format", "png,gif"], 2, "png, pdf, svg"),
        (["--format", ""], 2, "png, pdf, svg"),
        (["--variable", "gate"], 2, "write_ratio"),
        (["--variable", "rms,none"], 2, "write_ratio"),
        (["--kind", "nothing"], 2, "attention, mlp, head"),
        (["--noise-level", "1.2"], 2, "measured are 0.01, 0.99"),
        (["--deep", "99"], 2, "blocks are"),
        (["--width", "three"], 2, "two"),
        (["--only", "spread"], 4, "no router"),
        (["--only", "trajectory"], 4, "one training step"),
        (["--only", "interventions"], 4, "no interventions"),
        (["--variable", "query_share"], 4, "measured nowhere"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_written(
    tmp_path, analyses, arguments, code, says
):
    result = run(analyses[0], "--out", tmp_path / "out", *arguments)
    assert result.exit_code == code, result.output
    assert says in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_analysis_are_refused(tmp_path):
    (tmp_path / "a.nc").write_bytes(b"no")
    assert run(tmp_path / "a.nc").exit_code == 3
    assert run(tmp_path / "missing").exit_code == 3
    assert run().exit_code == 2


def test_a_file_in_place_of_the_folder_is_refused_and_stays(tmp_path, analyses):
    (tmp_path / "out").write_text("mine")
    result = run(analyses[0], "--out", tmp_path / "out", "--only", "dilution")
    assert result.exit_code == 2
    assert (tmp_path / "out").read_text() == "mine"


def test_what_fails_midway_leaves_no_half_file(tmp_path, analyses, monkeypatch):
    from dar_probe.reports.draw import matplotlib

    def broken(drawn, path, *, form):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "dilution.png").write_text("old")
    monkeypatch.setattr(matplotlib, "save", broken)
    result = run(analyses[0], "--out", tmp_path, "--only", "dilution", "--format", "png")
    assert result.exit_code == 2
    assert os.listdir(tmp_path) == ["dilution.png"]
    assert (tmp_path / "dilution.png").read_text() == "old"


def test_options_reach_the_figures(tmp_path, analyses, monkeypatch):
    seen = []
    monkeypatch.setattr(
        registry, "describe", lambda ds, stem, options, *, name: seen.append(options)
    )
    monkeypatch.setattr(command, "_write", lambda shown, *options, captions: [])
    given = ["--width", "one", "--noise-level", "0.3", "--shallow", "2", "--deep", "5"]
    given += ["--kind", "mlp", "--variable", "rms", "--variable", "cosine,grad_rms"]
    assert run(analyses[1], *given).exit_code == 0
    assert set(seen) == {
        registry.Options(
            width="one",
            noise_level=0.3,
            shallow=2,
            deep=5,
            kind="mlp",
            variables=("rms", "cosine", "grad_rms"),
        )
    }


def test_captions_come_as_text_and_as_latex(tmp_path, analyses):
    """Words that figures leave out are in the captions; a hostile name is no command of LaTeX."""
    only = ("--only", "dilution,sources", "--formats", "pdf")
    result = run(analyses[1], "--out", tmp_path, *only, "--captions", "--no-notes", "--no-titles")
    assert result.exit_code == 0, result.output
    written = {os.path.basename(line) for line in result.stdout.splitlines()}
    assert written == {"dilution.pdf", "sources.pdf", "captions.txt", "captions.tex"}
    plain, latex = ((tmp_path / f"captions.{kind}").read_text() for kind in ("txt", "tex"))
    assert [line.split(":")[0] for line in plain.split("\n\n")] == ["dilution", "sources"]
    assert "Source block 0 is the embedding." in plain and "Bands: 95 % interval" in plain
    assert latex.count(r"\begin{figure}") == latex.count(r"\end{figure}") == 2
    assert r"\includegraphics{sources.pdf}" in latex and r"\label{fig:sources}" in latex
    assert r"Bands: 95 \% interval" in latex and r"\frac" not in latex
    assert r"\$\textbackslash{}frac\{" in latex


def test_help_names_every_figure():
    text = " ".join(run("--help").output.replace("│", " ").split())
    for name in registry.FIGURES:
        assert name in text
