"""Transformers of diffusers in one file of another layout: the model that the weights came from."""

import hashlib
import json
import shutil

import pytest
import safetensors.torch
import torch

from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models.diffusers.layouts import LAYOUTS
from dar_probe.models.diffusers.model import quiet
from dar_probe.models.inspection import survey
from dar_probe.models.loading import load_checkpoint
from dar_probe.models.options import CheckpointOptions
from tests.checkpoints import packed
from tests.hostile.builders import official_state
from tests.models.diffusers import originals, tiny

diffusers = pytest.importorskip("diffusers")
single_file_model = pytest.importorskip("diffusers.loaders.single_file_model")

PREFIX = "model.diffusion_model."
# Layout -> class, settings; the file tells all of them.
FLUX = dict(
    in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=128,
    num_attention_heads=1, joint_attention_dim=12, pooled_projection_dim=10, guidance_embeds=True,
)  # fmt: skip
SD3 = tiny.MODELS["sd3-dual"][1]
MODELS = {
    "sd3 with two attentions": ("SD3Transformer2DModel", SD3, originals.sd3),
    "sd3 without norms": (
        "SD3Transformer2DModel",
        {**SD3, "dual_attention_layers": (), "qk_norm": None, "num_layers": 2,
         "attention_head_dim": 64, "caption_projection_dim": 128},
        originals.sd3,
    ),
    "flux": ("FluxTransformer2DModel", FLUX, originals.flux),
    "flux without guidance, with a mask": (
        "FluxTransformer2DModel",
        {**FLUX, "guidance_embeds": False, "in_channels": 24, "out_channels": 16},
        originals.flux,
    ),
    "chroma": (
        "ChromaTransformer2DModel",
        dict(in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=128,
             num_attention_heads=1, joint_attention_dim=12, approximator_num_channels=64,
             approximator_hidden_dim=20, approximator_layers=2),
        originals.chroma,
    ),
    "z-image": (
        "ZImageTransformer2DModel",
        dict(in_channels=4, dim=128, n_layers=2, n_refiner_layers=1, n_heads=1, n_kv_heads=1,
             cap_feat_dim=12),
        originals.z_image,
    ),
    "qwen-image": (
        "QwenImageTransformer2DModel",
        dict(in_channels=16, out_channels=4, num_layers=2, attention_head_dim=128,
             num_attention_heads=1, joint_attention_dim=12),
        dict,  # its authors use diffusers' names
    ),
    "wan": (
        "WanTransformer3DModel",
        dict(num_attention_heads=1, attention_head_dim=128, in_channels=4, out_channels=4,
             text_dim=12, freq_dim=16, ffn_dim=32, num_layers=2),
        originals.wan,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def narrow_flux(monkeypatch):
    """Let diffusers' conversion of Flux, which has the width of the released model, take 128."""
    for name in ("FluxTransformer2DModel", "ChromaTransformer2DModel"):
        entry = dict(single_file_model.SINGLE_FILE_LOADABLE_CLASSES[name])
        convert = entry["checkpoint_mapping_fn"]
        constants = convert.__code__.co_consts
        assert constants.count(3072) == 1
        narrow = tuple(128 if value == 3072 else value for value in constants)
        entry["checkpoint_mapping_fn"] = type(convert)(
            convert.__code__.replace(co_consts=narrow), convert.__globals__
        )
        monkeypatch.setitem(single_file_model.SINGLE_FILE_LOADABLE_CLASSES, name, entry)


def build(name):
    kind, settings, convert = MODELS[name]
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        model = tiny.randomise(getattr(diffusers, kind)(**settings)).eval()
    return model, convert(model.state_dict())


def save(path, state):
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


def load(path, **options):
    return load_checkpoint(CheckpointOptions(path=path, **options))


def same(model, other):
    mine, theirs = model.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def outputs(loaded, model):
    """The output of the loaded model and of the one its weights came from, for equal inputs."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, *loaded.identified.shape, generator=generator)
    args, kwargs = loaded.call.inputs(
        x, torch.tensor([0.3, 0.7]), torch.arange(2), torch.zeros(2, dtype=torch.long)
    )
    with torch.no_grad():
        return tuple(loaded.call.prediction(one(*args, **kwargs)) for one in (loaded.model, model))


@pytest.mark.parametrize("prefix", ["", PREFIX], ids=["bare", "ComfyUI"])
@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_the_one_that_was_saved(tmp_path, name, prefix):
    model, state = build(name)
    path = save(tmp_path / "x.safetensors", {prefix + k: v for k, v in state.items()})
    loaded = load(path)
    assert loaded.identified.family == MODELS[name][0]
    assert not loaded.model.training
    same(loaded.model, model)
    for key, value in MODELS[name][1].items():
        assert loaded.model.config[key] == value or key == "sample_size"
    mine, theirs = outputs(loaded, model)
    assert torch.equal(mine, theirs) and mine.abs().max() > 0
    assert loaded.file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    found = survey(CheckpointOptions(path=path))
    assert "names such as" in found.why
    assert (found.family, found.parameters) == (
        MODELS[name][0], sum(p.numel() for p in model.parameters()),
    )  # fmt: skip
    assert set(found.assumptions) >= {one for one in loaded.assumptions if "no scheduler" in one}
    assert any("by default for" in one for one in loaded.assumptions)


def test_the_bundle_of_comfyui_has_text_encoders_beside(tmp_path):
    model, state = build("sd3 with two attentions")
    others = {
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (4, 4),
        "text_encoders.clip_l.transformer.text_model.encoder.layers.1.mlp.fc1.weight": (4, 4),
        "text_encoders.clip_l.transformer.text_model.embeddings.position_ids": (1, 4),
        "first_stage_model.encoder.down.0.block.0.conv1.weight": (4, 4, 1, 1),
        "first_stage_model.encoder.conv_in.weight": (4, 4, 1, 1),
    }
    whole = {PREFIX + k: v for k, v in state.items()}
    path = save(tmp_path / "x.safetensors", whole | {k: torch.ones(s) for k, s in others.items()})
    loaded = load(path)
    same(loaded.model, model)
    assert "'model.diffusion_model' of the file" in " ".join(loaded.assumptions)


def test_16_and_8_bits_and_the_type_asked_for(tmp_path):
    model, state = build("sd3 with two attentions")
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        path = save(tmp_path / "x.safetensors", {k: v.to(dtype) for k, v in state.items()})
        loaded = load(path, dtype="bf16")
        for name, value in loaded.model.state_dict().items():
            assert torch.equal(value, model.state_dict()[name].to(dtype).to(torch.bfloat16))
        said = "stored in 8 bits, as they are" in " ".join(loaded.assumptions)
        assert said == (dtype is torch.float8_e4m3fn)


def settings_beside(path, name, **changes):
    config = dict(build(name)[0].config) | changes
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(
        json.dumps({"_class_name": MODELS[name][0], **config}, default=list)
    )


@pytest.mark.parametrize("home", ["", "transformer"])
def test_a_config_beside_it_tells_what_shapes_do_not(tmp_path, home, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", ("SD3Transformer2DModel", tiny.MODELS["sd3"][1],
                                         originals.sd3))  # fmt: skip
    model, state = build("tiny")
    path = save(tmp_path / "x.safetensors", state)
    with pytest.raises(CheckpointError, match="3 blocks of width 16 do not tell their heads") as e:
        load(path)
    assert "config.json of its transformer folder" in e.value.hint
    settings_beside(tmp_path / home, "tiny")
    loaded = load(path)
    assert loaded.model.config.num_attention_heads == 2
    assert "settings are those of 'config.json' beside it" in loaded.assumptions
    same(loaded.model, model)
    assert survey(CheckpointOptions(path=path)).why == "the _class_name of its config.json"
    settings_beside(tmp_path / home, "tiny", sample_size=6)
    assert load(path).file["sha256"] != loaded.file["sha256"], "own samples are kept by it"
    settings_beside(tmp_path / home, "tiny", num_layers=2)
    with pytest.raises(CheckpointError, match="no SD3Transformer2DModel"):
        load(path)


def test_a_scheduler_beside_it_tells_the_clock(tmp_path):
    _, state = build("wan")
    settings_beside(tmp_path / "transformer", "wan")
    scheduler = tmp_path / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir()
    scheduler.write_text(json.dumps({"_class_name": tiny.FLOW, "num_train_timesteps": 500}))
    assert load(save(tmp_path / "x.safetensors", state)).objective.name == "flow:t=500s"


def test_diffusers_own_layout_needs_its_config(tmp_path):
    model, _ = build("sd3 with two attentions")
    path = save(tmp_path / "mine.safetensors", model.state_dict())
    with pytest.raises(CheckpointError, match="which do not tell the class") as caught:
        load(path)
    assert "config.json" in caught.value.hint
    settings_beside(tmp_path, "sd3 with two attentions")
    same(load(path).model, model)


def test_any_class_that_diffusers_converts_is_read_by_the_config_beside_it(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "ltx", (*tiny.MODELS["ltx-video"][:2], originals.ltx))
    model, state = build("ltx")
    path = save(tmp_path / "x.safetensors", {PREFIX + k: v for k, v in state.items()})
    with pytest.raises(CheckpointError, match="those of LTXVideoTransformer3DModel, of which") as e:
        load(path)
    assert "config.json of its transformer folder" in e.value.hint
    settings_beside(tmp_path, "ltx")
    same(load(path).model, model)


@pytest.mark.parametrize("name", [n for n, one in LAYOUTS.items() if one.settings is None])
def test_the_marks_of_layouts_are_those_of_diffusers(name):
    """By which it finds the class of a file itself; the class is one that it converts."""
    from diffusers.loaders.single_file_utils import CHECKPOINT_KEY_NAMES

    known = {mark for marks in CHECKPOINT_KEY_NAMES.values()
             for mark in ([marks] if isinstance(marks, str) else marks)}  # fmt: skip
    assert set(LAYOUTS[name].marks) <= known
    assert name in single_file_model.SINGLE_FILE_LOADABLE_CLASSES


def test_a_file_of_our_family_stays_one_beside_settings_of_another(tmp_path):
    settings_beside(tmp_path, "wan")
    path = save(tmp_path / "x.safetensors", official_state())
    assert load(path, heads=2).identified.family == "sit"


def test_settings_that_are_not_of_diffusers_are_not_looked_at(tmp_path):
    model, state = build("sd3 with two attentions")
    (tmp_path / "config.json").write_text('{"num_heads": 7}')
    same(load(save(tmp_path / "x.safetensors", state)).model, model)
    with pytest.raises(CheckpointError, match="is no known layout"):
        load(save(tmp_path / "x.safetensors", {"w.0.weight": torch.ones(2)}))


def test_settings_of_another_class_are_not_those_of_the_file(tmp_path):
    model, state = build("sd3 with two attentions")
    settings_beside(tmp_path, "wan")
    loaded = load(save(tmp_path / "x.safetensors", state))
    same(loaded.model, model)
    said = "the config.json beside it is of WanTransformer3DModel, and not used"
    assert said in loaded.assumptions


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("wan", "is no WanTransformer3DModel"),  # one of a layout that such names may have
        ("pixart", "beside it is of PixArtTransformer2DModel, of which diffusers converts no"),
    ],
)
def test_settings_are_not_asked_for_where_they_lie_beside_the_file(
    tmp_path, monkeypatch, settings, words
):
    monkeypatch.setitem(MODELS, "ltx", (*tiny.MODELS["ltx-video"][:2], originals.ltx))
    monkeypatch.setitem(MODELS, "pixart", (*tiny.MODELS["pixart"][:2], dict))
    path = save(tmp_path / "x.safetensors", build("ltx")[1])
    settings_beside(tmp_path, settings)
    with pytest.raises(CheckpointError, match=words):
        load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("joint_blocks.0.x_block.mlp.fc1.bias"), "fc1.bias.* is missing"),
        (lambda s: s.update({"joint_blocks.0.x_block.extra": torch.ones(1)}), "x_block.extra"),
        (lambda s: s.update({"joint_blocks.3.extra": torch.ones(1)}), "is missing"),
        (lambda s: s.update({"joint_blocks.9999.extra": torch.ones(1)}), "'num_layers' is larger"),
        (lambda s: s.update({"projectors.0.0.weight": torch.ones(1, 1)}), "does not convert"),
        (lambda s: s.update({"x_embedder.proj.weight": torch.ones(16, 4, 2)}), "has shape"),
        (lambda s: s.update({"pos_embed": torch.ones(1, 10, 16)}), "of shape|is no SD3"),
        (lambda s: s.update({"context_embedder.weight": torch.ones(24, 12)}), "is no SD3"),
    ],
)
def test_what_is_not_quite_a_model_is_refused(tmp_path, change, words):
    _, state = build("sd3 with two attentions")
    change(state)
    path = save(tmp_path / "x.safetensors", state)
    for look in (load, lambda path: survey(CheckpointOptions(path=path))):
        with pytest.raises(CheckpointError, match=words) as caught:
            look(path)
        assert caught.value.hint and str(caught.value).isprintable()


def test_nan_is_found(tmp_path):
    _, state = build("sd3 with two attentions")
    state["x_embedder.proj.bias"][0] = float("nan")
    with pytest.raises(ValueError, match="'x_embedder.proj.bias' has 1 of"):
        load(save(tmp_path / "x.safetensors", state))


def test_options_of_our_families_are_not_for_it(tmp_path):
    _, state = build("wan")
    path = save(tmp_path / "x.safetensors", state)
    with pytest.raises(UsageError, match="--heads is not for a model of diffusers"):
        load(path, heads=2)
    with pytest.raises(CheckpointError):
        load(path, family="sit")


def test_without_diffusers_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    _, state = build("wan")
    path = save(tmp_path / "x.safetensors", state)
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(UsageError, match="needs diffusers") as caught:
        load(path)
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_of_authors_with_a_class_of_their_own(tmp_path, shards):
    model, state = build("wan")
    names, name = list(state), "diffusion_pytorch_model.safetensors"
    home = tmp_path / "Wan"
    if shards:
        listed = {}
        for at, part in enumerate((names[:9], names[9:]), 1):
            file = f"diffusion_pytorch_model-0000{at}-of-00002.safetensors"
            save(home / file, {key: state[key] for key in part})
            listed |= dict.fromkeys(part, file)
        (home / f"{name}.index.json").write_text(json.dumps({"weight_map": listed}))
    else:
        save(home / name, state)
    (home / "config.json").write_text('{"_class_name": "WanModel", "dim": 128, "num_layers": 2}')
    loaded = load(home)
    same(loaded.model, model)
    assert loaded.identified.family == "WanTransformer3DModel"
    assert loaded.file["name"] == survey(CheckpointOptions(path=home)).file["name"] == "Wan"
    (home / "config.json").write_text('{"_class_name": "WanModel", "quantization_config": {}}')
    with pytest.raises(CheckpointError, match="holds weights quantised"):
        load(home)


def test_text_conditions_are_taken(tmp_path):
    _, state = build("sd3 with two attentions")
    path = save(tmp_path / "x.safetensors", state)
    text = {"encoder_hidden_states": torch.ones(2, 5, 12), "pooled_projections": torch.ones(2, 10)}
    loaded = load(path, text=save(tmp_path / "text.safetensors", text))
    _, kwargs = loaded.call.inputs(
        torch.zeros(2, *loaded.identified.shape), torch.ones(2), torch.arange(2), torch.zeros(2)
    )
    assert torch.equal(kwargs["encoder_hidden_states"], text["encoder_hidden_states"])
    assert loaded.conditions != load(path).conditions


# --- packed weights


def test_comfyui_s_scaled_eight_bits(tmp_path):
    model, state = build("flux")
    made, expected = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}, {}
    for name, value in state.items():
        made[PREFIX + name] = expected[name] = value
        if value.ndim == 2 and "blocks" in name:
            scale = value.abs().max() / 448
            made[PREFIX + name] = (value / scale).to(torch.float8_e4m3fn)
            made[PREFIX + name.removesuffix("weight") + "scale_weight"] = scale
            expected[name] = made[PREFIX + name].float() * scale
    loaded = load(save(tmp_path / "x.safetensors", made))
    plain = load(save(tmp_path / "y.safetensors", expected))
    same(loaded.model, plain.model)
    assert any("dequantised from float8_e4m3fn" in one for one in loaded.assumptions)
    name = "transformer_blocks.0.ff.net.0.proj.weight"
    error = (loaded.model.state_dict()[name] - model.state_dict()[name]).abs().max()
    assert 0 < error < 0.07 * model.state_dict()[name].abs().max()


def test_gguf_of_comfyui(tmp_path):
    pytest.importorskip("gguf")
    _, state = build("sd3 without norms")
    tensors, values = packed.as_gguf(state)
    path = packed.gguf(tmp_path / "x.gguf", tensors)
    loaded = load(path)
    exact = load(save(tmp_path / "y.safetensors", {k: v.float() for k, v in values.items()}))
    for name, value in loaded.model.state_dict().items():
        torch.testing.assert_close(value, exact.model.state_dict()[name], rtol=1e-6, atol=1e-9)
    said = survey(CheckpointOptions(path=path)).assumptions
    assert any("dequantised from Q8_0 by gguf" in one for one in said)
    assert set(said) - set(loaded.assumptions) == {one for one in said if "discovery" in one}


@pytest.mark.parametrize("given", ["", "transformer", "transformer/index", "transformer/file"])
def test_a_folder_that_bitsandbytes_packed(saved, tmp_path, given):
    home = shutil.copytree(saved("sd3"), tmp_path / "sd3")
    inner = home / "transformer"
    plain = inner / "diffusion_pytorch_model.safetensors"
    state, expected = safetensors.torch.load_file(plain), {}
    for name in sorted(state):
        if name.endswith("proj.weight") and state[name].ndim == 2:
            parts, values = packed.four_bits(tuple(state.pop(name).shape), nested=3)
            state |= {f"{name}{end}": part for end, part in parts.items()}
            expected[name] = values.float()
    save(plain, state)
    if given == "transformer/index":
        part = plain.rename(inner / "diffusion_pytorch_model-00001-of-00001.safetensors")
        plain = inner / "diffusion_pytorch_model.safetensors.index.json"
        plain.write_text(json.dumps({"weight_map": dict.fromkeys(state, part.name)}))
    config = json.loads((inner / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (inner / "config.json").write_text(json.dumps(config))
    path = plain if given in ("transformer/index", "transformer/file") else home / given
    loaded = load(path)
    assert loaded.file["name"] == survey(CheckpointOptions(path=path)).file["name"] == "sd3"
    assert loaded.objective.name == "flow:t=1000s" and loaded.scheduler["shift"] == 3.0
    assert any("dequantised from nf4" in one for one in loaded.assumptions)
    for name, value in tiny.build("sd3").state_dict().items():
        wanted = expected.get(name, value)
        torch.testing.assert_close(
            loaded.model.state_dict()[name], wanted, rtol=1e-6, atol=1e-7 * (name in expected)
        )
    assert len(expected) > 3


@pytest.mark.parametrize("told", [{"quant_method": "quanto"}, {"quant_method": "gguf"}, {}, 3])
def test_a_folder_that_another_program_packed_is_refused(saved, tmp_path, told):
    home = shutil.copytree(saved("sd3"), tmp_path / "sd3")
    config = json.loads((home / "transformer" / "config.json").read_text())
    config["quantization_config"] = told
    (home / "transformer" / "config.json").write_text(json.dumps(config))
    by = " by 'quanto'" if told == {"quant_method": "quanto"} else ""
    with pytest.raises(CheckpointError, match=f"holds weights quantised{by}"):
        load(home)


def test_integers_are_no_weights(tmp_path):
    _, state = build("sd3 with two attentions")
    state["context_embedder.weight"] = state["context_embedder.weight"].to(torch.int8)
    with pytest.raises(CheckpointError, match="'context_embedder.weight' is int8"):
        load(save(tmp_path / "x.safetensors", state))


def test_it_is_analyzed_from_end_to_end(tmp_path):
    import dar_probe as dp

    model, state = build("flux")
    path = save(tmp_path / "flux.safetensors", state)
    one = dp.analyze(path, noise_levels=[0.5], samples=2).dataset
    model.save_pretrained(tmp_path / "folder")
    other = dp.analyze(tmp_path / "folder", noise_levels=[0.5], samples=2).dataset
    for name in ("gate", "rms", "loss"):
        assert one[name].identical(other[name])
    shutil.rmtree(tmp_path / "folder")
