"""Packed weights: the numbers that they stand for, or a refusal that names how they are packed."""

import itertools
import json
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

import dar_probe as dp
from dar_probe.checkpoints import gguf_blocks
from dar_probe.checkpoints.peek import peek
from dar_probe.checkpoints.reader import read
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.files import gguf_header
from dar_probe.files.gguf_header import TYPES
from dar_probe.models.inspection import survey
from dar_probe.models.loading import load_checkpoint
from dar_probe.models.options import CheckpointOptions
from tests.checkpoints import packed
from tests.checkpoints.packed import settings
from tests.hostile.builders import official_state

FP8 = torch.float8_e4m3fn
STATE = official_state(width=32)
LAYERS = [
    name.removesuffix(".weight") for name in STATE if name.endswith(("fc1.weight", "qkv.weight"))
]


def save(path, state):
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


def measured_like(path, state, tmp_path):
    """Analyze a file, and a plain one with the values that it stands for: equal bit for bit."""
    grid = {"heads": 2, "noise_levels": [0.5], "samples": 2}
    plain = save(tmp_path / "plain.safetensors", {k: v.float() for k, v in state.items()})
    one, other = dp.analyze(path, **grid).dataset, dp.analyze(plain, **grid).dataset
    for name in ("gate", "rms", "loss"):
        assert one[name].identical(other[name])
    return json.loads(one.attrs["manifest"])["assumptions"]


def both(path, dtype=None):
    """Peek and read; names, shapes and types of both are the same."""
    seen, found = peek(path), read(path, dtype=dtype)
    assert seen.shapes == {name: tuple(value.shape) for name, value in found.state.items()}
    if dtype is None:
        assert seen.dtypes == {name: value.dtype for name, value in found.state.items()}
    return seen, found.state


def refused(path, words):
    for look in (peek, read, lambda p: survey(CheckpointOptions(path=p, heads=2))):
        with pytest.raises(CheckpointError, match=words) as caught:
            look(path)
        assert caught.value.hint and str(caught.value).isprintable()


# --- ComfyUI's eight bits with scales


def scaled(names=("scale_weight", "scale_input"), rows=False):
    """Return a state dict whose layers are in 8 bits with scales, and its values."""
    generator = torch.Generator().manual_seed(0)
    state, values = dict(STATE), {k: v.double() for k, v in STATE.items()}
    for layer in LAYERS:
        name = f"{layer}.weight"
        state[name] = STATE[name].to(FP8)
        shape = (len(STATE[name]), 1) if rows else ()
        scale = torch.rand(shape, generator=generator) + 0.5
        state[f"{layer}.{names[0]}"] = scale
        state[f"{layer}.{names[1]}"] = torch.ones(())
        values[name] = state[name].double() * scale.double()
    return state, values


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("rows", [False, True], ids=["one scale", "a scale a row"])
@pytest.mark.parametrize(
    "names", [("scale_weight", "scale_input"), ("weight_scale", "input_scale")]
)
def test_scales_of_eight_bits_are_applied(tmp_path, names, rows, prefix):
    state, values = scaled(names, rows)
    state["scaled_fp8"] = torch.empty(0, dtype=FP8)
    if names[0] == "weight_scale":
        for layer in LAYERS:
            state[f"{layer}.comfy_quant"] = settings({"format": "float8_e4m3fn"})
    path = save(tmp_path / "x.safetensors", {prefix + k: v for k, v in state.items()})
    seen, found = both(path)
    assert seen.shapes == {k: tuple(v.shape) for k, v in STATE.items()}
    for name, value in values.items():
        torch.testing.assert_close(found[name].double(), value, rtol=2e-7, atol=0)
    assert seen.dequantised == {f"{layer}.weight" for layer in LAYERS}
    said = " ".join(seen.assumptions)
    assert f"{len(LAYERS)} of the weights dequantised from float8_e4m3fn by the scales" in said
    assert "what their layers read are not used" in said
    assert all(v.dtype == torch.bfloat16 for k, v in both(path, torch.bfloat16)[1].items()
               if k in seen.dequantised)  # fmt: skip


def test_scaled_weights_are_measured_as_what_they_stand_for(tmp_path):
    state, _ = scaled()
    path = save(tmp_path / "x.safetensors", state)
    said = measured_like(path, read(path).state, tmp_path)
    assert any("dequantised from float8_e4m3fn" in one for one in said)


LAYER = LAYERS[0]
CONTRADICTIONS = {
    "a scale of a wide weight": {f"{LAYER}.weight": STATE[f"{LAYER}.weight"]},
    "a scale without a weight": {"nowhere.scale_weight": torch.ones(())},
    "integer scale": {f"{LAYER}.scale_weight": torch.ones((), dtype=torch.int64)},
    "scales of other rows": {f"{LAYER}.scale_weight": torch.ones(5)},
    "another format": {f"{LAYER}.comfy_quant": settings({"format": "nvfp4"})},
    "no format": {f"{LAYER}.comfy_quant": torch.zeros(3, dtype=torch.uint8)},
    "a lone table": {f"{LAYER}.weight.quant_map": torch.zeros(16)},
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_scales_that_do_not_fit_are_refused(tmp_path, name):
    state, _ = scaled()
    path = save(tmp_path / "x.safetensors", state | CONTRADICTIONS[name])
    refused(path, "does not fit its weight|belongs to no packed weight")


# --- bitsandbytes


def packed_state(**options):
    state, values = dict(STATE), {k: v.double() for k, v in STATE.items()}
    for at, layer in enumerate(LAYERS):
        name = f"{layer}.weight"
        parts, values[name] = packed.four_bits(tuple(STATE[name].shape), seed=at, **options)
        del state[name]
        state |= {f"{name}{end}": part for end, part in parts.items()}
    return state, values


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("nested", [None, 5], ids=["plain scales", "packed scales"])
@pytest.mark.parametrize("block", [64, 100])
def test_four_bits_of_bitsandbytes(tmp_path, block, nested, dtype):
    state, values = packed_state(block=block, nested=nested, dtype=dtype)
    state = {f"model.diffusion_model.{name}": value for name, value in state.items()}
    seen, found = both(save(tmp_path / "x.safetensors", state))
    assert seen.shapes == {k: tuple(v.shape) for k, v in STATE.items()}
    step = {"float32": 1e-6, "bfloat16": 2**-8, "float16": 2**-10}[dtype]
    for name, value in values.items():
        torch.testing.assert_close(found[name].double(), value, rtol=step, atol=1e-7)
    assert f"{len(LAYERS)} of the weights dequantised from nf4 of bitsandbytes" in seen.assumptions


def test_an_odd_number_of_weights_ends_in_half_a_byte(tmp_path):
    parts, values = packed.four_bits((3, 5), block=4)
    state = {f"w.0.weight{end}": part for end, part in parts.items()}
    _, found = both(save(tmp_path / "x.safetensors", state))
    torch.testing.assert_close(found["w.0.weight"].double(), values, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_bits_are_those_of_the_library(tmp_path, kind, nested, dtype):
    """Rows of whole blocks: bitsandbytes 0.50.2 is wrong for others on a processor."""
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    codes, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
    parts = {f"w.0.weight.{k}": v for k, v in state.as_dict(packed=True).items()}
    _, found = both(save(tmp_path / "x.safetensors", {"w.0.weight": codes, **parts}))
    assert torch.equal(found["w.0.weight"], functional.dequantize_4bit(codes, state))


def rows_of_int8():
    generator = torch.Generator().manual_seed(0)
    state, values = dict(STATE), {k: v.double() for k, v in STATE.items()}
    for layer in LAYERS:
        name = f"{layer}.weight"
        shape = STATE[name].shape
        state[name] = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
        state[f"{layer}.SCB"] = torch.rand(shape[0], generator=generator) + 0.5
        state[f"{layer}.weight_format"] = torch.zeros((), dtype=torch.uint8)
        values[name] = state[name].double() * state[f"{layer}.SCB"].double()[:, None] / 127
    return state, values


def test_eight_bits_of_bitsandbytes(tmp_path):
    state, values = rows_of_int8()
    path = save(tmp_path / "x.safetensors", state)
    seen, found = both(path)
    for name, value in values.items():
        torch.testing.assert_close(found[name].double(), value, rtol=3e-7, atol=0)
    assert f"{len(LAYERS)} of the weights dequantised from int8 of bitsandbytes" in seen.assumptions
    measured_like(path, found, tmp_path)


def test_eight_bits_are_those_of_the_library():
    functional = pytest.importorskip("bitsandbytes.functional")
    from dar_probe.checkpoints.quantised import dequantised

    state, _ = rows_of_int8()
    name = f"{LAYER}.weight"
    theirs = functional.int8_vectorwise_dequant(state[name], state[f"{LAYER}.SCB"])
    found = dequantised(state, "x").state
    assert torch.equal(found[name], theirs)
    assert not state, "what was packed takes no memory beside what it became"


def changed(**told):
    def change(state):
        name = f"{LAYER}.weight.quant_state.bitsandbytes__nf4"
        state[name] = settings({**json.loads(bytes(state[name].tolist())), **told})

    return change


def part(end, value):
    return lambda state: state.update({f"{LAYER}.weight{end}": value})


LIES = {
    "a larger shape": changed(shape=[10**6, 10**6]),
    "a huge shape": changed(shape=[2**40, 2**40]),
    "a negative shape": changed(shape=[-96, -32]),
    "no shape": changed(shape=None),
    "a shape of words": changed(shape=["96", 32]),
    "another shape": changed(shape=[96, 33]),
    "no block": changed(blocksize=0),
    "a block of one": changed(blocksize=1),
    "a block of words": changed(blocksize="64"),
    "another type": changed(dtype="int64"),
    "a type of a module": changed(dtype="load"),
    "short scales": part(".absmax", torch.ones(3)),
    "integer scales": part(".absmax", torch.ones(48, dtype=torch.int64)),
    "a short table": part(".quant_map", torch.ones(15)),
    "short codes": part("", torch.ones(10, 1, dtype=torch.uint8)),
    "scales of scales without their table": part(".nested_absmax", torch.ones(1)),
    "no JSON": part(".quant_state.bitsandbytes__nf4", torch.ones(9, dtype=torch.uint8)),
    "deep JSON": part(
        ".quant_state.bitsandbytes__nf4", torch.full((1000,), ord("["), dtype=torch.uint8)
    ),
    "long JSON": part(".quant_state.bitsandbytes__nf4", torch.full((5000,), 32, dtype=torch.uint8)),
    "a list": part(".quant_state.bitsandbytes__nf4", settings([1])),
}


NESTED = {
    "no length of scales": changed(nested_blocksize=0),
    "a length of words": changed(nested_blocksize="256"),
    "no offset": changed(nested_offset=None),
    "an endless offset": changed(nested_offset=float("inf")),
    "a short table of scales": part(".nested_quant_map", torch.ones(255)),
    "short scales of scales": part(".nested_absmax", torch.ones(2)),
    "plain scales": part(".absmax", torch.ones(48)),
}


@pytest.mark.parametrize("name", [*LIES, *NESTED])
def test_settings_of_four_bits_are_not_trusted(tmp_path, name):
    state, _ = packed_state(nested=5 if name in NESTED else None)
    (LIES | NESTED)[name](state)
    refused(save(tmp_path / "x.safetensors", state), "does not fit its weight")


@pytest.mark.parametrize(
    ("end", "value"),
    [("SCB", torch.ones(5)), ("SCB", torch.ones(96, dtype=torch.float64)),
     ("weight", torch.ones(96, 32)), ("weight", torch.ones(96, dtype=torch.int8))],
)  # fmt: skip
def test_eight_bits_that_do_not_fit_are_refused(tmp_path, end, value):
    state, _ = rows_of_int8()
    state[f"{LAYER}.{end}"] = value
    refused(save(tmp_path / "x.safetensors", state), "does not fit its weight")


def test_eight_bits_in_the_order_of_another_device_are_refused(tmp_path):
    state, _ = rows_of_int8()
    state[f"{LAYER}.weight_format"] = torch.ones((), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="order for another device"):
        read(save(tmp_path / "x.safetensors", state))


# --- what is not read


def test_packed_weights_in_a_pickle_are_refused_with_the_line_that_converts_them(tmp_path):
    state, _ = packed_state()
    torch.save(state, tmp_path / "OLD")
    with pytest.raises(CheckpointError, match="read from safetensors alone") as caught:
        load_checkpoint(CheckpointOptions(path=tmp_path / "OLD", heads=2))
    line = caught.value.hint.partition(" converts")[0]
    names = {"OLD": tmp_path / "OLD", "NEW": tmp_path / "NEW"}
    exec(f"import safetensors.torch, torch\n{line}", names)
    assert peek(tmp_path / "NEW").shapes.keys() == STATE.keys()


@pytest.mark.parametrize(
    ("end", "kind"),
    [("qweight", "GPTQ, AWQ"), ("weight._data", "quanto"), ("_weight_qdata", "torchao"),
     ("weight_scale_2", "NVFP4"), ("weight_packed", "compressed-tensors"),
     ("weight_scale_inv", "blocks of 8 bits")],
)  # fmt: skip
def test_other_ways_of_packing_are_refused_by_name(tmp_path, end, kind):
    state = dict(STATE)
    state[f"{LAYER}.{end}"] = torch.ones(4, dtype=torch.int32)
    refused(save(tmp_path / "x.safetensors", state), f"packed by {kind}")


def test_plain_integers_are_still_refused(tmp_path):
    state = STATE | {f"{LAYER}.weight": STATE[f"{LAYER}.weight"].to(torch.int8)}
    with pytest.raises(CheckpointError, match="quantised weights.* is int8"):
        load_checkpoint(CheckpointOptions(path=save(tmp_path / "x.safetensors", state), heads=2))


# --- GGUF


@pytest.mark.parametrize("kind", [packed.Q8_0, packed.Q4_0], ids=["Q8_0", "Q4_0"])
def test_gguf(tmp_path, kind):
    pytest.importorskip("gguf")
    tensors, values = packed.as_gguf(STATE, kind)
    path = packed.gguf(tmp_path / "x.gguf", tensors)
    seen, found = both(path)
    assert found.keys() == STATE.keys()
    for name, value in values.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-6, atol=1e-9)
    title = {packed.Q8_0: "Q8_0", packed.Q4_0: "Q4_0"}[kind]
    count = len(seen.dequantised)
    assert count > 8
    assert f"{count} of the weights dequantised from {title} by gguf" in " ".join(seen.assumptions)
    measured_like(path, found, tmp_path)


def test_gguf_of_plain_numbers_needs_no_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    kinds = itertools.cycle(((packed.F32, torch.float32), (packed.F16, torch.float16),
                             (packed.BF16, torch.bfloat16)))  # fmt: skip
    expected, tensors = {}, {}
    for (name, value), (kind, dtype) in zip(STATE.items(), kinds, strict=False):
        expected[name] = value.to(dtype)
        raw = expected[name].contiguous().view(torch.uint8).numpy().tobytes()
        tensors[name] = (kind, tuple(value.shape), raw)
    seen, found = both(packed.gguf(tmp_path / "x.gguf", tensors, version=2))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not seen.dequantised and not seen.assumptions


def test_gguf_without_the_package(tmp_path, monkeypatch):
    path = packed.gguf(tmp_path / "x.gguf", packed.as_gguf(STATE)[0])
    monkeypatch.setitem(sys.modules, "gguf", None)
    for look in (peek, read, lambda p: dp.analyze(p, heads=2)):
        with pytest.raises(UsageError, match="needs the package gguf") as caught:
            look(path)
        assert caught.value.hint == "pip install 'dar-probe[gguf]'"


def test_gguf_in_the_shape_before_comfyui_flattened_it(tmp_path):
    pytest.importorskip("gguf")
    tensors, values = packed.as_gguf({"w.0.weight": torch.zeros(2, 64)})
    path = packed.gguf(tmp_path / "x.gguf", tensors, shapes={"w.0.weight": (4, 2, 2, 2, 4)})
    seen, found = both(path)
    assert seen.shapes["w.0.weight"] == (4, 2, 2, 2, 4)
    torch.testing.assert_close(
        found["w.0.weight"].double(), values["w.0.weight"].reshape(4, 2, 2, 2, 4),
        rtol=1e-6, atol=1e-9,
    )  # fmt: skip


def test_a_file_of_the_package_itself_is_read(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "flux")
    writer.add_array("words", ["a", "b"])
    writer.add_array("numbers", [1, 2, 3])
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(kind, 7)
    for kind in ("float32", "float64"):
        getattr(writer, f"add_{kind}")(kind, 0.5)
    writer.add_bool("bool", True)
    for at, numbers in enumerate(([1.5], [True, False], [7], [-1])):
        writer.add_array(f"numbers.{at}", numbers)
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(0)).numpy()
    kinds = [gguf.GGMLQuantizationType[name] for name in ("Q8_0", "Q5_1", "Q4_1", "Q5_0")]
    for kind in kinds:
        writer.add_tensor(f"w.{int(kind)}.weight", gguf.quantize(weight, kind), raw_dtype=kind)
    writer.add_tensor("w.0.bias", weight[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _, found = both(tmp_path / "x.gguf")
    assert torch.equal(found["w.0.bias"], torch.from_numpy(weight[0]))
    for kind in kinds:
        theirs = torch.from_numpy(gguf.dequantize(gguf.quantize(weight, kind), kind))
        assert torch.equal(found[f"w.{int(kind)}.weight"], theirs)
        assert (theirs - torch.from_numpy(weight)).abs().max() < 0.3


@pytest.mark.parametrize("number", [n for n, (_, block, _) in TYPES.items() if block > 1])
def test_every_type_is_that_of_the_package(tmp_path, number):
    gguf = pytest.importorskip("gguf")
    title, block, width = TYPES[number]
    kind = gguf.GGMLQuantizationType(number)
    assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (title, (block, width))
    raw = np.random.default_rng(0).integers(0, 256, (3, 512 // block * width), dtype=np.uint8)
    path = packed.gguf(tmp_path / "x.gguf", {"w.0.weight": (number, (3, 512), raw.tobytes())})
    with np.errstate(all="ignore"):
        theirs = gguf.dequantize(raw, kind)
    np.testing.assert_array_equal(read(path).state["w.0.weight"].numpy(), theirs)


def test_the_types_are_those_of_the_package():
    gguf = pytest.importorskip("gguf")
    names = (
        "F32 F16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S "
        "IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16 TQ1_0 TQ2_0 MXFP4"
    )
    kinds = [gguf.GGMLQuantizationType[name] for name in names.split()]
    expected = {int(kind): (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in kinds}
    assert expected == gguf_header.TYPES


@pytest.mark.parametrize("order", [1, -1])
def test_a_tensor_of_gguf_that_is_called_like_a_shape_is_refused(tmp_path, order):
    tensors = {"w": (packed.Q8_0, (32,), bytes(34)), "w.gguf": (packed.F32, (2,), bytes(8))}
    path = packed.gguf(tmp_path / "x.gguf", dict(list(tensors.items())[::order]))
    refused(path, "a name twice|type and shape cannot be read")


@pytest.mark.parametrize(
    "told",
    [torch.tensor([8, 32]), torch.tensor([8.0, 32.0]), torch.tensor([], dtype=torch.int64)],
)
def test_a_shape_of_gguf_in_another_file_is_refused(tmp_path, told):
    state = {"w": torch.zeros(34, dtype=torch.uint8), "w.gguf": told}
    with pytest.raises(CheckpointError, match="type and shape cannot be read"):
        peek(save(tmp_path / "x.safetensors", state))


@pytest.mark.parametrize(
    "told", [[99, 32], [8, 0], [8, -32], [8, 33], [8, 64], [8, 2**62, 2**62], [1, 17]]
)
def test_types_and_shapes_of_gguf_must_fit_the_bytes(told):
    raw = torch.zeros(34, dtype=torch.uint8)
    assert gguf_blocks.packed(raw, torch.tensor([8, 4, 8])) == (8, (4, 8))
    if told == [1, 17]:
        assert gguf_blocks.packed(raw, torch.tensor(told)) == (1, (17,))
        raw = raw.to(torch.int8)
    with pytest.raises(ValueError):
        gguf_blocks.packed(raw, torch.tensor(told))
