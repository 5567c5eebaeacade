"""Folders of trainers: the file that holds the model, or the command that makes one."""

import json
import os
import shlex
import subprocess
import sys

import pytest
import safetensors.torch
import torch

import dar_probe as dp
from dar_probe.checkpoints.folders import model_file, said_of
from dar_probe.cli.shared.options import check_first
from dar_probe.errors import CheckpointError
from dar_probe.models.inspection import survey
from dar_probe.models.loading import load_checkpoint
from dar_probe.models.options import CheckpointOptions
from dar_probe.probe.steps import step_of
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
        (["pytorch_model.bin.index.json", "pytorch_model-00001.bin", "pytorch_model-00002.bin"],
         "pytorch_model.bin.index.json"),
        (["pytorch_model-00001-of-00001.bin", "optimizer.bin"], "pytorch_model-00001-of-00001.bin"),
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
        (["model-00001-of-00002.safetensors", "optimizer.bin"], None, "alone, one of several",
         "the others"),
        (["model_non_ema.pt", "model.pt"], None, "2 files of weights", "give one of them"),
        (["args.json", "samples/0.png", "checkpoints/0050000.pt"], None, "is a folder without",
         "give '{home}/checkpoints', or a file in it"),
        (["checkpoint-900/model.safetensors", "checkpoint-1000/model.safetensors", "log.txt"], None,
         "is a folder without", "give '{home}/checkpoint-1000' or '{home}/checkpoint-900', or"),
        (["scheduler.bin", "pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata"], None,
         "is a folder without", "give '{home}/pytorch_model_fsdp_0', or"),
        (["iter_0000005/mp_rank_00/model_optim_rng.pt"], None, "is a folder without",
         "give '{home}/iter_0000005/mp_rank_00', or"),
        (["transformer/config.json", "transformer_ema/config.json"], None, "is a folder without",
         "give '{home}/transformer_ema', or"),
        (["optimizer.bin", "notes.txt"], None, "is a folder without .* a file of weights",
         "or a file"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused_for_what_it_is(tmp_path, names, config, words, hint):
    home = folder(tmp_path, *names, config=config)
    with pytest.raises(CheckpointError, match=words) as caught:
        model_file(home)
    assert hint.format(home=home) in caught.value.hint
    with pytest.raises(CheckpointError, match=words):
        dp.analyze(home)


def test_an_average_without_names_is_called_one(tmp_path):
    home = tmp_path / "state"
    home.mkdir()
    safetensors.torch.save_file(RAW, home / "model.safetensors")
    assert len(said_of(home, model_file(home))) == 1
    custom = home / "custom_checkpoint_0.pkl"
    torch.save({"decay": 0.9, "shadow_params": list(AVERAGE.values())}, custom)
    found = survey(CheckpointOptions(path=home, heads=2))
    assert found.assumptions[1] == (
        "custom_checkpoint_0.pkl beside it was not looked into, and may be an average (EMA)"
    )
    with pytest.raises(
        CheckpointError, match=r"an average without names \(\d+ shadow_params\), and"
    ):
        survey(CheckpointOptions(path=custom, heads=2))


def test_a_command_keeps_the_folder_whose_name_tells_the_step(tmp_path):
    home = folder(tmp_path, "optimizer.bin").rename(tmp_path / "checkpoint-200")
    safetensors.torch.save_file(RAW, home / "model.safetensors")
    assert check_first(home) == home and step_of(home) == 200
    (home / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="'.*model.safetensors' is a text file"):
        check_first(home)


def test_the_command_that_joins_shards_does(tmp_path):
    home = tmp_path / "it's [my] run; $(touch ran)"
    home.mkdir()
    names = list(AVERAGE)
    for at, part in enumerate((names[:9], names[9:]), 1):
        safetensors.torch.save_file(
            {name: AVERAGE[name].contiguous() for name in part},
            home / f"model-0000{at}-of-00002.safetensors",
        )
    safetensors.torch.save_file({"other": torch.zeros(1)}, home / "optimizer.safetensors")
    with pytest.raises(CheckpointError, match="2 files of weights") as caught:
        model_file(home)
    command = caught.value.hint.split("joined by: ")[1]
    run = command.replace("python -c ", f"{sys.executable} -c ", 1)
    subprocess.run(["bash", "-c", run], cwd=tmp_path, check=True)
    found = load_checkpoint(CheckpointOptions(path=tmp_path / "model.pt", heads=2))
    assert torch.equal(found.model.state_dict()["pos_embed"], AVERAGE["pos_embed"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([".metadata"], ["dcp_to_torch", "{home}", "model.pt"]),
        (["latest", "zero_to_fp32.py", "global_step20/x", "global_step100/zero_pp_rank_0.pt"],
         ["python", "{home}/zero_to_fp32.py", "{home}", "model.pt"]),
        (["zero_pp_rank_0.pt"], ["python", "{parent}/zero_to_fp32.py", "{parent}", "model.pt"]),
    ],
)  # fmt: skip
def test_a_folder_s_name_stays_one_word_of_the_command(tmp_path, names, words):
    home = folder(tmp_path / "a b; $(touch ran) 'c", *names)
    with pytest.raises(CheckpointError) as caught:
        model_file(home)
    found = shlex.split(caught.value.hint)
    assert found[-len(words) :] == [word.format(home=home, parent=home.parent) for word in words]


def test_the_last_step_of_deepspeed_is_named_by_its_number(tmp_path):
    names = ("global_step20/mp_rank_00_model_states.pt", "global_step100/mp_rank_00.pt")
    home = folder(tmp_path, "latest", *names)
    with pytest.raises(CheckpointError, match="a folder of DeepSpeed") as caught:
        model_file(home)
    assert "global_step100" in caught.value.hint


def test_files_that_are_no_shards_are_not_joined(tmp_path):
    home = folder(tmp_path, "encoder.pt", "denoiser.pt")
    with pytest.raises(CheckpointError, match="2 files of weights") as caught:
        model_file(home)
    assert caught.value.hint == "give one of them"


def test_a_pipe_beside_the_weights_is_not_waited_for(tmp_path):
    home = folder(tmp_path, "model.safetensors")
    os.mkfifo(home / "config.json")
    assert model_file(home) == home / "model.safetensors"


def test_a_hub_mixin_s_config_tells_heads(tmp_path):
    """Beside model.safetensors lies what the class was made with."""
    home = folder(tmp_path, "optimizer.bin", config={"depth": 2, "num_heads": 4, "hidden": 32})
    safetensors.torch.save_file(RAW, home / "model.safetensors")
    loaded = load_checkpoint(CheckpointOptions(path=home))
    assert loaded.identified.sizes["heads"] == 4
    found = survey(CheckpointOptions(path=home))
    assert found.sizes["heads"] == 4
    for said in (loaded.assumptions, found.assumptions):
        assert said[0] == "'model.safetensors' is the model of the folder that was given"
        assert "settings are those of config.json beside the file" in " ".join(said)
    (home / "config.json").unlink()
    with pytest.raises(CheckpointError, match="does not tell its heads"):
        load_checkpoint(CheckpointOptions(path=home))


def test_folders_of_libraries_are_left_to_their_readers(tmp_path):
    for config in ({"_class_name": "SD3Transformer2DModel"}, {"architectures": ["Bert"]}):
        home = folder(tmp_path, "model.safetensors", config=config)
        assert model_file(home) == home
    home = folder(tmp_path / "pipeline", "model_index.json", "a.pt", "b.pt")
    assert model_file(home) == home
