"""Folders in diffusers' layout: what is read from them, and what is refused."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dar_probe.checkpoints import diffusers_folder
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models.diffusers import model
from tests.models.diffusers import tiny

pytest.importorskip("diffusers")

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = WEIGHTS + ".index.json"


@pytest.fixture
def copy(saved, tmp_path):
    """A folder of its own that a test may spoil."""
    return shutil.copytree(saved("sd3"), tmp_path / "sd3")


@pytest.fixture
def shards(tmp_path):
    return tiny.save("sd3", tmp_path / "sharded", max_shard_size="60KB")


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize("name", tiny.MODELS)
def test_header_is_that_of_the_model(saved, name):
    found = diffusers_folder.read(saved(name))
    state = tiny.build(name).state_dict()
    assert found.shapes == {key: tuple(value.shape) for key, value in state.items()}
    assert (found.class_name, found.dtype) == (tiny.MODELS[name][0], "float32")
    assert found.scheduler["_class_name"] == tiny.MODELS[name][2]
    assert found.bytes == (saved(name) / "transformer" / WEIGHTS).stat().st_size


@pytest.mark.parametrize("name", tiny.MODELS)
def test_every_weight_is_loaded(saved, name):
    built = model.build(diffusers_folder.read(saved(name)))
    assert not built.training
    expected = tiny.build(name).state_dict()
    assert built.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in built.state_dict().items())


def test_root_and_transformer_folder_are_the_same_model(saved):
    root, inner = (
        diffusers_folder.read(saved("sd3")),
        diffusers_folder.read(saved("sd3") / "transformer"),
    )
    assert (root.sha256, root.scheduler) == (inner.sha256, inner.scheduler)


def test_a_transformer_folder_elsewhere_has_no_scheduler(copy, tmp_path):
    moved = shutil.move(copy / "transformer", tmp_path / "mine")
    assert diffusers_folder.read(moved).scheduler is None


def test_the_hash_sees_weights_and_settings(copy):
    before = diffusers_folder.read(copy).sha256
    edit(copy / "scheduler" / "scheduler_config.json", shift=2.0)
    other = diffusers_folder.read(copy).sha256
    weights = load_file(copy / "transformer" / WEIGHTS)
    weights["proj_out.bias"][0] += 1
    save_file(weights, copy / "transformer" / WEIGHTS, metadata={"format": "pt"})
    assert len({before, other, diffusers_folder.read(copy).sha256}) == 3


def test_shards_are_one_model(shards, saved):
    found, whole = diffusers_folder.read(shards), diffusers_folder.read(saved("sd3"))
    assert len(found.weights) > 1
    assert found.shapes == whole.shapes
    one, other = model.build(found).state_dict(), model.build(whole).state_dict()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "60KB"}])
def test_a_variant_is_read_and_said(tmp_path, options):
    found = diffusers_folder.read(tiny.save("sd3", tmp_path / "fp16", variant="fp16", **options))
    assert found.variant == "fp16"
    assert "fp16" in found.assumptions[0]
    model.build(found)


def test_old_folders_name_the_class_that_held_two(saved, tmp_path):
    for name, kind in (("dit", "DiTTransformer2DModel"), ("pixart", "PixArtTransformer2DModel")):
        old = shutil.copytree(saved(name), tmp_path / name)
        edit(old / "transformer" / "config.json", _class_name="Transformer2DModel")
        found = diffusers_folder.read(old)
        assert found.class_name == kind
        assert type(model.build(found)).__name__ == kind


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        model.build(diffusers_folder.read(path))
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_no_folder_of_this_layout(tmp_path):
    refused(tmp_path, "neither model_index.json nor config.json")


def test_a_pipeline_of_a_unet(copy):
    shutil.rmtree(copy / "transformer")
    refused(copy, "without a transformer")


@pytest.mark.parametrize("content", ["{", "[]", "\xff", "[" * 100_000, '{"a": ' * 50_000])
def test_unreadable_settings(copy, content):
    (copy / "transformer" / "config.json").write_text(content, encoding="latin-1")
    refused(copy, "not readable JSON|no settings")


def test_settings_of_a_megabyte(copy):
    edit(copy / "transformer" / "config.json", padding="x" * 2**20)
    refused(copy, "over 1048576 bytes")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"_class_name": None}, "names no class"),
        ({"_class_name": "UNet2DConditionModel"}, "no transformer of the installed diffusers"),
        ({"_class_name": "DiTPipeline"}, "no transformer of the installed diffusers"),
        ({"_class_name": "__version__"}, "no transformer of the installed diffusers"),
        ({"_class_name": "os.system"}, "no transformer of the installed diffusers"),
        ({"quantization_config": {"quant_method": "quanto"}}, "quantised by .quanto"),
        ({"num_layers": 10**9}, "'num_layers' is larger than its weights allow"),
        ({"sample_size": [8, 10**6]}, "'sample_size' is larger"),
        ({"joint_attention_dim": 13}, r"is of shape \(16, 12\), where \(16, 13\) fits"),
        ({"attention_head_dim": 2**20}, "fits its settings"),
        ({"axes_dims_rope": [2**13] * 3}, "'axes_dims_rope' is larger"),
        ({"nested": {"a": [[2**60]]}}, "'nested' is larger"),
        ({"num_layers": 2}, "unexpected|can build"),
        ({"num_layers": 4}, "missing|can build"),
        ({"patch_size": "two"}, "no SD3Transformer2DModel that diffusers can build"),
    ],
)
def test_settings_that_do_not_fit(copy, changes, match):
    edit(copy / "transformer" / "config.json", **changes)
    refused(copy, match)


def test_pickled_weights(copy):
    home = copy / "transformer"
    (home / WEIGHTS).unlink()
    torch.save({}, home / "diffusion_pytorch_model.bin")
    refused(copy, "pickles, which are never opened")


def test_a_pickle_that_calls_itself_safetensors(copy):
    torch.save({"a": torch.ones(1)}, copy / "transformer" / WEIGHTS)
    refused(copy, "of another kind under that name")


def test_no_weights(copy):
    (copy / "transformer" / WEIGHTS).unlink()
    refused(copy, "no weights")


def test_a_folder_of_transformers_is_refused_before_weights_are_missed(copy):
    home = copy / "transformer"
    (home / WEIGHTS).rename(home / "model.safetensors")
    edit(home / "config.json", _class_name=None, architectures=["T5Model"], model_type="t5")
    refused(copy, "names no class")


def test_weights_cut_short(copy):
    path = copy / "transformer" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-8])
    refused(copy, "cannot be read")


def test_nan_weights(copy):
    from dar_probe.errors import ProbeError

    path = copy / "transformer" / WEIGHTS
    weights = load_file(path)
    weights["proj_out.bias"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ProbeError, match="'proj_out.bias' has 1 of"):
        model.build(diffusers_folder.read(copy))


def test_settings_that_the_weights_do_not_fit_cost_no_memory(copy, monkeypatch):
    """A short config.json could ask for gigabytes: the class is built without any first."""
    edit(copy / "transformer" / "config.json", attention_head_dim=2**20)
    kind = model.transformer_class("SD3Transformer2DModel")
    called = []
    monkeypatch.setattr(kind, "from_pretrained", lambda *args, **kwargs: called.append(args))
    refused(copy, "fits its settings")
    assert not called


@pytest.mark.parametrize("name", ["transformer/" + WEIGHTS, "transformer/config.json"])
@pytest.mark.parametrize("kind", ["pipe", "zeros", "loop"])
def test_special_files_in_a_folder_block_nobody(copy, name, kind):
    path = copy / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "zeros" else path.name)
    refused(copy, "not a regular file|cannot be opened|has neither")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('{"weight_map": {' + ",".join(f'"{i}": "a"' for i in range(10**5)) + "}}", "over 1048576"),
        ('{"weight_map": [' + "{}," * 300_000 + "0]}", "lists no weights"),
        ("[" * 100_000, "not readable JSON"),
        ('{"weight_map": {"a": "diffusion_pytorch_model\\u0000.safetensors"}}', "lacks the shard"),
        ('{"weight_map": {"a": "diffusion_pytorch_model.safetensors.index.json"}}', "no shard"),
    ],
)
def test_hostile_indices(shards, content, match):
    (shards / "transformer" / INDEX).write_text(content)
    refused(shards, match)


def test_a_shard_with_more_than_its_index_says_is_not_read_on(shards):
    """Or a thousand shards, each with a header that takes a second, would take long."""
    first, second = diffusers_folder.read(shards).weights[:2]
    save_file({**load_file(first), "one.more": torch.zeros(1)}, first)
    second.write_bytes(b"no shard")
    refused(shards, "disagree on 'one.more'")


def test_a_shard_is_missing(shards):
    diffusers_folder.read(shards).weights[0].unlink()
    refused(shards, "lacks the shard")


def test_shards_without_index(shards):
    (shards / "transformer" / INDEX).unlink()
    refused(shards, "without their index")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("../../secret.safetensors", "no shard"),
        ("/etc/passwd", "no shard"),
        ("diffusion_pytorch_model/../../x.safetensors", "outside the folder"),
        ("diffusion_pytorch_model.bin", "no shard"),
        (7, "no shard"),
    ],
)
def test_an_index_that_leaves_the_folder(shards, name, match):
    index = shards / "transformer" / INDEX
    listed = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map={**listed, "proj_out.bias": name})
    refused(shards, match)


@pytest.mark.parametrize("listed", [{}, [], {"proj_out.bias": WEIGHTS}])
def test_an_index_that_says_nothing(shards, listed):
    edit(shards / "transformer" / INDEX, weight_map=listed)
    refused(shards, "lists no weights|lacks the shard")


def test_an_index_that_disagrees_with_its_shards(shards):
    index = shards / "transformer" / INDEX
    listed = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map={**listed, "one.more": next(iter(listed.values()))})
    refused(shards, "disagree on 'one.more'")


def test_a_tensor_in_two_shards(shards):
    first, second = diffusers_folder.read(shards).weights[:2]
    weights = load_file(second)
    key, value = next(iter(load_file(first).items()))
    save_file({**weights, key: value}, second, metadata={"format": "pt"})
    refused(shards, "in two of its files")


def test_without_diffusers_one_is_told_what_to_install(saved, monkeypatch):
    import sys

    found = diffusers_folder.read(saved("sd3"))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError) as caught:
        model.build(found)
    assert caught.value.hint == "pip install 'dar-probe[diffusers]'"


def test_verbosity_is_restored():
    from diffusers.utils import logging

    before = logging.get_verbosity()
    with model.quiet():
        assert logging.get_verbosity() == logging.ERROR
    assert logging.get_verbosity() == before


def test_nothing_imports_diffusers_until_it_is_needed():
    import subprocess
    import sys

    code = (
        "import sys, dar_probe.checkpoints.diffusers_folder, dar_probe.models.diffusers.model\n"
        "import dar_probe.models.diffusers.inputs\n"
        "import dar_probe.models.diffusers.scheduler, dar_probe.models.diffusers.sampling\n"
        "assert 'diffusers' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_may_hold_what_diffusers_lets_it_hold():
    """The list is diffusers' own and private: a new version may rename it."""
    import diffusers

    assert model.left_over(diffusers.WanTransformer3DModel) == ["norm_added_q"]
    assert model.left_over(diffusers.DiTTransformer2DModel) == []
