"""The README's own words: its Python runs, its commands and files exist."""

import re
import runpy
from pathlib import Path

import pytest

import dar_probe as dp

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMPATIBILITY = (ROOT / "docs" / "reference" / "compatibility.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_python_blocks_run(tmp_path, monkeypatch):
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "readme.py"  # a file: nnsight reads the source of traces
    script.write_text("\n".join(blocks("python")), encoding="utf-8")
    scope = runpy.run_path(str(script))
    assert scope["out"].shape == (2, 16, 32)
    assert scope["audit"].dataset.sizes["block"] == 7
    assert scope["change"].item() > 0.01
    assert dp.open_analysis("run/trajectory.nc").trajectory["step"].values.tolist() == [0, 2, 4]
    assert scope["FAMILY"].title == "Mine"  # tests/models/test_own.py runs it as a file
    assert scope["again"].verdict.sentence == scope["analysis"].verdict.sentence


def test_dar_fits_fifteen_lines_of_somebody_elses_loop():
    (code,) = (block for block in blocks("python") if "class MyTransformer" in block)
    body = code[code.index("class ") : code.index("out = ")].strip()
    assert len(body.splitlines()) <= 15


def test_links_and_files_exist(subtests):
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)]+)\)", prose) + re.findall(r"`(tests/[^`]+)`", COMPATIBILITY)
    for target in targets:
        with subtests.test(target=target):
            if not target.startswith("http"):
                assert (ROOT / target).exists(), target


@pytest.mark.parametrize(
    "command", re.findall(r"^dar-probe (\w+)", "\n".join(blocks("bash")), re.M)
)
def test_commands_exist(command):
    from dar_probe.cli import app

    assert command in {c.name for c in app.registered_commands}


def test_thresholds_are_those_of_the_code():
    from dar_probe.results.verdict import Thresholds

    limits = Thresholds()
    for name in ("inflation", "gradient_decay", "redundancy"):
        row = rf"^\| {name.replace('_', ' ')} \| [^|]+ \| above ([\d.]+) \| above ([\d.]+) \|"
        (found,) = re.findall(row, README, re.MULTILINE)
        assert tuple(map(float, found)) == (
            getattr(limits, f"{name}_warn"),
            getattr(limits, f"{name}_fail"),
        )


def test_families_are_those_of_the_registry():
    """The table names what each family's title does; the option's help names them as typed."""
    from typer.main import get_command

    from dar_probe.cli import app
    from dar_probe.models.registry import FAMILIES

    table = COMPATIBILITY[COMPATIBILITY.index("| family | known by |") :].partition("\n\n")[0]
    rows = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)[1:]
    titles = [title for family in FAMILIES for title in family.title.split(", ")]
    assert sorted(rows) == sorted([*titles, "diffusers folder"]), "docs/reference/compatibility.md"
    for command in get_command(app).commands.values():
        for option in command.params:
            if option.name == "family":
                named = re.findall(r"[a-z]+(?=,)", option.help.partition(": ")[2])
                known = sorted(family.name for family in FAMILIES)
                assert sorted(named) == known, "the help of --family in cli/shared/options.py"


def test_transformers_of_diffusers_are_counted():
    from tests.models.diffusers import others, tiny

    more = len(others.OTHERS)
    assert f"carries {more} more of the library's transformers" in COMPATIBILITY
    classes = {name for name, *_ in tiny.MODELS.values()}
    assert f"and {len(classes) + more} transformers of diffusers" in README


def test_variables_are_those_of_the_schema():
    """Of what each measured number is: the table of the README has them all, and no other."""
    from dar_probe.results.schema import VARIABLES

    table = README[README.index("| `rms`, `grad_rms`, `cosine` | block |") :].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()]
    named = [name for row in rows for name in re.findall(r"`([a-z_0-9]+)`", row)]
    known = sorted(set(VARIABLES) - {"loss"} | ({"loss"} & set(named)))
    assert sorted(named) == known, "the README's table of what is measured"
