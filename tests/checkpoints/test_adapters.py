"""LoRA adapters are no models: what they are of is said, with the line that merges them."""

import ast
import json
import shlex
import subprocess
import sys

import pytest
import safetensors.torch
import torch

import dar_probe as dp
from dar_probe.checkpoints.folders import model_file
from dar_probe.checkpoints.peek import peek
from dar_probe.errors import CheckpointError
from tests.hostile.builders import official_state

STATE = official_state(width=32)


def save(path, names, rank=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {}
    for name in names:
        first = any(word in name for word in ("_A", "down", ".A"))
        state[name] = torch.ones((rank, 8) if first else (8, rank))
    safetensors.torch.save_file(state, path)
    return path


def refused(path, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        (peek if path.is_file() else model_file)(path)
    assert str(caught.value).isprintable() and "\n" not in caught.value.hint
    with pytest.raises(CheckpointError, match=words):
        dp.analyze(path)
    return caught.value.hint


PEFT = ["base_model.model.0.lora_A.weight", "base_model.model.0.lora_B.weight"]


def test_a_folder_of_peft(tmp_path):
    home = tmp_path / "it's"
    save(home / "adapter_model.safetensors", PEFT)
    (home / "adapter_config.json").write_text("{}")
    refused(home, "is a LoRA adapter of rank 4, no model")
    (home / "adapter_config.json").write_text(
        json.dumps({"r": 16, "base_model_name_or_path": "some/model"})
    )
    hint = refused(home, "is a LoRA adapter of rank 16 for 'some/model', no model")
    assert repr(str(home)) in hint and "merge_and_unload" in hint
    (home / "adapter_config.json").write_text('{"r": "\\u202e", "base_model_name_or_path": [1]}')
    refused(home, "is a LoRA adapter of rank 4, no model")
    (home / "adapter_model.safetensors").write_bytes(b"no weights")
    refused(home, "is a LoRA adapter, no model")


def test_the_base_of_an_adapter_stays_one_word_of_the_command(tmp_path):
    home = tmp_path / "a 'b\"; $(touch ran)"
    save(home / "pytorch_lora_weights.safetensors", ["transformer.x.lora_A.weight"])
    base = 'it\'s "mine"\n`touch ran`'
    (home / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    code = shlex.split(refused(home, "rank 4").partition("python -c ")[2])
    assert len(code) == 1
    words = {node.value for node in ast.walk(ast.parse(code[0])) if isinstance(node, ast.Constant)}
    assert {base, str(home), "pytorch_lora_weights.safetensors"} <= words
    (home / "adapter_config.json").write_text('{"base_model_name_or_path": ""}')
    assert "and of BASE: python -c" in refused(home, "of rank 4, no model")


@pytest.mark.parametrize(
    ("start", "prefix"), [("transformer.", 'prefix="transformer"'), ("", "prefix=None")]
)
def test_diffusers_is_told_the_prefix_that_the_names_have(tmp_path, start, prefix):
    save(tmp_path / "pytorch_lora_weights.safetensors", [f"{start}blocks.0.to_q.lora_A.weight"])
    assert prefix in refused(tmp_path, "rank 4")


@pytest.mark.parametrize(
    "names",
    [
        PEFT,
        ["transformer.blocks.0.to_q.lora_A.weight", "transformer.blocks.0.to_q.lora_B.weight"],
        ["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
         "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight",
         "lora_unet_double_blocks_0_img_attn_qkv.alpha"],
        ["diffusion_model.blocks.0.q.lora_A.default.weight",
         "diffusion_model.blocks.0.q.lora_B.default.weight"],
        ["transformer.x.processor.to_q_lora.down.weight", "transformer.x.processor.lora.up.weight",
         "transformer.x.processor.lora.down.weight"],
    ],
    ids=["peft", "diffusers", "kohya", "default", "old"],
)  # fmt: skip
def test_a_file_of_an_adapter(tmp_path, names):
    refused(
        save(tmp_path / "x.safetensors", names), "is a LoRA adapter of rank 4, no model: it has"
    )


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("a LoKr", ["lokr_w1", "lokr_w2"]),
        ("a LoHa", ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"]),
        ("an OFT", ["oft_blocks"]),
    ],
)
def test_adapters_of_other_factors_are_called_what_they_are(tmp_path, kind, parts):
    """``--adapter`` merges low-rank factors in safetensors, and is named for nothing else."""
    path = save(tmp_path / "x.safetensors", [f"lycoris_blocks_0_attn.{part}" for part in parts])
    assert "--adapter" not in refused(path, f"is {kind} adapter, no model")
    home = tmp_path / "peft"
    home.mkdir()
    (home / "adapter_config.json").write_text(
        json.dumps({"peft_type": kind.partition(" ")[2].upper()})
    )
    (home / "adapter_model.bin").write_bytes(b"a pickle")
    assert "--adapter" not in refused(home, f"is {kind} adapter, no model")


def test_an_adapter_in_a_pickle_is_merged_by_peft_alone(tmp_path):
    torch.save({name: torch.ones(4, 8) for name in PEFT}, tmp_path / "adapter_model.bin")
    hint = refused(tmp_path / "adapter_model.bin", "is a LoRA adapter of rank 4, no model")
    assert "--adapter" not in hint and "merge_and_unload" in hint
    (tmp_path / "adapter_config.json").write_text('{"r": 4}')
    hint = refused(tmp_path, "is a LoRA adapter of rank 4, no model")
    assert "--adapter" not in hint and "merge_and_unload" in hint
    save(tmp_path / "adapter_model.safetensors", PEFT)
    assert f"--adapter {tmp_path}" in refused(tmp_path, "is a LoRA adapter of rank 4, no model")


def test_several_ranks(tmp_path):
    path = save(tmp_path / "x.safetensors", ["a.0.lora_A.weight", "a.0.lora_B.weight"], rank=2)
    state = safetensors.torch.load_file(path) | {"a.1.lora_A.weight": torch.ones(8, 3)}
    safetensors.torch.save_file(state, path)
    refused(path, "of ranks 2 to 8, no model")


def test_a_model_with_an_adapter_inside(tmp_path):
    state = {f"base_model.model.{name}": value for name, value in STATE.items()}
    layer = "base_model.model.blocks.0.mlp.fc1"
    state[f"{layer}.base_layer.weight"] = state.pop(f"{layer}.weight")
    state[f"{layer}.lora_A.default.weight"] = torch.ones(4, 32)
    state[f"{layer}.lora_B.default.weight"] = torch.ones(128, 4)
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    hint = refused(tmp_path / "x.safetensors", "holds a LoRA adapter of rank 4 beside its model")
    assert "merge_and_unload()" in hint


def run(code, folder):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_line_that_merges_an_adapter_of_peft_does(tmp_path):
    peft = pytest.importorskip("peft")
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
    torch.save(model, tmp_path / "model.pt")
    config = peft.LoraConfig(r=3, target_modules=["0"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config)
    wrapped.save_pretrained(tmp_path / "lora")
    line = refused(tmp_path / "lora", "of rank 3, no model").partition("that file: ")[2]
    model = "model = torch.load('model.pt', weights_only=False)"
    run(f"import torch, peft; {model}; {line}", tmp_path)
    merged = torch.load(tmp_path / "merged.pt", weights_only=True)
    expected = wrapped.merge_and_unload().state_dict()
    assert all(torch.equal(merged[name], value) for name, value in expected.items())


def test_the_line_that_merges_an_adapter_of_diffusers_does(tmp_path):
    peft, diffusers = pytest.importorskip("peft"), pytest.importorskip("diffusers")
    from tests.models.diffusers import tiny

    base = tiny.save("flux", tmp_path / "base")
    model = tiny.build("flux")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    layers = peft.utils.get_peft_model_state_dict(model)
    diffusers.FluxPipeline.save_lora_weights(tmp_path / "lora", transformer_lora_layers=layers)
    hint = refused(tmp_path / "lora", "of rank 2, no model")
    command = shlex.split(hint.partition("of BASE: ")[2])
    assert command[:2] == ["python", "-c"]
    run(command[2].replace("BASE", str(base)), tmp_path)
    merged = safetensors.torch.load_file(
        tmp_path / "merged" / "diffusion_pytorch_model.safetensors"
    )
    name = "transformer_blocks.0.attn.to_q"
    change = layers[f"{name}.lora_B.weight"] @ layers[f"{name}.lora_A.weight"]
    assert torch.equal(merged[f"{name}.weight"], tiny.build("flux").state_dict()[f"{name}.weight"]
                       + change)  # fmt: skip


def test_the_line_that_saves_plain_weights_does(tmp_path):
    """Of torchao, whose weights are tensors of a class of its own."""
    quantization = pytest.importorskip("torchao.quantization")
    model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    torch.save(model.state_dict(), tmp_path / "x.pt")
    hint = refused(tmp_path / "x.pt", "holds weights quantised by torchao, whose classes")
    exec(hint.partition(": ")[2].replace("'plain.pt'", "path"),
         {"torch": torch, "model": model, "path": tmp_path / "plain.pt"})  # fmt: skip
    plain = torch.load(tmp_path / "plain.pt", weights_only=True)
    assert torch.equal(plain["0.weight"], model[0].weight.dequantize())
