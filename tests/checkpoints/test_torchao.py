"""Weights that torchao packed: the numbers they stand for, by arithmetic that shares no code."""

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch

import dar_probe as dp
from dar_probe.checkpoints.peek import peek
from dar_probe.checkpoints.reader import read
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models.inspection import survey
from dar_probe.models.loading import load_checkpoint
from dar_probe.models.options import CheckpointOptions
from tests.hostile.builders import official_state
from tests.models.diffusers import tiny

quantization = pytest.importorskip("torchao.quantization")
support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")

STATE = official_state(width=32)
KINDS = {
    "int8": quantization.Int8WeightOnlyConfig(),
    "float8": quantization.Float8WeightOnlyConfig(),
    "groups": quantization.IntxWeightOnlyConfig(
        weight_dtype=torch.int4, granularity=quantization.PerGroup(16)
    ),
}


def packed(kind):
    """Return a state dict whose layers are packed, as one file's tensors and its metadata."""
    state = dict(STATE)
    for name in STATE:
        if name.endswith(("fc1.weight", "qkv.weight")):
            layer = torch.nn.Linear(*reversed(STATE[name].shape))
            layer.weight = torch.nn.Parameter(STATE[name].clone())
            quantization.quantize_(torch.nn.Sequential(layer), KINDS[kind])
            state[name] = layer.weight.detach()
    state = {name: value if value.__class__ is not torch.nn.Parameter else value.detach()
             for name, value in state.items()}  # fmt: skip
    return support.flatten_tensor_state_dict(state)


def values(flat, metadata):
    """Return what the parts stand for: scale times what is left of the code, group by group."""
    found = {}
    for name in json.loads(metadata["tensor_names"]):
        start = name.removesuffix("weight") + "_weight_"
        if f"{start}qdata" not in flat:
            found[name] = flat[name]
            continue
        code, scale = flat[f"{start}qdata"].double(), flat[f"{start}scale"].double()
        zero = flat.get(f"{start}zero_point", torch.zeros_like(scale)).double()
        rows, groups = scale.shape
        code = code.reshape(rows, groups, -1)
        found[name] = ((code - zero[..., None]) * scale[..., None]).reshape(rows, -1).float()
    return found


def save(path, flat, metadata):
    safetensors.torch.save_file({k: v.contiguous() for k, v in flat.items()}, path, metadata)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_are_read_as_the_numbers_they_stand_for(tmp_path, kind):
    flat, metadata = packed(kind)
    wanted = values(flat, metadata)
    path = save(tmp_path / "x.safetensors", flat, metadata)
    found = read(path).state
    assert found.keys() == STATE.keys() and len(flat) > len(STATE)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=0)
    moved = sum(not torch.equal(found[name], STATE[name]) for name in STATE)
    assert moved == sum(name.endswith("_qdata") for name in flat)
    seen = peek(path)
    assert seen.shapes == {name: tuple(value.shape) for name, value in found.items()}
    assert seen.dtypes == {name: value.dtype for name, value in found.items()}


def test_they_are_measured_as_plain_ones(tmp_path):
    flat, metadata = packed("int8")
    path = save(tmp_path / "x.safetensors", flat, metadata)
    plain = save(tmp_path / "plain.safetensors", read(path).state, None)
    grid = {"heads": 2, "noise_levels": [0.5], "samples": 2}
    one, other = dp.analyze(path, **grid).dataset, dp.analyze(plain, **grid).dataset
    for name in ("gate", "rms", "loss"):
        assert one[name].identical(other[name])
    said = json.loads(one.attrs["manifest"])["assumptions"]
    assert any("dequantised from Int8Tensor by torchao" in line for line in said)


@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_that_diffusers_saved(tmp_path, shards):
    """The transformer is packed and saved by diffusers itself, in one file or several."""
    diffusers = pytest.importorskip("diffusers")
    plain = tiny.build("pixart")
    plain.save_pretrained(tmp_path / "plain")
    config = diffusers.TorchAoConfig(quantization.Int8WeightOnlyConfig())
    kind = type(plain)
    model = kind.from_pretrained(
        tmp_path / "plain", quantization_config=config, torch_dtype=torch.bfloat16
    )
    home = tmp_path / "packed"
    model.save_pretrained(home, **({"max_shard_size": "10KB"} if shards else {}))
    assert shards == (len(list(home.glob("*.safetensors"))) > 1)
    loaded = load_checkpoint(CheckpointOptions(path=home))
    assert loaded.file["name"] == survey(CheckpointOptions(path=home)).file["name"]
    many = 0
    for name, value in model.state_dict().items():
        own = type(value) is not torch.Tensor
        many += own
        torch.testing.assert_close(
            loaded.model.state_dict()[name], (value.dequantize() if own else value).float(),
            rtol=1e-6, atol=0,
        )  # fmt: skip
    assert many > 3


@pytest.mark.parametrize(
    "told",
    ["{}", "[]", "{", "3", '{"_tensor_data_names": []}', '{"_tensor_data_names": ["qdata"]}',
     '{"_type": "os.system", "_data": {}, "_tensor_data_names": ["qdata", "scale", "zero_point"]}',
     '{"_type": "Int8Tensor", "_data": 3, "_tensor_data_names": ["qdata", "scale", "zero_point"]}',
     '{"_type": "Int8Tensor", "_data": {}, "_tensor_data_names": ["qdata", "scale", "other"]}',
     '{"_type": "PerRow", "_data": {}, "_tensor_data_names": ["qdata", "scale", "zero_point"]}',
     "[" * 100_000],
)  # fmt: skip
def test_metadata_that_do_not_fit_are_refused(tmp_path, told):
    flat, metadata = packed("int8")
    name = next(k for k, text in metadata.items() if "Int8Tensor" in text)
    path = save(tmp_path / "x.safetensors", flat, metadata | {name: told})
    for look in (peek, read):
        with pytest.raises(CheckpointError) as caught:
            look(path)
        assert caught.value.hint and str(caught.value).isprintable()


@pytest.mark.parametrize("end", ["qdata", "scale", "zero_point"])
def test_a_part_that_is_missing_is_named(tmp_path, end):
    flat, metadata = packed("int8")
    lost = next(name for name in flat if name.endswith(end))
    del flat[lost]
    path = save(tmp_path / "x.safetensors", flat, metadata)
    with pytest.raises(CheckpointError):
        read(path)


def test_a_part_of_another_shape_is_refused(tmp_path):
    flat, metadata = packed("groups")
    name = next(name for name in flat if name.endswith("scale"))
    flat[name] = flat[name][:, :1]
    with pytest.raises(CheckpointError):
        read(save(tmp_path / "x.safetensors", flat, metadata))


def test_without_the_package_it_is_asked_for(tmp_path, monkeypatch):
    flat, metadata = packed("int8")
    path = save(tmp_path / "x.safetensors", flat, metadata)
    monkeypatch.setitem(sys.modules, "torchao.prototype.safetensors", None)
    with pytest.raises(UsageError, match="need the package torchao") as caught:
        read(path)
    assert "dar-probe[torchao]" in caught.value.hint


def test_it_is_imported_for_such_files_alone(tmp_path):
    path = save(tmp_path / "x.safetensors", STATE, {"format": "pt"})
    code = f"from dar_probe.checkpoints.reader import read; import sys; read({str(path)!r}); " \
           "assert 'torchao' not in sys.modules"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)
