"""Folders of trainers: the file that holds the model, or the command that makes one."""

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch

import dar_probe as dp
from dar_probe.checkpoints.folders import model_file
from dar_probe.errors import CheckpointError
from dar_probe.models.inspection import survey
from dar_probe.models.loading import load_checkpoint
from dar_probe.models.options import CheckpointOptions
from tests.checkpoints.test_groups import AVERAGE, RAW


def folder(tmp_path, *names, config=None):
    home = tmp_path / "run"
    for name in names:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(b"")
    if config is not None:
        (home / "config.json").write_text(json.dumps(config))
    return home


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["model.safetensors", "optimizer.bin", "random_states_0.pkl", "scheduler.bin"],
         "model.safetensors"),
        (["pytorch_model.bin", "optimizer.pt", "rng_state.pth", "training_args.bin"],
         "pytorch_model.bin"),
        (["nnet.pth", "nnet_ema.pth", "optimizer.pth", "lr_scheduler.pth", "step.pth"],
         "nnet_ema.pth"),
        (["mp_rank_00_model_states.pt"], "mp_rank_00_model_states.pt"),
    ],
)  # fmt: skip
def test_the_file_of_the_model_is_found(tmp_path, names, taken):
    home = folder(tmp_path, *names)
    assert model_file(home) == home / taken
    assert model_file(home / names[0]) == home / names[0], "a file is taken as it is"


@pytest.mark.parametrize(
    ("names", "config", "words", "hint"),
    [
        ([".metadata", "__0_0.distcp"], None, "torch.distributed.checkpoint", "dcp_to_torch"),
        (["adapter_config.json", "adapter_model.safetensors"], None, "a LoRA adapter", "merge"),
        (["pytorch_lora_weights.safetensors"], None, "a LoRA adapter", "fuse_lora"),
        (["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"], None,
         "partitions of DeepSpeed's ZeRO", "zero_to_fp32.py"),
        (["latest", "zero_to_fp32.py", "global_step7/zero_pp_rank_0_mp_rank_00_optim_states.pt"],
         None, "partitions of DeepSpeed's ZeRO", "zero_to_fp32.py"),
        (["latest", "global_step7/mp_rank_00_model_states.pt"], None, "a folder of DeepSpeed",
         "global_step7"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None,
         "2 files of weights", "python -c"),
        (["optimizer.bin", "notes.txt"], None, "is a folder without .* a file of weights",
         "or a file"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused_for_what_it_is(tmp_path, names, config, words, hint):
    home = folder(tmp_path, *names, config=config)
    with pytest.raises(CheckpointError, match=words) as caught:
        model_file(home)
    assert hint in caught.value.hint
    with pytest.raises(CheckpointError, match=words):
        dp.analyze(home)


def test_an_adapter_names_its_model(tmp_path):
    home = folder(tmp_path, "adapter_config.json")
    (home / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')
    with pytest.raises(CheckpointError, match="a LoRA adapter of 'some/model'"):
        model_file(home)


def test_the_command_that_joins_shards_does(tmp_path):
    home = tmp_path / "run"
    home.mkdir()
    names = list(AVERAGE)
    for at, part in enumerate((names[:9], names[9:]), 1):
        safetensors.torch.save_file(
            {name: AVERAGE[name].contiguous() for name in part},
            home / f"model-0000{at}-of-00002.safetensors",
        )
    with pytest.raises(CheckpointError, match="2 files of weights") as caught:
        model_file(home)
    command = caught.value.hint.split("shards of one model: ")[1]
    run = command.replace("python -c ", f"{sys.executable} -c ", 1)
    subprocess.run(["bash", "-c", run], cwd=tmp_path, check=True)
    found = load_checkpoint(CheckpointOptions(path=tmp_path / "model.pt", heads=2))
    assert torch.equal(found.model.state_dict()["pos_embed"], AVERAGE["pos_embed"])


def test_a_hub_mixin_s_config_tells_heads(tmp_path):
    """Beside model.safetensors lies what the class was made with."""
    home = folder(tmp_path, "optimizer.bin", config={"depth": 2, "num_heads": 4, "hidden": 32})
    safetensors.torch.save_file(RAW, home / "model.safetensors")
    loaded = load_checkpoint(CheckpointOptions(path=home))
    assert loaded.identified.sizes["heads"] == 4
    assert survey(CheckpointOptions(path=home)).sizes["heads"] == 4
    (home / "config.json").unlink()
    with pytest.raises(CheckpointError, match="does not tell its heads"):
        load_checkpoint(CheckpointOptions(path=home))


def test_folders_of_libraries_are_left_to_their_readers(tmp_path):
    for config in ({"_class_name": "SD3Transformer2DModel"}, {"architectures": ["Bert"]}):
        home = folder(tmp_path, "model.safetensors", config=config)
        assert model_file(home) == home
    home = folder(tmp_path / "pipeline", "model_index.json", "a.pt", "b.pt")
    assert model_file(home) == home
