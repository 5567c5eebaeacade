"""What forks of SiT, DiT and REPA write: heads of training, their clock, and parts of their own."""

import argparse

import pytest
import torch

from dar_probe.errors import CheckpointError
from dar_probe.models.inspection import survey
from dar_probe.models.loading import load_checkpoint
from dar_probe.models.options import CheckpointOptions
from tests.hostile import builders

D, Z = 8, 5
REPA = {"path_type": "linear", "prediction": "v", "num_classes": 10, "cfg_prob": 0.1}
# Names and shapes of heads that look at a hidden state in training alone.
AP_HEAD = {"ap_head.linear1.weight": (2 * D, D), "ap_head.linear1.bias": (2 * D,),
           "ap_head.linear2.weight": (D, 2 * D), "ap_head.linear2.bias": (D,)}  # fmt: skip
ONE = {"projector.0.weight": (7, D), "projector.2.weight": (7, 7), "projector.4.weight": (Z, 7)}
INNER = "projectors.0.projection_layer"
CONV = {f"{INNER}.weight": (Z, D, 3, 3), f"{INNER}.bias": (Z,)}
MLP = {f"{INNER}.{k}.weight": shape for k, shape in zip((0, 2, 4), ONE.values(), strict=True)}
HEADS = {
    "iREPA by a convolution": (CONV, False, None, "repa", "projectors are there"),
    "iREPA by an MLP": (MLP, False, REPA, "repa", "projectors are there"),
    "SRA": (AP_HEAD, False, REPA, "repa", "the settings name the prediction 'v'"),
    "SRA alone": (AP_HEAD, False, None, "repa", "SRA's ap_head is there"),
    "SRA's DiT": (AP_HEAD, True, {"model": "DiT-B/2", "num_classes": 10}, "dit", ""),
    "SRA's DiT alone": (AP_HEAD, True, None, "dit", "SRA's ap_head and learned variances"),
    "ReDi with REPA's loss": (ONE, True, {"model": "SiT-B/2"}, "sit", "a plain SiT/DiT layout"),
}


def saved(path, extra, *, sigma=False, args=None):
    """A file of SiT's layout with more in it, and the weights of that layout alone."""
    weights = builders.official_state(width=D, sigma=sigma)
    state = weights | {name: torch.ones(shape) for name, shape in extra.items()}
    content = state if args is None else {"ema": state, "args": argparse.Namespace(**args)}
    torch.save(content, path)
    return CheckpointOptions(path=path, heads=2), weights


@pytest.mark.parametrize("name", HEADS)
def test_a_head_of_training_is_left_out_and_said(tmp_path, name):
    extra, sigma, args, objective, why = HEADS[name]
    options, weights = saved(tmp_path / "x.pt", extra, sigma=sigma, args=args)
    loaded = load_checkpoint(options)
    found = loaded.model.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], value) for key, value in weights.items())
    assert loaded.objective.name == objective
    said = " ".join(loaded.assumptions)
    assert why in said
    part = next(iter(extra)).partition(".")[0]
    assert f"{part!r} is a head that only training uses: the model is built without it" in said
    assert survey(options).objective == objective


def test_the_prediction_v_is_of_the_trainers_whose_time_runs_with_the_noise(tmp_path):
    """REPA and its forks call it so; SiT's own settings say velocity, and their time runs back."""
    options, _ = saved(tmp_path / "v.pt", {}, args=REPA)
    assert load_checkpoint(options).objective.name == "repa"
    assert "the settings name the prediction 'v'" in survey(options).assumptions[0]
    own = {**REPA, "path_type": "Linear", "prediction": "velocity"}
    options, _ = saved(tmp_path / "velocity.pt", {}, args=own)
    assert load_checkpoint(options).objective.name == "sit"
    options, _ = saved(tmp_path / "cosine.pt", {}, args={**REPA, "path_type": "cosine"})
    assert load_checkpoint(options).objective.name == "repa:gvp:velocity"


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"beta_embedder.mlp.0.weight": (D, 256)}, "is unexpected, part of an embedding of"),
        ({"t_embedder.cond_proj.weight": (256, 512)}, "an embedding of the guidance, as in GFT"),
        ({"dt_embedder.mlp.0.weight": (D, 256)}, "an embedding of a second time or of the step"),
        ({"blocks.0.cross_attn.q.weight": (D, D)}, "'blocks.1.cross_attn.q.weight' is missing"),
        ({"register_tokens": (1, 4, D)}, "register tokens: without it this is another model"),
        ({"pos_embed": (1, 17, D), "cls_projectors2.weight": (D, 768)},
         "'cls_projectors2.weight' is unexpected, part of a class token beside the image's, as in"),
        ({"pos_embed": (1, 17, D)}, "no square grid of tokens: 'pos_embed' has 17 of them"),
    ],
)  # fmt: skip
def test_a_model_with_one_part_more_is_refused_and_the_part_named(tmp_path, extra, said):
    saved(tmp_path / "x.pt", extra)
    with pytest.raises(CheckpointError) as caught:  # before anybody is asked for its heads
        load_checkpoint(CheckpointOptions(path=tmp_path / "x.pt"))
    assert said in str(caught.value)


def test_a_part_that_nobody_knows_is_refused(tmp_path):
    options, _ = saved(tmp_path / "x.pt", {"projector.weight": (D, D)})
    for asked in (options, CheckpointOptions(path=options.path)):  # also before it is asked for
        with pytest.raises(CheckpointError, match="is unexpected: without it this is another"):
            load_checkpoint(asked)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("0400000.pt", "the file does not say whether its weights are averaged"),
        ("net-EMA.ckpt", "by the file's name its weights are averaged (EMA)"),
        ("ema_0.9999_400000.pt", "by the file's name its weights are averaged (EMA)"),
        ("remade.pt", "the file does not say whether its weights are averaged"),
    ],
)
def test_a_name_that_says_so_is_believed_of_an_average(tmp_path, name, wanted):
    options, weights = saved(tmp_path / name, {})
    assert wanted in survey(options).assumptions[0]
    torch.save({"model": weights}, tmp_path / name)
    assert ("averaged" in survey(options).assumptions[0]) == ("by" in wanted)
    torch.save({"model": weights, "ema": weights}, tmp_path / name)
    raw = survey(CheckpointOptions(path=tmp_path / name, heads=2, weights="model"))
    assert not any("averaged" in said for said in raw.assumptions)
