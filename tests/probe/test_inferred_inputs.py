"""Bare classes of transformers: inputs by their config."""

import numpy as np
import pytest
import torch
from torch import nn

import dar_probe as dp
from dar_probe.diffusion import data
from dar_probe.probe import inferred_inputs
from dar_probe.probe.module_plan import TARGET_SEED, mean_square, random_target, stand_in

transformers = pytest.importorskip("transformers")

SMALL = {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 16}
TEXT = {**SMALL, "vocab_size": 50, "intermediate_size": 32, "max_position_embeddings": 24}
END = {"bos_token_id": 1, "eos_token_id": 2}


def make(kind):
    torch.manual_seed(0)
    if kind == "GPT2LMHeadModel":
        config = transformers.GPT2Config(
            vocab_size=50, n_positions=24, n_embd=16, n_layer=3, n_head=2, **END
        )
        config.loss_type = "ForCausalLM"
        return transformers.GPT2LMHeadModel(config)
    if kind == "LlamaForCausalLM":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, **END))
    if kind == "ViTForImageClassification":
        config = transformers.ViTConfig(
            **SMALL, intermediate_size=32, image_size=16, patch_size=4, num_channels=2
        )
        return transformers.ViTForImageClassification(config)
    return getattr(transformers, kind)(transformers.BertConfig(**TEXT))


IDS, LEVELS = torch.tensor([3, 0, 7]), torch.zeros(3, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_language_models_are_judged_by_their_own_loss(kind):
    model = make(kind).eval()
    inputs = inferred_inputs.find(model)
    args, kwargs = inputs.batch(IDS, LEVELS)
    ids = kwargs["input_ids"]
    assert args == () and ids.shape == (3, 12) and kwargs["use_cache"] is False
    assert 0 <= int(ids.min()) and int(ids.max()) < 50
    alone = inputs.batch(IDS[1:2], LEVELS[:1])[1]["input_ids"]
    assert torch.equal(ids[1:2], alone)
    losses = inputs.loss(model(**kwargs), IDS, LEVELS)
    for row, found in zip(ids, losses, strict=True):
        own = model(input_ids=row[None], labels=row[None]).loss
        torch.testing.assert_close(found, own, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_language_models_are_audited_before_and_after_training(kind):
    analysis = dp.audit(make(kind), samples=3, train_steps=2)
    assert analysis.dataset.sizes["block"] == 4 and analysis.dataset.sizes["noise_level"] == 1
    assert analysis.before.loss.value == pytest.approx(np.log(50), rel=0.02)
    assert any("next-token" in text for text in analysis.manifest["assumptions"])
    assert analysis.manifest["data"]["name"] == "random tokens"


def test_vision_models_get_images_of_their_size():
    model = make("ViTForImageClassification")
    inputs = inferred_inputs.find(model)
    assert inputs.batch(IDS, LEVELS)[1]["pixel_values"].shape == (3, 2, 16, 16)
    assert inputs.loss is None
    analysis = dp.audit(model, samples=3)
    assert analysis.dataset.sizes["block"] == 4
    assert (
        "no loss was given: the mean square of the output stands in"
        in (analysis.manifest["assumptions"])
    )
    with pytest.raises(dp.UsageError, match="takes a loss"):
        dp.audit(model, samples=3, train_steps=2)


def test_encoders_get_tokens_and_a_loss_with_a_gradient():
    model = make("BertModel").eval()  # its output is normed: the mean square is a constant
    inputs = inferred_inputs.find(model)
    assert inputs.loss is None
    assert stand_in(model, inputs.batch, 0.0) is random_target
    head = make("ViTForImageClassification").eval()
    assert stand_in(head, inferred_inputs.find(head).batch, 0.0) is mean_square
    with torch.no_grad():
        losses = random_target(model(*(), **inputs.batch(IDS, LEVELS)[1]), IDS, LEVELS)
    assert float(losses.std()) > 0.1


def test_a_subclass_is_known_by_its_ancestors():
    class Mine(transformers.BertModel):
        pass

    assert inferred_inputs.find(Mine(transformers.BertConfig(**TEXT))) is not None


def test_other_modules_and_parts_of_models_are_not_known():
    model = make("BertModel")
    assert inferred_inputs.find(nn.Linear(2, 2)) is None
    assert inferred_inputs.find(model.embeddings) is None
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2)
    assert inferred_inputs.find(transformers.T5ForConditionalGeneration(config)) is None
    with pytest.raises(dp.UsageError, match="Linear came without a batch function"):
        dp.audit(nn.Linear(2, 2))


def test_the_random_target_is_each_samples_own_and_no_input():
    out = torch.zeros(3, 4, 5)
    target = data.noise(IDS, (4, 5), seed=TARGET_SEED)
    torch.testing.assert_close(random_target(out, IDS, LEVELS), target.square().mean((1, 2)))
    alone = random_target(out[2:], IDS[2:], LEVELS[2:])
    assert torch.equal(random_target({"x": out}, IDS, LEVELS)[2:], alone)
    normed = nn.functional.layer_norm(torch.randn(3, 4, 5, requires_grad=True), (5,))
    (slope,) = torch.autograd.grad(random_target(normed, IDS, LEVELS).sum(), normed)
    assert float((slope - slope.mean(2, keepdim=True)).abs().min()) > 0
