"""A module that compiles a part of itself in its forward is measured eager, as any other."""

import subprocess
import sys

SCRIPT = """
import sys
import torch
from torch import nn
import dar_probe as dp


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.branch, self.run = nn.LayerNorm(8), nn.Linear(8, 8), None

    def forward(self, x):
        if self.run is None:
            self.run = torch.compile(lambda x: self.branch(self.norm(x)), backend=refuse)
        return x + self.run(x)


def refuse(graph, inputs):
    raise SystemExit("it was compiled")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.norm = nn.ModuleList(Block() for _ in range(3)), nn.LayerNorm(8)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def batch(ids, level):
    draws = [torch.Generator().manual_seed(int(i)) for i in ids]
    return (torch.stack([torch.randn(4, 8, generator=draw) for draw in draws]),), {}


assert "torch._dynamo" not in sys.modules
print(dp.audit(Model(), batch=batch, samples=2).dataset.sizes["block"])
"""


def test_what_is_compiled_in_the_forward_runs_eager(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4\n"
