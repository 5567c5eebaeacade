"""Sources taken from readers of fused and staged models, against the same done by hand."""

import numpy as np
import pytest
import torch

import dar_probe as dp
from dar_probe.errors import UsageError
from dar_probe.models import loading
from dar_probe.models.options import CheckpointOptions
from tests.models import check, files

LEVELS = [0.2, 0.7]
ROWS = 2
# Reader and source by name: a skip, positions, a new stage or stream, an embedding behind fusions.
GATES = {
    "U-ViT latent": [("block 5 attention", "block 5 fusion"), ("head", "embedding")],
    "MDTv2": [("block 6 mlp", "decoder position fusion"), ("head", "block 1 attention")],
    "Latte": [("block 3 attention", "temporal position fusion"), ("head", "block 1 attention")],
    "U-DiT": [("block 3 attention 1", "block 2 fusion"), ("head", "block 6 mlp 2"),
              ("block 1 mlp 2", "embedding")],
    "DDT": [("block 3 mlp", "decoder embedding"), ("head", "block 3 attention"),
            ("block 2 attention", "embedding")],
    "MaskDiT": [("block 3 mlp", "decoder fusion"), ("head", "block 3 mlp")],
}  # fmt: skip


def by_hand(subject, inputs, loss, reader, source):
    """The change of the loss when one reader gets its read without one source."""
    observed = check.observe(subject, inputs)  # up to the reader nothing changes
    site = subject.readers[reader]

    def hook(module, args):
        return (check.add(args[0], -observed.values[source], site.view), *args[1:])

    handle = site.module.register_forward_pre_hook(hook)
    with torch.no_grad():
        changed = loss(subject.model(*inputs))
    handle.remove()
    return changed - loss(observed.output)


@pytest.mark.parametrize("case", GATES)
def test_a_gate_at_zero_is_what_is_done_by_hand(case, tmp_path):
    file = files.write(case, tmp_path)
    loaded = loading.load_checkpoint(
        CheckpointOptions(path=file.path, heads=file.heads, dtype="float64")
    )
    loaded.model.requires_grad_(False)
    subject = loaded.subject
    readers = [reader.name for reader in subject.readers]
    sources = [source.name for source in subject.sources]
    gates = [(readers.index(reader), sources.index(source)) for reader, source in GATES[case]]
    ds = dp.ablate(
        file.path, data=file.data, dtype="float64", noise_levels=LEVELS, samples=ROWS,
        heads=file.heads, kinds=[], gates=[(reader + 1, source) for reader, source in gates],
    ).dataset  # fmt: skip
    assert ds["ablation_name"].values.tolist() == [f"{r} without {s}" for r, s in GATES[case]]
    for row, s in enumerate(LEVELS):
        _, inputs, loss = files.problem(file, s, ROWS)
        for column, (reader, source) in enumerate(gates):
            expected = by_hand(subject, inputs, loss, reader, source)
            found = torch.from_numpy(ds["gate_ablated"].values[row, :, column])
            assert float(expected.abs().min()) > 1e-6  # something happens
            assert check.each(found, expected) < 3e-11  # measured: 3e-12
            linear = -ds["gate"].values[row, :, reader, source]
            np.testing.assert_allclose(ds["gate_linear"].values[row, :, column], linear, rtol=1e-13)


@pytest.mark.parametrize("case", ["U-ViT latent", "U-DiT"])
def test_blocks_that_cannot_be_skipped(case, tmp_path):
    file = files.write(case, tmp_path)
    settings = {"data": file.data, "noise_levels": [0.5], "samples": 1, "heads": file.heads}
    with pytest.raises(UsageError, match="no block can be skipped") as refused:
        dp.ablate(file.path, kinds=["block"], **settings)
    assert "--kinds gate,source" in refused.value.hint
    ds = dp.ablate(file.path, pairs=2, **settings).dataset
    assert set(ds["ablation_kind"].values) == {"gate", "source"}
    names = [str(name) for name in ds["ablation_name"].values]
    # The last write of a stage goes into the step between stages: no reader could do without it.
    assert "without block 1 mlp 2" not in names
    assert "without embedding" in names
