"""Models of JAX in .npz files: every array finds its place, turned as torch has it, or is named."""

import io
import os
import struct
import zipfile

import numpy as np
import pytest
import torch

import dar_probe as dp
from dar_probe import checkpoints
from dar_probe.checkpoints import jax_model
from dar_probe.checkpoints.folders import model_file
from dar_probe.checkpoints.peek import peek
from dar_probe.errors import CheckpointError
from dar_probe.models.inspection import survey
from dar_probe.models.loading import load_checkpoint
from dar_probe.models.options import CheckpointOptions
from tests.helpers import jax_trees
from tests.hostile.builders import official_shapes
from tests.models import check

HEADS = 2
SIZES = {"depth": 3, "width": 16, "size": 8, "rows": 11}


def official(**sizes):
    shapes = official_shapes(**{**SIZES, **sizes})
    return {name: value.float() for name, value in check.random_state(shapes).items()}


def write(path, arrays):
    np.savez(path, **arrays)
    return path


def loaded(path, **options):
    return load_checkpoint(CheckpointOptions(path=path, **options))


@pytest.mark.parametrize("sizes", [{}, {"patch": 1, "size": 4, "channels": 32}, {"sigma": True}])
@pytest.mark.parametrize("style", jax_trees.STYLES)
def test_every_style_becomes_the_weights_it_was_made_of(tmp_path, style, sizes):
    state = official(**sizes)
    found = checkpoints.read(write(tmp_path / "x.npz", jax_trees.arrays(state, style)))
    assert found.state.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(found.state[name], value), name
        assert found.state[name].is_contiguous()
    header = peek(tmp_path / "x.npz")
    assert header.shapes == {name: tuple(value.shape) for name, value in state.items()}
    assert header.args == found.args and header.stored == sum(4 * v.numel() for v in state.values())


@pytest.mark.parametrize(
    ("style", "objective", "words"),
    [
        ("kvfrans", "jax-flow", "jax-diffusion-transformer, for which --objective jax-dit is"),
        ("diffuse_nnx", "repa", "time runs t = s"),
        ("torch-like", "sit", "time runs t = 1 - s"),
    ],
)
def test_what_a_port_tells_and_what_is_assumed(tmp_path, style, objective, words):
    """Heads are in the arrays of two; which clock a port trains with is nowhere, and is said."""
    path = write(tmp_path / "x.npz", jax_trees.arrays(official(), style))
    heads = HEADS if style == "torch-like" else None
    for found in (loaded(path, heads=heads), survey(CheckpointOptions(path=path, heads=heads))):
        said = "; ".join(found.assumptions)
        assert jax_model.SAID in said and words in said and "preset table" not in said
    model = loaded(path, heads=heads)
    assert model.objective.name == objective and model.identified.sizes["heads"] == HEADS
    if heads is None:
        with pytest.raises(dp.UsageError, match="trained with 2"):
            loaded(path, heads=4)
    else:
        with pytest.raises(CheckpointError, match="does not tell its heads"):
            loaded(path)


def test_an_analysis_is_that_of_the_torch_file(tmp_path):
    state = official()
    torch.save(state, tmp_path / "x.pt")
    write(tmp_path / "x.npz", jax_trees.arrays(state, "diffuse_nnx"))
    np.savez(tmp_path / "data.npz", latents=np.random.default_rng(0).standard_normal((2, 4, 8, 8)),
             labels=np.arange(2))  # fmt: skip
    options = {"data": f"latents:{tmp_path / 'data.npz'}", "noise_levels": [0.5], "heads": HEADS}
    one = dp.analyze(tmp_path / "x.npz", **options).dataset
    other = dp.analyze(tmp_path / "x.pt", **options, objective="repa").dataset
    for name in ("loss", "rms", "grad_rms", "gate"):
        np.testing.assert_array_equal(one[name].values, other[name].values)


def test_ports_with_other_clocks():
    flow, dit = (dp_objective(name) for name in ("jax-flow", "jax-dit"))
    s = torch.tensor([0.25], dtype=torch.float64)
    x, noise = torch.ones(1, 1), torch.zeros(1, 1)
    assert flow.model_time(s).tolist() == [7500.0] and flow.target(x, noise, s).tolist() == [[1.0]]
    kept, step = 1.0, 0
    while 1 - kept < 0.25**2:  # the first of 500 steps that reaches the level
        kept *= 1 - (2e-4 + (4e-2 - 2e-4) * step / 499)
        step += 1
    assert float(dit.model_time(dit.reached(s))) in (step - 1, step - 2)
    assert float(dit.model_time(dit.reached(torch.ones(1)))) == 499


def dp_objective(name):
    from dar_probe.diffusion import objectives

    others = objectives.candidates(objectives.get(name))
    assert {"jax-flow", "jax-dit", "sit", "repa", "dit"} <= others.keys()
    return objectives.get(name)


def test_an_average_is_preferred_and_what_lies_beside_is_no_model(tmp_path):
    raw, average = official(), {name: value + 1 for name, value in official().items()}
    arrays = {
        **jax_trees.arrays(raw),
        **{f"ema_{name}": value for name, value in jax_trees.arrays(average).items()},
        **{f"opt_state/0/mu/{name}": value for name, value in jax_trees.arrays(raw).items()},
        "step": np.array(7),
    }
    path = write(tmp_path / "x.npz", arrays)
    assert torch.equal(checkpoints.read(path).state["pos_embed"], average["pos_embed"])
    assert torch.equal(checkpoints.read(path, weights="model").state["pos_embed"], raw["pos_embed"])


def test_an_average_that_the_optimiser_keeps_is_not_passed_over(tmp_path):
    """It may be one of parameters, or of updates as optax has it: raw weights must be asked for."""
    raw = official()
    own = jax_trees.arrays(raw)
    average = {f"opt_state/1/ema/params/{name}": value + 1 for name, value in own.items()}
    path = write(tmp_path / "x.npz", {**own, **average})
    for look in (checkpoints.read, peek):
        with pytest.raises(CheckpointError, match="has an average under 'opt_state/1/ema'"):
            look(path)
        look(path, weights="model")
    assert torch.equal(checkpoints.read(path, weights="model").state["pos_embed"], raw["pos_embed"])
    few = {"opt_state/1/ema/loss": np.zeros(3), "opt_state/0/mu/x": np.zeros(90_000)}
    checkpoints.read(write(tmp_path / "x.npz", {**own, **few}))


def test_a_state_dict_of_torch_in_numpys_arrays_is_taken_as_it_is(tmp_path):
    state = official()
    found = peek(write(tmp_path / "x.npz", {name: value.numpy() for name, value in state.items()}))
    assert found.assumptions == []
    assert torch.equal(
        checkpoints.read(tmp_path / "x.npz").state["blocks.0.attn.proj.weight"],
        state["blocks.0.attn.proj.weight"],
    )


def test_qk_norm_and_projectors_have_places():
    places = {
        "blocks_1/attn/q_norm/scale": ("blocks.1.attn.q_norm", "scale"),
        "net/DiTBlock_12/Attention_0/k_norm/bias": ("blocks.12.attn.k_norm", "bias"),
        "projectors_0/layers_2/kernel": ("projectors.0.2", "kernel"),
    }
    for name, (official_name, leaf) in places.items():
        found = jax_model.place(name)
        assert (found.name, found.leaf) == (official_name, leaf)
    assert jax_model.place("net/DiTBlock_12/Attention_0/k_norm/bias").holder == ("net",)
    for name in ("h_embedder/mlp/0/kernel", "blocks/attn/qkv/kernel", "kernel", "", "/"):
        assert jax_model.place(name) is None


@pytest.mark.parametrize("order", ["F", ">"])
def test_arrays_may_lie_in_another_order(tmp_path, order):
    state = official()
    arrays = {
        name: np.asfortranarray(a) if order == "F" else a.astype(">f4")
        for name, a in jax_trees.arrays(state).items()
    }
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    found = checkpoints.read(tmp_path / "x.npz").state
    assert all(torch.equal(found[name], value) for name, value in state.items())


def without(arrays, *words):
    return {n: a for n, a in arrays.items() if not any(word in n for word in words)}


def test_a_missing_table_of_positions_is_asked_for(tmp_path):
    path = write(tmp_path / "x.npz", without(jax_trees.arrays(official()), "pos_embed"))
    with pytest.raises(CheckpointError, match="without its table of positions") as told:
        loaded(path)
    assert "sincos_2d(WIDTH, SIDE)" in told.value.hint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: {**a, "params/TimestepEmbedder_1/Dense_0/kernel": np.ones((2, 2))},
         "no place in DiT's layout: 'params/TimestepEmbedder_1/Dense_0/kernel'"),
        (lambda a: {**a, **{f"params/extra_{k}/kernel": np.ones(1) for k in range(5)}},
         "'params/extra_2/kernel' and 2 more"),
        (lambda a: without(a, "DiTBlock_1/MultiHeadDotProductAttention_0/key/kernel"),
         "'params/DiTBlock_1/MultiHeadDotProductAttention_0/query/kernel'"),
        (lambda a: without(a, "DiTBlock_1/Dense_0/bias"), "'blocks.1.adaLN_modulation.1.bias'"),
        (lambda a: without(a, "FinalLayer_0/Dense_1"), "final_layer.linear"),
        (lambda a: {**a, "params/FinalLayer_0/Dense_1/kernel": np.ones((16, 15))}, "has shape"),
        (lambda a: {**a, "params/FinalLayer_0/Dense_1/kernel": np.ones((2,) * 20)}, "has shape"),
        (lambda a: {**a, "params/PatchEmbed_0/Conv_0/kernel": np.ones((4, 16))}, "has shape"),
        (lambda a: {**a, "params/DiTBlock_0/MultiHeadDotProductAttention_0/key/kernel":
                    np.ones((15, 2, 8))}, "cannot be read"),
        (lambda a: {**a, "params.PatchEmbed_0.Conv_0.bias": np.ones(16)}, "no place"),
        (lambda a: {"arr_0": np.ones((2, 8, 8, 3), np.uint8)}, "holds no model of JAX"),
        (lambda a: {**a, "params/pos_embed": np.ones((1, 16, 16)).astype("V2")}, "type "),
        (lambda a: {**a, "params/pos_embed": np.array(["a"])}, "is of type <U1"),
        (lambda a: {**a, "params/pos_embed": np.ones((1, 16, 16), np.int32)}, "quantised|integer"),
        (lambda a: {**a, "params/pos_embed": np.ones((1, 16, 16), np.longdouble)}, "is of type"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(tmp_path, change, words):
    path = write(tmp_path / "x.npz", change(jax_trees.arrays(official())))
    with pytest.raises(CheckpointError, match=words) as told:
        loaded(path)
    assert str(told.value).isprintable() and told.value.hint.isprintable()


class Marker:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.system, (f"touch {self.folder / 'ran'}",)


def npy(shape, size=64, descr="<f4"):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(size)


def packed(path, *contents, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for k, content in enumerate(contents):
            archive.writestr(f"params/DiTBlock_{k}/Dense_0/bias.npy", content)


def pickled(path):
    np.savez(path, **{"params/pos_embed": np.array([Marker(path.parent)], dtype=object)})


HOSTILE = {
    "larger than it is": (lambda p: packed(p, npy("(10**9, 10**9)")), "cannot be read"),
    "larger than it says": (lambda p: packed(p, npy((1000, 1000))), "not as large as it says"),
    "less than nothing": (lambda p: packed(p, npy((-4, -4))), "not as large as it says"),
    "nothing of much": (lambda p: packed(p, npy((0, 2**62, 2**62), 0)), "cannot be read"),
    "bomb": (lambda p: packed(p, npy((2**26,), 2**28), method=zipfile.ZIP_DEFLATED), "claims"),
    "code": (lambda p: packed(p, npy("(__import__('os').abort(),)")), "cannot be read"),
    "pickle": (pickled, "is of type object"),
    "no array": (lambda p: packed(p, b"nothing"), "cannot be read"),
    "cut short": (lambda p: packed(p, npy((16,))[:40]), "cannot be read"),
    "of a later version": (lambda p: packed(p, b"\x93NUMPY\3\0" + bytes(90)), "version"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives(tmp_path, name, recwarn):
    make, words = HOSTILE[name]
    make(tmp_path / "x.npz")
    recwarn.clear()
    for read in (peek, checkpoints.read):
        with pytest.raises(CheckpointError, match=words):
            read(tmp_path / "x.npz")
    assert not recwarn.list and not (tmp_path / "ran").exists()


def test_two_arrays_of_one_name_are_refused(tmp_path):
    content = io.BytesIO()
    np.save(content, np.ones(96, np.float32))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        with pytest.warns(UserWarning, match="Duplicate"):
            for _ in range(2):
                archive.writestr("params/DiTBlock_0/Dense_0/bias.npy", content.getvalue())
    with pytest.raises(CheckpointError, match="an entry twice"):
        peek(tmp_path / "x.npz")


@pytest.mark.parametrize("head", [b"\x81\xa6params\x82\xa5", b"\x8f\xa1x\x00"])
def test_msgpack_is_refused_with_the_line_that_writes_an_npz(tmp_path, head):
    (tmp_path / "flax_model.msgpack").write_bytes(head + bytes(600))
    with pytest.raises(CheckpointError, match="a msgpack file, as Flax writes") as told:
        loaded(tmp_path / "flax_model.msgpack")
    assert "msgpack_restore" in told.value.hint and "numpy.savez('model.npz'" in told.value.hint


@pytest.mark.parametrize("name", ["_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"])
def test_orbax_is_refused_with_the_line_that_writes_an_npz(tmp_path, name):
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="a folder of orbax") as told:
        model_file(tmp_path)
    assert f"restore({str(tmp_path)!r})" in told.value.hint
    assert "numpy.savez('model.npz'" in told.value.hint
