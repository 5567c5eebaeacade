"""Every named class is callable as a denoising problem, each sample by itself."""

from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dar_probe.checkpoints import diffusers_folder
from dar_probe.errors import CheckpointError, ProbeError, UsageError
from dar_probe.models.diffusers import conditioning, inputs, model
from tests.models.diffusers import others, tiny

pytest.importorskip("diffusers")

IDS = torch.tensor([4, 0, 7])
# The largest difference between a sample in a batch and alone was 2.2e-6, of values near 1.
ALONE = 1e-5


@cache  # tests read these models and change nothing in them
def build(folder):
    return model.build(diffusers_folder.read(folder))


def prepare(saved, name, **options):
    found = diffusers_folder.read(saved(name))
    call = inputs.plan(
        found.class_name, found.config, shape=tiny.SHAPES.get(name), **{"tokens": 5, **options}
    )
    return build(saved(name)), call


def predict(built, call, x, time, ids):
    args, kwargs = call.inputs(x, time, ids)
    with torch.no_grad():
        return call.prediction(built(*args, **kwargs))


def some(call, seed=0):
    x = conditioning.normal("test", IDS, call.shape, seed=seed)
    return x, torch.tensor([0.2, 0.5, 0.9])


@pytest.mark.parametrize("name", tiny.MODELS)
def test_samples_do_not_see_each_other(saved, name):
    built, call = prepare(saved, name)
    x, time = some(call)
    together = predict(built, call, x, time, IDS)
    assert together.shape == x.shape
    assert torch.isfinite(together).all()
    for row in range(3):
        one = slice(row, row + 1)
        alone = predict(built, call, x[one], time[one], IDS[one])
        assert (alone[0] - together[row]).abs().max() < ALONE


@pytest.mark.parametrize("name", tiny.MODELS)
def test_everything_that_is_handed_over_matters(saved, name):
    """Latents, time and every condition change the prediction by far more than rounding."""
    built, call = prepare(saved, name)
    x, time = some(call)
    base = predict(built, call, x, time, IDS)
    changed = [
        predict(built, call, x + 1, time, IDS),
        predict(built, call, x, time + 0.05, IDS),
        predict(built, call, x, time, IDS + 1),
    ]
    for other in changed:
        assert ((other - base).abs().flatten(1).amax(1) > 1e-4).all()


@pytest.mark.parametrize("name", tiny.MODELS)
def test_latents_come_first_and_conditions_ignore_the_time(saved, name):
    _, call = prepare(saved, name)
    x, time = some(call)
    early, late = call.inputs(x, time, IDS), call.inputs(x, 1 - time, IDS)
    first = torch.stack(early[0][0]).squeeze(2) if name == "z-image" else early[0][0]
    assert torch.equal(first, x)
    assert len(early[0]) == 1
    times = {"timestep", "t"}
    assert len(times & early[1].keys()) == 1
    for key in early[1].keys() - times:
        assert same(early[1][key], late[1][key]), key


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("name", ["dit", "pixart", "hunyuan-dit"])
def test_a_learned_variance_is_left_out(saved, name):
    built, call = prepare(saved, name)
    x, time = some(call)
    args, kwargs = call.inputs(x, time, IDS)
    with torch.no_grad():
        raw = built(*args, **kwargs)[0]
    assert raw.shape[1] == 2 * x.shape[1]
    assert torch.equal(call.prediction((raw,)), raw[:, : x.shape[1]])


def test_another_shape_is_refused_by_name(saved):
    _, call = prepare(saved, "sd3")
    with pytest.raises(ProbeError, match=r"returned \(3, 4, 8, 6\) for samples of"):
        call.prediction((torch.zeros(3, 4, 8, 6),))


@pytest.mark.parametrize("name", tiny.MODELS)
def test_the_default_size_runs(saved, name):
    found = diffusers_folder.read(saved(name))
    call = inputs.plan(found.class_name, found.config)
    x, time = some(call)
    assert predict(build(saved(name)), call, x, time, IDS).shape == x.shape


@pytest.mark.parametrize("name", tiny.MODELS)
def test_the_report_says_what_nobody_gave(saved, name):
    _, call = prepare(saved, name)
    said = " ".join(call.assumptions)
    assert ("no text was given" in said) == (name != "dit")
    assert ("no class labels were given" in said) == (name == "dit")
    assert ("guidance" in said) == (name in ("flux", "hunyuan-video"))


@pytest.mark.parametrize(
    ("name", "config", "shape"),
    [
        ("DiT", dict(sample_size=64), (4, 64, 64)),
        ("SD3", dict(sample_size=128), (16, 64, 64)),  # 4,096 tokens would be its full size
        ("Flux", {}, (256, 64)),
        ("QwenImage", {}, (256, 64)),  # 16 channels times a patch of 2 by 2
        ("Lumina2", dict(sample_size=(32, 16)), (16, 32, 16)),
    ],
)
def test_sizes_follow_the_settings(name, config, shape):
    assert inputs.plan(f"{name}Transformer2DModel", config).shape == shape


def test_a_reduced_size_is_said():
    call = inputs.plan("SD3Transformer2DModel", dict(sample_size=128))
    assert any("smaller than the sample size 128" in said for said in call.assumptions)


@pytest.mark.parametrize("shape", [(4, 8), (5, 8, 8), (4, 7, 8), (4, 0, 8), (4, 8, 8, 8)])
def test_a_size_that_does_not_fit(saved, shape):
    found = diffusers_folder.read(saved("sd3"))
    with pytest.raises(UsageError, match=r"the model takes \(4, H, W\)"):
        inputs.plan(found.class_name, found.config, shape=shape)


def test_channels_beyond_the_latents_are_a_condition():
    """Flux Fill takes 384 channels and predicts 64."""
    import diffusers

    settings = {**tiny.MODELS["flux"][1], "in_channels": 20, "out_channels": 16}
    built = tiny.randomise(diffusers.FluxTransformer2DModel(**settings)).eval()
    call = inputs.plan("FluxTransformer2DModel", settings, shape=(12, 16), tokens=5)
    x, time = some(call)
    args, _ = call.inputs(x, time, IDS)
    assert torch.equal(args[0][..., :16], x)
    assert args[0][..., 16:].shape == (3, 12, 4)
    assert (args[0][..., 16:] == 0).all()
    assert predict(built, call, x, time, IDS).shape == x.shape
    assert any("4 more channels" in said for said in call.assumptions)


def test_conditions_are_a_function_of_seed_name_and_id():
    one = conditioning.normal("a", IDS, (5, 4), seed=0)
    assert torch.equal(one[2:], conditioning.normal("a", IDS[2:], (5, 4), seed=0))
    others = [conditioning.normal(n, IDS, (5, 4), seed=s) for n, s in (("b", 0), ("a", 1))]
    assert all(not torch.equal(one, other) for other in others)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_conditions_of_a_file(saved, tmp_path, suffix):
    text = torch.randn(9, 7, 12, generator=torch.Generator().manual_seed(0))
    pooled = torch.randn(1, 10, generator=torch.Generator().manual_seed(1))
    arrays = {"encoder_hidden_states": text, "pooled_projections": pooled}
    path = tmp_path / f"text{suffix}"
    if suffix == ".npz":
        np.savez(path, **{key: value.numpy() for key, value in arrays.items()})
    else:
        save_file(arrays, path)
    built, call = prepare(saved, "sd3", given=conditioning.read_conditions(path))
    x, time = some(call)
    _, kwargs = call.inputs(x, time, IDS)
    assert torch.equal(kwargs["encoder_hidden_states"], text[IDS])
    assert torch.equal(kwargs["pooled_projections"], pooled.expand(3, 10))
    assert predict(built, call, x, time, IDS).shape == x.shape
    assert not any("no text" in said for said in call.assumptions)
    assert call.tokens == 7


def test_class_labels_of_a_file(saved):
    labels = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    _, call = prepare(saved, "dit", given={"class_labels": labels})
    x, time = some(call)
    assert call.inputs(x, time, IDS)[1]["class_labels"].tolist() == [5, 3, 6]
    assert call.assumptions == ()


def test_text_of_a_file_for_a_model_that_takes_lists(saved):
    text = torch.randn(8, 7, 12, generator=torch.Generator().manual_seed(0))
    built, call = prepare(saved, "z-image", given={"cap_feats": text})
    x, time = some(call)
    assert same(call.inputs(x, time, IDS)[1]["cap_feats"], list(text[IDS]))
    assert predict(built, call, x, time, IDS).shape == x.shape


def test_conditions_that_do_not_fit(subtests, saved, tmp_path):
    _, call = prepare(saved, "sd3", given={"pooled_projections": torch.zeros(2, 10)})
    with pytest.raises(UsageError, match="2 rows of pooled_projections, sample 7 has none"):
        call.inputs(*some(call), IDS)
    with pytest.raises(UsageError, match="takes no 'class_labels'"):
        prepare(saved, "sd3", given={"class_labels": torch.zeros(2)})
    with pytest.raises(UsageError, match="0 tokens"):
        prepare(saved, "sd3", tokens=0)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    np.savez(tmp_path / "object.npz", a=np.array([{}]))
    np.savez(tmp_path / "scalar.npz", a=np.array(1.0))
    np.savez(tmp_path / "nan.npz", a=np.array([np.nan]))
    for name in ("bad.safetensors", "bad.npz", "object.npz", "scalar.npz", "nan.npz", "no.npz"):
        with subtests.test(name=name):
            with pytest.raises(UsageError):
                conditioning.read_conditions(tmp_path / name)


@pytest.mark.filterwarnings(
    "ignore:Initializing zero-element tensors",  # settings that turn a part off
    "ignore:In CPU autocast",  # Mochi asks for float32 there
)
@pytest.mark.parametrize("kind", others.OTHERS)
def test_the_same_rules_carry_other_classes(kind):
    import diffusers

    with torch.random.fork_rng(devices=[]), model.quiet():
        torch.manual_seed(0)
        built = tiny.randomise(getattr(diffusers, kind)(**others.OTHERS[kind])).eval()
    call = inputs.plan(kind, dict(built.config), tokens=8)
    x, time = some(call)
    together = predict(built, call, x, time, IDS)
    assert together.shape == x.shape
    alone = predict(built, call, x[:1], time[:1], IDS[:1])
    # The largest difference was 1.5e-5; Kandinsky's was 2e-4, it rotates queries in bfloat16.
    limit = 1e-3 if "Kandinsky" in kind else 5e-5
    assert (alone[0] - together[0]).abs().max() < limit
    for other in (
        predict(built, call, x + 1, time, IDS),
        predict(built, call, x, time + 0.05, IDS),
    ):
        assert (other - together).abs().max() > 1e-4


def test_a_model_without_rules_is_refused_by_the_name_of_its_input():
    with pytest.raises(UsageError, match="OmniGenTransformer2DModel needs 'input_ids'"):
        inputs.plan("OmniGenTransformer2DModel", dict(in_channels=4, patch_size=2))
    with pytest.raises(CheckpointError, match="do not say how many channels"):
        inputs.plan("HunyuanDiT2DModel", {})
    with pytest.raises(CheckpointError, match="no transformer of the installed"):
        inputs.plan("UNet2DConditionModel", {"in_channels": 4})
