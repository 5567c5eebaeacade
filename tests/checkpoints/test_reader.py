import argparse
import hashlib
import importlib.util
import math
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from dar_probe import checkpoints
from dar_probe.checkpoints import reader
from dar_probe.checkpoints.header import Header
from dar_probe.checkpoints.reader import check_finite, read
from dar_probe.errors import CheckpointError, ProbeError, UsageError
from dar_probe.models.inspection import survey
from dar_probe.models.loading import load_checkpoint
from dar_probe.models.options import CheckpointOptions
from tests.hostile.builders import official_shapes, official_state, sizes_of, training_checkpoint

STATE = official_state()
OWN = {"format": "dar-probe", "routing": "dar", "query": "dynamic", "chunk_size": 4, "heads": 2}


def of_shapes(
    shapes: dict[str, tuple[int, ...]], args: dict[str, Any] | None = None, weights: str = "ema"
) -> Header:
    return Header(shown="'x.pt'", shapes=shapes, args=args or {}, weights=weights)


# --- reading


def test_a_training_checkpoint_gives_its_average_and_its_settings(tmp_path: Path) -> None:
    path = training_checkpoint(tmp_path / "0400000.pt")
    found = read(path)
    assert found.weights == "ema"
    assert list(found.state) == list(STATE)
    assert all(torch.equal(found.state[key], STATE[key]) for key in STATE)
    assert found.args == {"model": "SiT-XL/2", "num_classes": 10, "path_type": "Linear", "heads": 2}
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.bytes == path.stat().st_size
    assert found.path == path


def test_the_raw_weights_on_request(tmp_path: Path) -> None:
    found = read(training_checkpoint(tmp_path / "x.pt"), weights="model")
    assert found.weights == "model"
    assert torch.equal(found.state["pos_embed"], STATE["pos_embed"] + 1)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_flat_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    (torch.save if suffix == ".pt" else safetensors.torch.save_file)(STATE, path)
    found = checkpoints.read(path)
    assert (found.weights, found.args) == ("flat", {})
    assert all(torch.equal(found.state[key], STATE[key]) for key in STATE)
    with pytest.raises(CheckpointError, match="no ema weights, but one unnamed state dict"):
        read(path, weights="ema")


def test_a_file_with_one_of_the_two(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": {}}, tmp_path / "x.pt")
    assert read(tmp_path / "x.pt").weights == "model"
    with pytest.raises(CheckpointError, match="no ema weights, but 'model'"):
        read(tmp_path / "x.pt", weights="ema")


@pytest.mark.parametrize(
    ("saved", "plain"),
    [
        ("module.blocks.0.w", "blocks.0.w"),
        ("_orig_mod.blocks.0.w", "blocks.0.w"),
        ("_orig_mod.module.w", "w"),
        ("module._orig_mod.model.w", "w"),
        ("_forward_module.module._orig_mod.w", "w"),
        ("blocks.0._orig_mod.attn.w", "blocks.0.attn.w"),
        ("blocks.0._checkpoint_wrapped_module.w", "blocks.0.w"),
        ("blocks.0.model.w", "blocks.0.model.w"),
        ("model", "model"),
    ],
)
def test_prefixes_of_wrappers(tmp_path: Path, saved: str, plain: str) -> None:
    torch.save({saved: torch.zeros(1)}, tmp_path / "x.pt")
    assert list(read(tmp_path / "x.pt").state) == [plain]


def test_the_second_block_list_of_old_repa_files(tmp_path: Path) -> None:
    names = ["blocks.0.w", "blocks.1.w", "decoder_blocks.0.w", "decoder_blocks.11.w", "x"]
    torch.save({f"module.{name}": torch.zeros(1) for name in names}, tmp_path / "x.pt")
    assert list(read(tmp_path / "x.pt").state) == [
        "blocks.0.w", "blocks.1.w", "blocks.2.w", "blocks.13.w", "x",
    ]  # fmt: skip


def test_settings_become_plain_data(tmp_path: Path) -> None:
    args = argparse.Namespace(
        a=1, b=None, c=(1.5, [True]), d={"e": argparse.Namespace(f="g"), 2: 3}, h=torch.float16,
        i=torch.zeros(2), j="\ud800\n",
    )  # fmt: skip
    torch.save({"ema": STATE, "args": args}, tmp_path / "x.pt")
    assert read(tmp_path / "x.pt").args == {
        "a": 1, "b": None, "c": [1.5, [True]], "d": {"e": {"f": "g"}, "2": 3},
        "h": "torch.float16", "i": "<Tensor>", "j": "\\ud800\n",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int8])
def test_weights_keep_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save(official_state(dtype), tmp_path / "x.pt")
    assert {w.dtype for w in read(tmp_path / "x.pt").state.values()} == {dtype}


def test_parameters_and_views_come_out_as_plain_tensors(tmp_path: Path) -> None:
    base = torch.randn(6, 4)
    tensors = {"a": torch.nn.Parameter(base.clone()), "b": base.T, "c": base[2:, 1], "d": base[:0]}
    torch.save({"ema": dict(tensors), "pad": torch.zeros(99)}, tmp_path / "x.pt")
    found = read(tmp_path / "x.pt").state
    for key, value in tensors.items():
        assert type(found[key]) is torch.Tensor and not found[key].requires_grad
        assert torch.equal(found[key], value)


def test_a_file_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, save, step in (
        ("x.pt", torch.save, "_load_zip"),
        ("x.safetensors", safetensors.torch.save_file, "_load_safetensors"),
    ):
        path = tmp_path / name
        save(STATE, path)
        original = getattr(reader, step)

        def load(*args: Any, path: Path = path, original: Any = original) -> Any:
            content = original(*args)
            path.write_bytes(path.read_bytes() + b"\0")
            return content

        monkeypatch.setattr(reader, step, load)
        with pytest.raises(CheckpointError, match="changed while it was read"):
            read(path)


def test_an_old_torch_is_refused_at_import(
    subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("reader_again", reader.__file__)
    assert spec is not None and spec.loader is not None
    for version, refused in (("2.9.1+cu128", True), ("2.6.0", True), ("2.10.0", False)):
        with subtests.test(version=version):
            monkeypatch.setattr(torch, "__version__", version)
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(__import__("sys").modules, "reader_again", module)
            if refused:
                with pytest.raises(UsageError, match=version.replace("+", r"\+")) as caught:
                    spec.loader.exec_module(module)
                assert "torch>=2.10" in caught.value.hint
            else:
                spec.loader.exec_module(module)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_first_tensor_that_is_not_finite_is_named(value: float, dtype: torch.dtype) -> None:
    state = official_state(dtype) | {
        "steps": torch.zeros(3, dtype=torch.int64),
        "none": torch.zeros(0),
    }
    check_finite(state)
    state["blocks.1.attn.qkv.bias"][3] = value
    state["final_layer.linear.bias"][:] = value
    with pytest.raises(ProbeError, match=r"'blocks\.1\.attn\.qkv\.bias' has 1 of 24") as caught:
        check_finite(state)
    assert caught.value.exit_code == 4


# --- identifying


@pytest.mark.parametrize(
    ("width", "depth", "heads"), [(384, 12, 6), (768, 12, 12), (1024, 24, 16), (1152, 28, 16)]
)
@pytest.mark.parametrize("patch", [2, 8])
def test_the_official_presets(width: int, depth: int, heads: int, patch: int) -> None:
    shapes = official_shapes(width=width, depth=depth, patch=patch, size=32, rows=1001, sigma=True)
    found = sizes_of(of_shapes(shapes, weights="flat"))
    assert (found.family, found.width, found.depth, found.heads) == ("sit", width, depth, heads)
    assert (found.patch, found.in_channels, found.input_size) == (patch, 4, 32)
    assert (found.num_classes, found.class_dropout, found.mlp_ratio) == (1000, True, 4.0)
    assert (found.learn_sigma, found.qk_norm, found.projectors, found.routing) == (
        True, False, [], {},
    )  # fmt: skip
    assert found.assumptions == [
        "a plain SiT/DiT layout: read as SiT, time runs t = 1 - s; --objective overrides",
        f"heads from the preset table for width {width}, depth {depth}",
        "the last of 1001 rows in the label table is taken for the dropped labels",
    ]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_flat_file_does_not_say_whether_it_is_averaged(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    (torch.save if suffix == ".pt" else safetensors.torch.save_file)(STATE, path)
    first = "the file does not say whether its weights are averaged (EMA)"
    wanted = CheckpointOptions(path=path, heads=2)
    assert load_checkpoint(wanted).assumptions[0] == first
    assert survey(wanted).assumptions == load_checkpoint(wanted).assumptions
    averaged = CheckpointOptions(path=training_checkpoint(tmp_path / "y.pt"))
    assert first not in load_checkpoint(averaged).assumptions


@given(
    depth=st.integers(1, 12),
    head=st.sampled_from([4, 8, 12, 16]),
    heads=st.integers(1, 8),
    patch=st.integers(1, 4),
    channels=st.integers(1, 33),
    grid=st.integers(1, 9),
    rows=st.integers(2, 40),
    hidden=st.integers(1, 700),
    sigma=st.booleans(),
    qk_norm=st.booleans(),
    projectors=st.lists(st.integers(1, 900), max_size=2),
)
def test_sizes_come_back(
    depth: int, head: int, heads: int, patch: int, channels: int, grid: int, rows: int,
    hidden: int, sigma: bool, qk_norm: bool, projectors: list[int],
) -> None:  # fmt: skip
    shapes = official_shapes(
        depth=depth, width=head * heads, patch=patch, channels=channels, size=grid * patch,
        rows=rows, hidden=hidden, sigma=sigma, head=head if qk_norm else None,
        projectors=tuple(projectors),
    )  # fmt: skip
    found = sizes_of(of_shapes(shapes), heads=None if qk_norm else heads)
    assert (found.depth, found.width, found.heads) == (depth, head * heads, heads)
    assert (found.patch, found.in_channels, found.input_size) == (patch, channels, grid * patch)
    assert (found.num_classes, found.class_dropout) == (rows - 1, True)
    assert int(found.width * found.mlp_ratio) == hidden
    assert (found.learn_sigma, found.qk_norm, found.projectors) == (sigma, qk_norm, projectors)
    assert found.family == ("repa" if projectors else "sit")


@pytest.mark.parametrize(
    ("args", "family", "assumed"),
    [
        ({"model": "SiT-XL/2", "path_type": "Linear", "prediction": "velocity"}, "sit", []),
        ({"model": "DiT-XL/2"}, "dit", ["name the model 'DiT-XL/2': read as DiT, steps 0..999"]),
        ({"model": "DiT-XL/2", "prediction": "velocity"}, "sit", []),
        ({"model": "XL/2"}, "sit", ["a plain SiT/DiT layout"]),
        ({"path_type": "VP", "prediction": "noise"}, "sit", ["path_type 'VP'"]),
        ({"path_type": "GVP\n\x1b[2J"}, "sit", ["path_type 'GVP\\n\\x1b[2J'"]),
    ],
)
def test_family_from_the_settings(args: dict[str, Any], family: str, assumed: list[str]) -> None:
    found = sizes_of(of_shapes(official_shapes(), args | {"num_classes": 10, "heads": 2}))
    assert found.family == family
    assert len(found.assumptions) == len(assumed)
    for sentence, part in zip(found.assumptions, assumed, strict=True):
        assert part in sentence


def test_projectors_mean_repa() -> None:
    shapes = official_shapes(projectors=(768, 1024))
    found = sizes_of(of_shapes(shapes, {"model": "DiT-XL/2", "cfg_prob": 0.1}), heads=2)
    assert (found.family, found.projectors) == ("repa", [768, 1024])
    assert found.assumptions == [
        "projectors are there: read as REPA, time runs t = s; --objective overrides"
    ]


def test_our_own_files_pass_their_routing_on() -> None:
    shapes = official_shapes()
    for name in (f"stream.readers.{k}" for k in range(5)):
        shapes |= {f"{name}.norm.weight": (8,), f"{name}.query.weight": (8, 8)}
    found = sizes_of(of_shapes(shapes, OWN | {"num_classes": 10, "objective": "repa"}))
    assert found.family == "dar-probe"
    assert found.routing == {"routing": "dar", "query": "dynamic", "chunk_size": 4}
    assert found.assumptions == []
    with pytest.raises(CheckpointError, match="routed dar-probe model without its settings"):
        sizes_of(of_shapes(shapes, {"heads": 2}))


@pytest.mark.parametrize(
    "wrong", [{"routing": None}, {"routing": 3}, {"chunk_size": 0}, {"chunk_size": True}]
)
def test_our_own_files_with_a_routing_that_is_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(wrong))):
        sizes_of(of_shapes(official_shapes(), OWN | wrong))
    without = {key: value for key, value in OWN.items() if key != "routing"}
    with pytest.raises(CheckpointError, match="names no routing"):
        sizes_of(of_shapes(official_shapes(), without))


def test_where_the_heads_come_from(subtests: pytest.Subtests) -> None:
    plain, normed = official_shapes(), official_shapes(head=4)
    assert sizes_of(of_shapes(plain), heads=8).heads == 8
    assert sizes_of(of_shapes(plain, {"heads": 4})).heads == 4
    for name in ("num_heads", "n_heads", "n_head", "num_attention_heads"):
        assert sizes_of(of_shapes(plain, {name: 2})).heads == 2
    with pytest.raises(UsageError, match="--heads 8 contradicts 'x.pt': it was trained with 4"):
        sizes_of(of_shapes(plain, {"heads": 4}), heads=8)
    assert sizes_of(of_shapes(normed, {"heads": 8}), heads=2).heads == 2
    with pytest.raises(CheckpointError, match="no preset has width 8 and depth 2") as caught:
        sizes_of(of_shapes(plain))
    assert "--heads" in caught.value.hint
    for told in (3, 0, -2, True, "2", 1.0, [2]):
        with subtests.test(told=told):
            with pytest.raises(CheckpointError, match="do not fit its width 8"):
                sizes_of(of_shapes(plain, {"heads": told}))
    for asked in (3, 0, -2):
        with subtests.test(asked=asked):
            with pytest.raises(UsageError, match="does not divide"):
                sizes_of(of_shapes(plain), heads=asked)
    with pytest.raises(UsageError, match="--heads 4 contradicts 'x.pt': it has 2"):
        sizes_of(of_shapes(normed), heads=4)
    with pytest.raises(CheckpointError, match="q_norm.weight' has shape"):
        sizes_of(of_shapes(official_shapes(head=3)))


@pytest.mark.parametrize(
    ("args", "classes", "dropout"),
    [
        ({}, 10, True),
        ({"num_classes": 10}, 10, True),
        ({"num_classes": 11}, 11, False),
        ({"class_dropout_prob": 0.1}, 10, True),
        ({"class_dropout_prob": 0}, 11, False),
        ({"cfg_prob": 0.0}, 11, False),
        ({"num_classes": True}, 10, True),
        ({"num_classes": 10, "cfg_prob": 0.0}, 10, True),
    ],
)
def test_classes(args: dict[str, Any], classes: int, dropout: bool) -> None:
    found = sizes_of(of_shapes(official_shapes(rows=11), args), heads=2)
    assert (found.num_classes, found.class_dropout) == (classes, dropout)
    told = {"num_classes", "class_dropout_prob", "cfg_prob"} & {
        key for key, value in args.items() if value is not True
    }
    assert any("label table" in sentence for sentence in found.assumptions) == (not told)


@pytest.mark.parametrize(("rows", "args"), [(11, {"num_classes": 12}), (11, {"num_classes": 9})])
def test_classes_that_contradict_the_table(rows: int, args: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="a label table of 11 rows"):
        sizes_of(of_shapes(official_shapes(rows=rows), args), heads=2)
    with pytest.raises(CheckpointError, match="0 classes, and a label table of 1 rows"):
        sizes_of(of_shapes(official_shapes(rows=1)), heads=1)


EVERYTHING = official_shapes(head=4, projectors=(5,))


@pytest.mark.parametrize("key", EVERYTHING)
def test_every_missing_and_every_misshapen_parameter_is_named(key: str) -> None:
    missing = {name: shape for name, shape in EVERYTHING.items() if name != key}
    with pytest.raises(CheckpointError, match="missing|unexpected|contradicts") as caught:
        sizes_of(of_shapes(missing), heads=2)
    # Without the parameter that its list is found by, the parameter's siblings are the culprits.
    assert key in str(caught.value) or key.endswith(("q_norm.weight", "projectors.0.4.bias"))
    right = EVERYTHING[key]
    for shape in ((*right, 1), (*right[:-1], right[-1] + 5), (*right[:-1], 0), ()):
        with pytest.raises(CheckpointError, match="contradicts|fits no known model|no square grid"):
            sizes_of(of_shapes(EVERYTHING | {key: shape}), heads=2)


@pytest.mark.parametrize("key", ["blocks.2.attn.qkv.bias", "blocks.9999.x", "blocks.00001.x", "y"])
def test_one_parameter_too_many(key: str) -> None:
    with pytest.raises(CheckpointError, match="missing|unexpected"):
        sizes_of(of_shapes(official_shapes() | {key: (3,)}), heads=2)


def test_a_header_costs_no_more_than_it_holds(subtests: pytest.Subtests) -> None:
    """Whatever it claims, no memory and next to no time is spent before it is refused."""
    sizes_of(of_shapes(official_shapes()), heads=2)  # torch takes seconds for its first such model
    began = time.perf_counter()
    claims: dict[str, tuple[int, ...]] = {
        "blocks.9999.attn.qkv.weight": (3,),
        "pos_embed": (1, 2**40, 8),
        "x_embedder.proj.weight": (2**30, 4, 2, 2),
        "y_embedder.embedding_table.weight": (2**62, 8),
        "blocks.0.mlp.fc1.weight": (2**20, 2**21),
        "final_layer.linear.bias": (2**63,),
    }
    for key, shape in claims.items():
        with subtests.test(key=key):
            with pytest.raises(CheckpointError, match="missing|fits no known model"):
                sizes_of(of_shapes(official_shapes() | {key: shape}), heads=2)
    many = {f"blocks.{k}.mlp.fc1.weight": (32, 8) for k in range(9999)}
    with pytest.raises(CheckpointError, match=r"'blocks\.2\.attn\.qkv\.weight' is missing"):
        sizes_of(of_shapes(official_shapes() | many), heads=2)
    # Consistent with itself, but 4 TB of it: a model without memory takes it.
    large = official_shapes(width=2**18, channels=1, rows=2**20, size=2**10)
    assert sizes_of(of_shapes(large), heads=2**10).width == 2**18
    assert time.perf_counter() - began < 1  # measured: 0.04 s


def test_a_grid_that_is_not_square() -> None:
    with pytest.raises(CheckpointError, match="no square grid of tokens: 'pos_embed' has 12"):
        sizes_of(of_shapes(official_shapes() | {"pos_embed": (1, 12, 8)}), heads=2)


@pytest.mark.parametrize(
    ("key", "layout"),
    [
        ("transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight", "diffusers"),
        ("single_transformer_blocks.0.norm.linear.weight", "no known layout"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("diffusion_model.input_blocks.0.0.weight", "U-Net"),
        ("conv_in.weight\n\x1b[31m", r"'conv_in.weight\n\x1b[31m'"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_other_layouts_are_called_by_their_names(key: str, layout: str, alone: bool) -> None:
    shapes = {key: (3, 3)} if alone else official_shapes() | {key: (3, 3)}
    with pytest.raises(CheckpointError) as caught:
        sizes_of(of_shapes(shapes), heads=2)
    message = str(caught.value)
    assert message.isprintable() and caught.value.hint
    if not (alone and "conv_in" in key):
        assert layout in message
