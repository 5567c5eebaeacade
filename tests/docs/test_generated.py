"""Tables of the reference are made from the code: all that there is, and nothing that is not."""

import re
import sys
from pathlib import Path

import pytest

from dar_probe import errors
from dar_probe.cli import app
from dar_probe.cli.shared import error_sentences as shown
from dar_probe.errors import CheckpointError, ExitCode, anchor, raised_in
from dar_probe.results.schema import VARIABLES
from dar_probe.routing import schemes
from dar_probe.training.settings import TrainSettings
from tests.helpers.shell import run

EXTENSIONS = Path(__file__).resolve().parents[2] / "docs" / "_ext"


@pytest.fixture(scope="module")
def made():
    """The modules that make the tables, by name."""
    sys.path.insert(0, str(EXTENSIONS))
    try:
        import catalogue
        import commands
        import tables

        yield {"tables": tables, "commands": commands, "catalogue": catalogue}
    finally:
        sys.path.remove(str(EXTENSIONS))
        for name in ("tables", "commands", "catalogue"):
            sys.modules.pop(name, None)


def first_cells(table):
    return [line.split("|")[1].strip(" `") for line in table.splitlines()[2:] if line]


def test_exit_codes(made):
    assert first_cells(made["tables"].exit_codes()) == [str(int(code)) for code in ExitCode]


def test_schemes(made):
    assert first_cells(made["tables"].schemes()) == list(schemes.known())
    assert len(schemes.known()) > 20


def test_settings(made):
    from dataclasses import fields

    table = made["tables"].settings()
    assert first_cells(table) == [field.name for field in fields(TrainSettings)]
    assert all(re.search(r"\w[)]?\.", line) for line in table.splitlines()[2:])  # each is explained


def test_thresholds(made):
    from dar_probe.results.verdict import Thresholds

    limits, table = Thresholds(), made["tables"].thresholds()
    for name in ("inflation", "gradient_decay", "redundancy"):
        row = next(r for r in table.splitlines() if r.startswith(f"| {name.replace('_', ' ')} |"))
        found = tuple(map(float, re.findall(r"above ([\d.]+)", row)))
        assert found == (getattr(limits, f"{name}_warn"), getattr(limits, f"{name}_fail"))


def test_variables(made):
    assert re.findall(r"^## (\w+)$", made["tables"].variables(), re.M) == list(VARIABLES)


def test_commands(made):
    from typer.main import get_command

    text, group = made["commands"].reference(), get_command(app)
    assert re.findall(r"^## (\w+)$", text, re.M) == list(group.commands)
    parts = re.split(r"^## (\w+)$", text, flags=re.M)[1:]
    for name, part in zip(parts[::2], parts[1::2], strict=True):
        options = [o for o in group.commands[name].params if o.param_type_name == "option"]
        for option in options:
            assert f"`{option.opts[0]}`" in part or option.hidden, (name, option.name)


def test_every_error_has_an_address(made):
    """Whatever is raised with a sentence of its own stands on the page, below its module."""
    text = made["catalogue"].reference()
    sections = dict(
        re.findall(r"^\((error-[a-z0-9-]+)\)=\n(.*?)(?=^\(error-|\Z)", text, re.M | re.S)
    )
    source = Path(errors.__file__).parent
    for path in [*source.glob("checkpoints/*.py"), *source.glob("probe/*.py")]:
        raised = len(
            re.findall(r"raise (?:Usage|Checkpoint|Probe)Error\(\s*f?\"", path.read_text())
        )
        if raised:
            module = ".".join(path.relative_to(source).with_suffix("").parts)
            assert "(exit code " in sections[f"{anchor(module)}-1"], module
    assert text.count("(exit code ") > 300 and len(sections) > 400


def test_an_error_knows_where_it_was_raised():
    from dar_probe.checkpoints.reader import read

    with pytest.raises(CheckpointError) as caught:
        read("nowhere.pt")
    assert raised_in(caught.value) == "files.kinds"
    assert raised_in(CheckpointError("of nobody")) == ""


def test_the_command_line_prints_the_address(made, tmp_path):
    done = run("analyze", "nowhere.pt", cwd=tmp_path)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 3 and last.startswith(f"More: {shown.PAGE}#error-files-kinds-")
    own = made["catalogue"].reference().partition(f"({last.partition('#')[2]})=")[2]
    assert own.strip().startswith("**there is no file …** (exit code 3)")
    assert len(last) <= 100
