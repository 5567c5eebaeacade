"""TensorBoard scalars of a run: the table's own, each step once, also after a kill."""

import csv
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from dar_probe.cli import app
from dar_probe.errors import UsageError
from dar_probe.training import loop
from tests.training.test_loop import SMALL


def scalars(folder):
    """Return (step, value) of every scalar, as TensorBoard itself reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {
        name: [(event.step, event.value) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


def test_scalars_are_those_of_the_table_and_no_step_is_there_twice(tmp_path):
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"

    class Killed(Exception):
        pass

    def kill(at):
        def on_step(progress):
            if progress.step == at:
                raise Killed

        return on_step

    for at in (1, 3, 5):  # before the first checkpoint, and after those of 2 and 4
        with pytest.raises(Killed):
            loop.train(SMALL, out, resume=True, tensorboard=True, on_step=kill(at))
    loop.train(SMALL, out, resume=True, tensorboard=True)
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = scalars(out / "tensorboard")
    assert set(found) == {"loss", "lr", "grad_norm", "val_loss"}
    for name, values in found.items():
        wanted = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        assert [step for step, _ in values] == [step for step, _ in wanted]
        assert [v for _, v in values] == pytest.approx([v for _, v in wanted], rel=1e-6)
    files = sorted((out / "tensorboard").iterdir())
    loop.train(SMALL, out, resume=True, tensorboard=True)  # has nothing to do
    assert sorted((out / "tensorboard").iterdir()) == files
    with pytest.raises(UsageError, match="not empty"):
        loop.train(SMALL, out, tensorboard=True)


def test_without_the_package_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UsageError, match="needs the package tensorboard") as caught:
        loop.train(replace(SMALL, steps=1), tmp_path / "run", tensorboard=True)
    assert "dar-probe[tensorboard]" in caught.value.hint and caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()
    done = CliRunner().invoke(app, ["train", "--out", str(tmp_path / "run"), "--tensorboard"])
    assert done.exit_code == 2 and "pip install" in done.output
    assert "Traceback" not in done.output
