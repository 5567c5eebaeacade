"""REPA in the trainer: the term, the encoders, and that runs stay exact."""

import csv
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dar_probe.diffusion import data as datasets
from dar_probe.errors import UsageError
from dar_probe.models.loading import load_checkpoint as load_subject
from dar_probe.models.options import CheckpointOptions
from dar_probe.models.sit import SiT
from dar_probe.training import repa
from dar_probe.training.loop import train
from tests.training.test_loop import SMALL, load, same

REPA = replace(SMALL, repa_depth=1, repa_width=24, steps=4)


def test_the_term_is_minus_the_mean_cosine_of_tokens():
    one, two = torch.randn(2, 3, 16, 5, generator=torch.Generator().manual_seed(0))
    for n in range(3):
        cosines = [
            float(a @ b / (a.norm() * b.norm())) for a, b in zip(one[n], two[n], strict=True)
        ]
        assert float(repa.misalignment(one, two)[n]) == pytest.approx(-sum(cosines) / 16, rel=1e-5)
    fine = two.transpose(1, 2).unflatten(2, (4, 4)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    coarse = repa.misalignment(two, fine.flatten(2).transpose(1, 2))
    assert coarse.tolist() == pytest.approx([-1.0] * 3, rel=1e-5)


def test_the_digits_encoder_tells_digits_apart():
    data = datasets.load_data("digits", split="held-out")
    tokens = repa.encoder("digits")(data.latents)
    assert tokens.shape == (257, 16, 48) and not tokens.requires_grad
    pooled = F.normalize(tokens.mean(1), dim=1)
    alike = (pooled @ pooled.T).fill_diagonal_(-1).argmax(1)
    assert (data.labels[alike] == data.labels).double().mean() > 0.9


@pytest.mark.parametrize("routing", ["residual", "dar"])
@pytest.mark.parametrize("depth", [1, 2])
def test_tokens_after_a_block_are_what_the_next_reads(routing, depth):
    config = replace(REPA, routing=routing, repa_depth=depth)
    model = SiT(
        config.model(in_channels=1, input_size=8, num_classes=10, projectors=(48,))
    )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    read = []
    norm = model.blocks[depth].norm1 if depth < 2 else model.final_layer.norm_final
    norm.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    x, t, y = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([1, 2])
    out, projected = model(x, t, y, project_after=depth)
    assert torch.equal(projected, model.projectors[0](read[0])) and len(read) == 1
    assert torch.equal(out, model(x, t, y))


def test_a_run_aligns_and_a_resumed_one_has_the_same_bits(tmp_path):
    whole = train(REPA, tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        train(REPA, tmp_path / "cut", on_step=lambda p: 1 / (3 - p.step))
    assert same(load(train(REPA, tmp_path / "cut", resume=True)), load(whole))
    tables = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "cut")]
    assert tables[0] == tables[1]
    state = load(whole)["model"]
    shapes = [tuple(state[f"projectors.0.{i}.weight"].shape) for i in (0, 2, 4)]
    assert shapes == [(24, 16), (24, 24), (48, 24)]
    loaded = load_subject(CheckpointOptions(path=whole))
    assert loaded.objective.name == "sit"  # projectors mean REPA's clock in foreign files alone
    longer = replace(REPA, steps=60, lr=3e-3)
    train(longer, tmp_path / "longer")
    with (tmp_path / "longer" / "metrics.csv").open() as file:
        rows = [float(row["repa_loss"]) for row in csv.DictReader(file)]
    assert rows[-1] < rows[0] - 0.1


def test_parts_of_a_batch_add_up(tmp_path):
    one, two = (load(train(replace(REPA, accumulate=n), tmp_path / str(n))) for n in (1, 3))
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder", ["clip", "file.txt"])
def test_what_is_no_encoder(tmp_path, encoder):
    with pytest.raises(UsageError, match="there is no image model"):
        train(replace(REPA, repa_encoder=str(tmp_path / encoder)), tmp_path / "run")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="no image model that takes"):
        pytest.importorskip("transformers")
        repa.encoder(str(tmp_path / "folder"))


def test_a_local_folder_is_an_encoder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / "dino")
    tokens = repa.encoder(str(tmp_path / "dino"))(torch.randn(2, 1, 8, 8))
    assert tokens.shape == (2, 4, 16)
    train(replace(REPA, steps=1, repa_encoder=str(tmp_path / "dino")), tmp_path / "run")
