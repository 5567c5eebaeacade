"""A family of somebody's own: that of the docs, in one file, used as a person would."""

import json

import numpy as np
import pytest
import torch

import dar_probe as dp
from dar_probe.models import loading
from dar_probe.models.options import CheckpointOptions
from tests.docs.test_pages import DOCS, blocks
from tests.helpers.shell import run, without_progress
from tests.models import check, files

GRID = ["--noise-levels", "0.2,0.7", "--samples", "3"]
SIZES = {"depth": 2, "width": 12, "heads": 2, "channels": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with mine.py, mine.pt and data, in which a person works."""
    path = tmp_path_factory.mktemp("own")
    page = DOCS / "how-to" / "add-a-family.md"
    (code,) = (block for block in blocks(page, "python") if "FAMILY = Family(" in block)
    (path / "mine.py").write_text(code, encoding="utf-8")
    scope = {}
    exec(compile(code, "mine.py", "exec"), scope)
    shapes = {k: tuple(v.shape) for k, v in scope["Mine"](**SIZES).state_dict().items()}
    weights = {k: v.float() for k, v in check.random_state(shapes).items()}
    check.save(path / "mine.pt", weights)
    rows = np.random.default_rng(1).standard_normal((3, 3, 8, 8), dtype=np.float32)
    np.savez(path / "data.npz", latents=rows, labels=np.zeros(3, dtype=np.int64))
    return path


def slowly(layer, x):
    """What the layer says that it does, without torch's fast path around its parts."""
    x = x + layer._sa_block(layer.norm1(x), None, None)
    return x + layer._ff_block(layer.norm2(x))


def type_in(folder, command, *more, family="mine:FAMILY", heads=("--heads", "2")):
    return run(command, "mine.pt", "--family", family, *heads, *more, cwd=folder, light=True)


def test_analyze(folder, monkeypatch):
    done = type_in(folder, "analyze", "--data", "latents:data.npz", *GRID, "--out", "analysis")
    assert done.returncode == 0, done.stderr
    assert without_progress(done.stderr) == "" and "images of 8 x 8" in done.stdout
    ds = dp.open_analysis(folder / "analysis").dataset
    monkeypatch.syspath_prepend(folder)
    loaded = loading.load_checkpoint(
        CheckpointOptions(path=folder / "mine.pt", heads=2, family="mine:FAMILY", dtype="float64")
    )
    loaded.model.requires_grad_(False)
    latents = torch.from_numpy(np.load(folder / "data.npz")["latents"]).double()
    file = files.File(
        path=folder / "mine.pt", family="mine", clock="sit", heads=2, latents=latents,
        labels=torch.zeros(3, dtype=torch.int64),
    )  # fmt: skip
    monkeypatch.setattr(torch.nn.TransformerEncoderLayer, "forward", slowly)
    for row, s in enumerate((0.2, 0.7)):
        _, inputs, loss = files.problem(file, s, 3)
        expected = check.reference(loaded.subject, inputs, loss)
        for name in ("loss", "rms", "grad_rms", "cosine", "write_rms"):
            found = torch.from_numpy(ds[name].values[row]).double()
            assert check.each(found, expected[name]) < 1e-6, name  # measured: 2e-7


def test_a_model_without_classes_needs_no_labels(folder):
    np.savez(folder / "bare.npz", latents=np.load(folder / "data.npz")["latents"])
    found = []
    for name in ("bare", "data"):
        rows = f"latents:{name}.npz"
        done = type_in(folder, "analyze", "--data", rows, *GRID, "--out", f"of-{name}")
        assert done.returncode == 0, done.stderr
        found.append(dp.open_analysis(folder / f"of-{name}").dataset)
    for name in ("rms", "gate", "loss"):
        np.testing.assert_array_equal(found[0][name].values, found[1][name].values)


def test_the_other_commands(folder):
    done = type_in(folder, "inspect", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["family"] == "mine"
    done = type_in(
        folder, "ablate", "--data", "latents:data.npz", *GRID, "--gate", "3:1", "--out", "ablation"
    )
    assert done.returncode == 0, done.stderr
    names = dp.open_analysis(folder / "ablation").dataset["ablation_name"].values
    assert names[0] == "block 2 attention without block 1 attention"
    done = type_in(folder, "bench", "--repeats", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["depth"] == 2


WRONG = """
from mine import FAMILY as GOOD
from dataclasses import replace

number = 3
BAD_IDENTIFY = replace(GOOD, identify=lambda header, heads: header.nothing)
BAD_BUILD = replace(GOOD, build=lambda found: GOOD.build(found).layers)
BAD_SITES = replace(GOOD, subject=lambda model, found: model.nothing)
"""


@pytest.mark.parametrize(
    ("family", "code", "words"),
    [
        ("nobody", 2, "unknown family 'nobody'"),
        ("nobody:FAMILY", 2, "cannot be imported: ModuleNotFoundError: No module named 'nobody'"),
        ("mine:NOTHING", 2, "cannot be imported: AttributeError"),
        (":FAMILY", 2, "cannot be imported: ValueError"),
        ("wrong:number", 2, "'wrong:number' is a int, not a dar_probe Family"),
        ("wrong:BAD_IDENTIFY", 2, "'identify' of the family 'wrong:BAD_IDENTIFY' failed"),
        ("wrong:BAD_BUILD", 3, "'0.self_attn.in_proj_weight' is missing"),
        ("wrong:BAD_SITES", 2, "'subject' of the family 'wrong:BAD_SITES' failed"),
        ("udit", 3, "'x_embedder.proj.weight' is missing"),
    ],
)
def test_a_wrong_family_is_one_sentence(folder, family, code, words):
    (folder / "wrong.py").write_text(WRONG, encoding="utf-8")
    done = type_in(folder, "inspect", family=family)
    assert done.returncode == code, done.stderr
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_sites_that_are_named_wrongly_are_refused(folder):
    code = (folder / "mine.py").read_text().replace("layer.dropout2", "layer.dropout1")
    (folder / "swapped.py").write_text(code, encoding="utf-8")
    data = ["--data", "latents:data.npz", *GRID, "--out", "no"]
    done = type_in(folder, "analyze", *data, family="swapped:FAMILY")
    assert done.returncode == 3, done.stderr
    assert "what 'block 1 mlp' adds to the stream differs" in " ".join(done.stderr.split())
