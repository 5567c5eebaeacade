"""LoRA adapters are merged into their model: the weights are those of the plain formula."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

import dar_probe as dp
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models.loading import load_checkpoint
from dar_probe.models.options import CheckpointOptions
from tests.checkpoints.test_groups import RAW

peft = pytest.importorskip("peft")
TARGETS = ["attn.qkv", "mlp.fc1"]


def base(tmp_path):
    torch.save(RAW, tmp_path / "base.pt")
    return tmp_path / "base.pt"


def adapter(folder, *, rank=3, zero=False, **options):
    """A trained adapter, saved by peft on a plain copy of the model."""
    model = dp.build(
        "SiT-S/2", depth=2, width=32, heads=2, in_channels=1, input_size=8, num_classes=10
    )
    config = peft.LoraConfig(
        r=rank, lora_alpha=5, target_modules=TARGETS, init_lora_weights=zero, **options
    )
    torch.manual_seed(3)
    wrapped = peft.get_peft_model(model, config)
    wrapped.save_pretrained(folder)
    return folder, safetensors.torch.load_file(folder / "adapter_model.safetensors")


def load(path, folder, **options):
    return load_checkpoint(CheckpointOptions(path=path, adapter=folder, heads=2, **options))


@pytest.mark.parametrize("as_file", [False, True])
def test_the_weights_are_those_of_the_formula(tmp_path, as_file):
    folder, factors = adapter(tmp_path / "lora")
    given = folder / "adapter_model.safetensors" if as_file else folder
    loaded = load(base(tmp_path), given, dtype="float64")
    found = loaded.model.state_dict()
    for name, value in RAW.items():
        expected = value.double()
        key = "base_model.model." + name.removesuffix(".weight")
        if f"{key}.lora_A.weight" in factors:
            a, b = (factors[f"{key}.lora_{side}.weight"].double() for side in "AB")
            expected = expected + 5 / 3 * b @ a
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-7)
    said = "of rank 3 is merged into the model: 4 of its weights are changed"
    assert any(said in text for text in loaded.assumptions)
    assert loaded.file["adapter"] == given.name


def test_an_analysis_with_an_adapter_is_that_of_the_merged_model(tmp_path):
    folder, _ = adapter(tmp_path / "lora", use_rslora=True)
    path, few = base(tmp_path), {"noise_levels": [0.5], "samples": 2, "heads": 2}
    found = dp.analyze(path, adapter=folder, **few)
    merged = {k: v.float() for k, v in load(path, folder).model.state_dict().items()}
    torch.save(merged, tmp_path / "merged.pt")
    expected = dp.analyze(tmp_path / "merged.pt", **few)
    for name in ("rms", "gate", "loss"):
        np.testing.assert_array_equal(found.dataset[name], expected.dataset[name])
    plain = dp.analyze(path, **few)
    assert not np.allclose(found.dataset["rms"], plain.dataset["rms"], rtol=1e-3)
    assert found.name == "base.pt + lora"
    hashes = {a.manifest["checkpoint"]["sha256"] for a in (found, plain)}
    assert len(hashes) == 2
    for command in (c for f in found.verdict.findings if f.advice for c in f.advice.commands):
        assert "base.pt" not in command or "base.pt --adapter lora" in command


def test_sites_are_where_they_were(tmp_path):
    """peft wraps layers, and must have put them back."""
    folder, _ = adapter(tmp_path / "lora")
    loaded = load(base(tmp_path), folder)
    own = set(loaded.model.modules())
    assert all(reader.module in own for reader in loaded.subject.readers)
    assert not [m for m in own if type(m).__module__.startswith("peft")]
    assert not any("lora" in name for name in loaded.model.state_dict())


def test_of_an_untrained_adapter_nothing_is_changed(tmp_path):
    folder, _ = adapter(tmp_path / "lora", zero=True)
    loaded = load(base(tmp_path), folder)
    assert any("0 of its weights are changed" in text for text in loaded.assumptions)


def renamed(folder, old, new):
    file = folder / "adapter_model.safetensors"
    state = safetensors.torch.load_file(file)
    safetensors.torch.save_file({k.replace(old, new): v for k, v in state.items()}, file)


def test_what_has_no_place_is_refused(tmp_path):
    folder, _ = adapter(tmp_path / "lora")
    renamed(folder, "blocks.1", "blocks.7")
    with pytest.raises(CheckpointError, match="does not fit the model: .*blocks.7"):
        load(base(tmp_path), folder)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    folder, _ = adapter(tmp_path / "lora")
    state = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    wide = {k: torch.ones(v.shape[0] * (2 if "_B" in k else 1), v.shape[1]) for k, v in
            state.items()}  # fmt: skip
    safetensors.torch.save_file(wide, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load(base(tmp_path), folder)


def test_what_is_no_adapter_is_refused(tmp_path):
    safetensors.torch.save_file(RAW, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="holds no LoRA adapter"):
        load(base(tmp_path), tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="is no LoRA adapter in .safetensors"):
        load(base(tmp_path), tmp_path)
    with pytest.raises(UsageError, match="reads no weights"):
        dp.inspect(base(tmp_path), adapter=tmp_path)


def test_numbers_that_are_none_are_refused(tmp_path):
    folder, state = adapter(tmp_path / "lora")
    first = next(iter(state))
    safetensors.torch.save_file(
        {**state, first: state[first] * float("nan")}, folder / "adapter_model.safetensors"
    )
    with pytest.raises(dp.ProbeError, match="NaN"):
        load(base(tmp_path), folder)


def test_settings_of_another_kind_of_adapter_are_refused(tmp_path):
    folder, _ = adapter(tmp_path / "lora")
    told = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**told, "peft_type": "EVIL"}))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load(base(tmp_path), folder)


def test_peft_s_file_without_its_settings_is_refused_before_peft_looks_for_them(tmp_path):
    """It would ask the Hugging Face Hub for a repository of the folder's name."""
    folder, _ = adapter(tmp_path / "x")
    (folder / "adapter_config.json").unlink()
    file = folder / "adapter_model.safetensors"
    with pytest.raises(CheckpointError, match=r"adapter_config\.json does not lie beside it"):
        load(base(tmp_path), file)


def test_an_adapter_of_diffusers(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from tests.models.diffusers import tiny

    home = tiny.save("flux", tmp_path / "base")
    model = tiny.build("flux")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    layers = peft.utils.get_peft_model_state_dict(model)
    diffusers.FluxPipeline.save_lora_weights(tmp_path / "lora", transformer_lora_layers=layers)
    loaded = load_checkpoint(CheckpointOptions(path=home, adapter=tmp_path / "lora"))
    name = "transformer_blocks.0.attn.to_q"
    change = layers[f"{name}.lora_B.weight"] @ layers[f"{name}.lora_A.weight"]
    expected = tiny.build("flux").state_dict()[f"{name}.weight"] + change
    torch.testing.assert_close(loaded.model.state_dict()[f"{name}.weight"], expected)
    with pytest.raises(CheckpointError, match="it is of a class of diffusers, and the model is"):
        load(base(tmp_path), tmp_path / "lora")


def test_pickles_are_not_read(tmp_path):
    folder, state = adapter(tmp_path / "lora")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(state, folder / "adapter_model.bin")
    with pytest.raises(UsageError, match="is no LoRA adapter in .safetensors"):
        load(base(tmp_path), folder)
