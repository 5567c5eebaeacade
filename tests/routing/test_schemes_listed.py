"""A routing scheme is one file: everything that names schemes reads what its class registers."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
from typer.main import get_command

from dar_probe.cli import app
from dar_probe.results import schema
from dar_probe.routing import make, schemes, stream
from dar_probe.routing.stream import Layout, class_of, options_of, scheme_of
from dar_probe.training.config import TrainConfig
from tests.helpers.shell import ROOT

ADDED = '''"""A scheme that nobody has heard of."""

from dar_probe.routing.residual import Residual
from dar_probe.routing.stream import Layout, register


@register(
    "nineteenth",
    title="the nineteenth way",
    about="the sum of all earlier outputs, once more",
    options=("streams",),
)
class Nineteenth(Residual):
    """x = x + v_l."""

    def __init__(self, width: int, layout: Layout, *, streams: int = 4) -> None:
        super().__init__(width, layout)
'''
USE = """
from pathlib import Path
import dar_probe as dp
from dar_probe.routing import schemes
from dar_probe.study import plan
from dar_probe.training.config import TrainConfig
from dar_probe.training.loop import train
print(schemes.table())
print([run.name for run in plan.runs(plan.scale_of("digits"), only=["nineteenth"])])
config = TrainConfig(
    routing="nineteenth", streams=2, depth=2, width=16, steps=1, batch_size=4, warmup=0,
    validation_samples=4,
)
dp.analyze(train(config, Path("run")), noise_levels=2, samples=2, out="out")
"""


def test_the_table_lists_exactly_the_schemes():
    rows = re.findall(r"^\| `([^`]+)` ", schemes.table(), re.MULTILINE)
    assert rows == list(schemes.known()) and len(rows) > 20


@pytest.mark.parametrize("name", list(schemes.known()))
def test_the_source_tells_what_the_class_has(name):
    """The texts are read without importing the class; importing it must give the same."""
    scheme, cls = schemes.known()[name], class_of(name)
    assert cls.__module__ == schemes.home_of(name)
    assert cls.scheme == scheme == scheme_of(name) and cls.scalar == scheme.routes
    taken = [o for o in schemes.ALL_OPTIONS if o in inspect.signature(cls).parameters]
    assert sorted(taken) == sorted(scheme.options)
    assert set(options_of(name)) == set(taken) - set(schemes.OF_THE_START)


def test_a_scheme_must_register_the_options_that_it_takes():
    with pytest.raises(AssertionError, match="chunk_size"):

        @stream.register("wrong", title="wrong", about="nothing", options=("query",))
        class Wrong(stream.Stream):
            def __init__(self, width, layout, *, query="static", chunk_size=4):
                super().__init__(width, layout)

    with pytest.raises(AssertionError, match="no colour"):
        schemes.Scheme(name="wrong", title="wrong", about="nothing", options=("colour",))


def test_an_unknown_scheme():
    assert class_of("odd") is scheme_of("odd") is schemes.home_of("odd") is None
    assert options_of("odd") == ()
    with pytest.raises(stream.UsageError) as error:
        make("odd", 4, Layout.transformer(1))
    assert error.value.hint == f"known: {', '.join(sorted(schemes.known()))}"


def test_train_names_every_setting_once():
    """The flags, and in the help those that only a TOML file holds."""
    command = get_command(app).commands["train"]
    flags = {parameter.name for parameter in command.params}
    settings = {field.name for field in fields(TrainConfig)}
    only = command.help[command.help.index("underscores;") :].partition(" can stand only there")[0]
    named = set(re.findall(r"[a-z_]+", only)) - {"underscores", "and"}
    assert named == settings - flags
    assert flags - settings == {"out", "config", "device", "tensorboard", "resume"}


def test_a_new_scheme_is_one_file(tmp_path):
    for folder in ("dar_probe", "cli", "reports", "fixtures"):
        keep = shutil.ignore_patterns("*.pt", "__pycache__", "gallery")
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=keep)
    (tmp_path / "dar_probe" / "routing" / "nineteenth.py").write_text(ADDED, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "300"}

    def python(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = " ".join(python("-m", "dar_probe.cli", "train", "--help").replace("│", " ").split())
    assert ", nineteenth," in shown and "mhc-lite, nineteenth: number of parallel" in shown
    told = python("-c", USE)
    row = "| `nineteenth` | the sum of all earlier outputs, once more | `streams` | yes |"
    assert row in told and "['nineteenth-seed0']" in told
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "routing: the nineteenth way" in page
    assert "the sum of all earlier outputs, once more" in page


def test_an_older_file_keeps_the_scheme_s_own_name():
    from dar_probe.reports.pages import headline
    from tests.helpers import synthetic

    model = schema.manifest(synthetic.dataset(blocks=2, routing="dar"))["model"]
    assert "routing_title" not in model and headline.routing_title(model) == "dar"
    assert headline.routing_title({**model, "routing_title": "DAR"}) == "DAR"
    assert headline.routing_title({}) == ""
