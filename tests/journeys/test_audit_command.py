"""Auditing a new architecture from the command line, as a person and as a CI job do."""

import json
from xml.etree import ElementTree

import pytest

from dar_probe.analysis import open_analysis
from tests.helpers.shell import run, without_progress

FACTORY = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))

class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(4, 16), nn.LayerNorm(16)
        self.blocks = nn.ModuleList(Block() for _ in range(6))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

def clean(ids):
    rows = [torch.randn(8, 1, generator=torch.Generator().manual_seed(int(i))) for i in ids]
    return torch.stack(rows).expand(-1, -1, 4)

def noise(ids):
    rows = [torch.randn(8, 4, generator=torch.Generator().manual_seed(-1 - int(i))) for i in ids]
    return torch.stack(rows)

def batch(ids, level):
    s = level.float()[:, None, None]
    return ((1 - s) * clean(ids) + s * noise(ids),), {}

def loss(output, ids, level):
    return (output - clean(ids)).square().mean((1, 2))

def denoiser():
    torch.manual_seed(0)
    return Denoiser(), batch, loss
"""

GRID = ["--noise-levels", "0.2,0.8", "--samples", "4"]
TRAINED = ["--train-steps", "100", "--lr", "0.01"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mine")
    (path / "mine.py").write_text(FACTORY)
    return path


def outcomes(path):
    suite = ElementTree.parse(path).getroot()[0]
    kinds = ("failure", "skipped")
    return {
        case.get("name"): next((k for k in kinds if case.find(k) is not None), "passed")
        for case in suite
    }


def test_an_untrained_module_is_told_so(folder):
    done = run("audit", "mine:denoiser", *GRID, "--junit", "ci/one.xml", cwd=folder, light=True)
    assert done.returncode == 0, done.stderr
    assert "UNTRAINED" in done.stdout and "before" not in done.stdout
    found = outcomes(folder / "ci" / "one.xml")
    assert found["inflation"] == found["redundancy"] == "skipped"
    assert "failure" not in found.values()


def test_training_shows_before_and_after(folder):
    command = ["audit", "mine:denoiser", *GRID, *TRAINED, "--junit", "two.xml", "--out", "two"]
    done = run(*command, "--fail-on", "inflation > 0", cwd=folder)
    assert done.returncode == 1, done.stderr  # the rule is about the trained copy
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80 and without_progress(done.stderr) == ""
    (head,) = (line for line in lines if line.split() == ["before", "after"])
    below = lines[lines.index(head) + 1 :]
    assert [line.split()[0] for line in below[:5]] == [
        "verdict", "RMS", "gradient", "redundancy", "loss",
    ]  # fmt: skip
    summary = json.loads((folder / "two" / "summary.json").read_text())
    assert summary["training"]["steps"] == 100
    assert summary["loss"]["value"] < 0.9 * summary["before"]["loss"]["value"]
    kept = open_analysis(folder / "two")
    assert float(kept.before.dataset["write_rms"].max()) == 0
    assert float(kept.dataset["write_rms"].min()) > 0
    found = outcomes(folder / "two.xml")
    assert found.pop("fail on inflation > 0") == "failure"
    assert "failure" not in found.values()


def test_in_another_number_type(folder):
    """The batch function and the loss know of float32 alone."""
    found = {}
    for spelled, name in (("fp64", "float64"), ("float", "float32"), ("bf16", "bfloat16")):
        command = ["audit", "mine:denoiser", *GRID, "--dtype", spelled, "--device", "cpu"]
        done = run(*command, "--out", name, cwd=folder, light=True)
        assert done.returncode == 0, done.stderr
        analysis = open_analysis(folder / name)
        assert analysis.manifest["dtype"] == name
        found[name] = analysis.dataset["rms"].values
    for name, most in (("float32", 1e-6), ("bfloat16", 0.02)):  # measured: 6e-8, 3e-3
        gap = abs(found[name] - found["float64"]).max() / found["float64"].max()
        assert 0 < gap < most


def test_a_bare_class_of_transformers(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "language.py").write_text(
        "import transformers as t\n"
        "def small():\n"
        "    return t.LlamaForCausalLM(t.LlamaConfig(vocab_size=50, hidden_size=16,\n"
        "        intermediate_size=32, num_hidden_layers=3, num_attention_heads=2))\n"
    )
    done = run("audit", "language:small", "--samples", "3", "--json", cwd=tmp_path, light=True)
    assert done.returncode in (0, 1), done.stderr
    summary = json.loads(done.stdout)
    assert any("random token ids" in text for text in summary["assumptions"])
