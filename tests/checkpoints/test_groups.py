"""Models are found in files by structure: under any names, averages before raw weights."""

import argparse
import collections
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import dar_probe as dp
from dar_probe.checkpoints import reader
from dar_probe.checkpoints.groups import groups
from dar_probe.checkpoints.state_dict import choose
from dar_probe.errors import CheckpointError
from dar_probe.models.loading import load_checkpoint
from dar_probe.models.options import CheckpointOptions


def weights(seed):
    torch.manual_seed(seed)
    model = dp.build(
        "SiT-S/2", depth=2, width=32, heads=2, in_channels=1, input_size=8, num_classes=10
    )
    return {name: value + 0.05 * torch.randn_like(value) for name, value in
            model.state_dict().items()}  # fmt: skip


RAW, AVERAGE = weights(0), weights(1)
COUNT = torch.tensor(7)
# As torch_ema keeps them: those that are trained, without names.
SHADOW = [value for name, value in AVERAGE.items() if name != "pos_embed"]


TRAINED = {name: value for name, value in AVERAGE.items() if name != "pos_embed"}


def squashed(prefix, state, dot):
    """Names without dots, as those who keep an average as buffers write them."""
    return {prefix + name.replace(".", dot): value for name, value in state.items()}


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


CONTAINERS = {
    "lightning": ({"epoch": 3, "state_dict": under("net.", RAW), "callbacks": {}}, "raw"),
    "lightning with an average": (
        {"state_dict": under("denoiser.", RAW) | under("ema_denoiser.", AVERAGE)}, "average"
    ),
    "named dicts": ({"model_state_dict": RAW, "ema_model_state_dict": AVERAGE}, "average"),
    "raw called model": ({"model": RAW, "model_ema": AVERAGE, "opt": {"state": {}}}, "average"),
    "numbered averages": (
        {"model": under("net.", RAW), "model_ema2": under("net.", RAW),
         "model_ema1": under("net.", AVERAGE), "epoch": 3},
        "average",
    ),
    "a wrapper that keeps both": (
        {"model": RAW, "ema": {"initted": COUNT > 0, "step": COUNT,
                               **under("ema_model.", AVERAGE), **under("online_model.", RAW)}},
        "average",
    ),
    "shadow of what is trained": (
        {"model": RAW, "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": SHADOW}},
        "average but for pos_embed",
    ),
    "a list called ema": ({"model": RAW, "ema": list(AVERAGE.values())}, "average"),
    "a list that an optimizer keeps": (
        {"state_dict": under("net.", RAW), "optimizer_states": [{"ema": tuple(SHADOW), "opt": {}}]},
        "average but for pos_embed",
    ),
    # As LSGM's EMA keeps it, which wraps the optimizer; so do those who took it over.
    "averages that an optimizer keeps": (
        {"model_dict": RAW, "optimizer": {"param_groups": [], "state": {
            i: {"exp_avg": value, "ema": value} for i, value in enumerate(SHADOW, 1)}}},
        "average but for pos_embed",
    ),
    "a list of averages": ({"model": RAW, "ema": [AVERAGE]}, "average"),
    "an algorithm's state": (
        {"state": {"model": under("dit.", RAW), "algorithms": [
            ("EMA", {"ema_model": {"named_parameters_dict": under("dit.", AVERAGE)}})]}},
        "average",
    ),
    "lightning's own averaging": (
        {"state_dict": under("net.", AVERAGE), "current_model_state": under("net.", RAW),
         "averaging_state": {"n_averaged": COUNT}},
        "average",
    ),
    "raw among other models": ({"model": RAW, "best_model": AVERAGE}, "raw"),
    "an optimizer's averages": (
        {"net": RAW, "optimizer": {"state": {n: {"exp_avg": v} for n, v in AVERAGE.items()}}}, "raw"
    ),
    "an optimizer's averages by number": (
        {"net": RAW, "optimizer": {"state": {i: {"square_avg": v, "exp_avg": v, "grad_avg": v}
                                             for i, v in enumerate(AVERAGE.values())}}},
        "raw",
    ),
    "weights and a step": ((RAW, 7), "raw"),
    "generator and critic": (
        {"generator": RAW, "generator_ema": AVERAGE, "critic": RAW}, "average"
    ),
    "generator alone": ({"generator": RAW, "critic": RAW}, "raw"),
    "averaged model": ({"n_averaged": COUNT, **under("module.", AVERAGE)}, "average"),
    "target network": ({"student": RAW, "target": AVERAGE}, "average"),
    "deepspeed": ({"module": RAW, "ds_config": {}, "skipped": {1, 2}}, "raw"),
    "counter and dtype": (
        {"model": RAW, "seen": collections.Counter("aab"), "dtype": torch.float8_e4m3fn}, "raw"
    ),
    "compiled under DDP": ({"ema": under("module._orig_mod.", AVERAGE), "model": RAW}, "average"),
    "squashed names of buffers": (
        {"state_dict": {**under("model.", RAW), **squashed("model_ema.", AVERAGE, ""),
                        "model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": COUNT}},
        "average",
    ),
    "squashed names without tables": (
        {"state_dict": {**under("model.diffusion_model.", RAW),
                        **squashed("model_ema.diffusion_model", TRAINED, "")}},
        "average but for pos_embed",
    ),
    "names with lines for dots": (
        {"state_dict": {**RAW, **squashed("ema_", AVERAGE, "_")}, "meta": {"epoch": 3}}, "average"
    ),
    "an average within the model": ({"state_dict": {**RAW, **under("ema.", AVERAGE)}}, "average"),
    "an average of what is trained": ({"model": RAW, "ema": TRAINED}, "average but for pos_embed"),
    "a name with a dot": ({"model": RAW, "ema_0.9999": AVERAGE}, "average"),
    "with its decoder": (
        under("model.diffusion_model.", RAW) | {"first_stage_model.decoder.up.0.weight": COUNT,
                                                "first_stage_model.quant.weight": COUNT},
        "raw",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_right_weights_are_read(tmp_path, name):
    content, wanted = CONTAINERS[name]
    torch.save(content, tmp_path / "x.pt")
    expected = dict(RAW if wanted == "raw" else AVERAGE)
    if "pos_embed" in wanted:
        expected["pos_embed"] = RAW["pos_embed"]
    found = reader.read(tmp_path / "x.pt")
    assert found.state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found.state[key], value), key
    assert (found.weights == "ema") == wanted.startswith("average")
    loaded = load_checkpoint(CheckpointOptions(path=tmp_path / "x.pt", heads=2))
    said = " ".join(loaded.assumptions)
    assert ("the average" in said) == wanted.startswith("average")
    if name != "counter and dtype":  # {"model": ...} needs no words: its weights are "model"
        assert "of the file" in said


@pytest.mark.parametrize("name", [name for name in CONTAINERS if "average" in CONTAINERS[name][1]])
def test_raw_weights_are_read_on_request(tmp_path, name):
    content, _ = CONTAINERS[name]
    torch.save(content, tmp_path / "x.pt")
    if name == "averaged model":
        with pytest.raises(CheckpointError, match=r"holds no model weights, but 'module' \(aver"):
            reader.read(tmp_path / "x.pt", weights="model")
        return
    found = reader.read(tmp_path / "x.pt", weights="model")
    assert all(torch.equal(found.state[key], RAW[key]) for key in RAW)


def test_what_was_chosen_among_what_is_said():
    content, _ = CONTAINERS["a wrapper that keeps both"]
    assert choose(content, "auto", "'x'").note == (
        "the average 'ema.ema_model' of the file; beside it lie 'model' (raw) and "
        "'ema.online_model' (raw)"
    )
    assert choose({"ema": AVERAGE, "model": RAW}, "auto", "'x'").note == ""
    alone = choose({"state_dict": under("net.", RAW)}, "auto", "'x'").note
    assert alone == "the weights 'state_dict.net' of the file; nothing in it is called an average"
    assert choose({"model": RAW, "best": AVERAGE}, "auto", "'x'").note == (
        "the weights 'model' of the file; beside it lie 'best'; nothing in it is called an average"
    )
    assert choose({"model": RAW, "ema": list(AVERAGE.values())}, "auto", "'x'").note.endswith(
        "its list has no names, and takes those of the raw weights in their order"
    )


FLAT = torch.cat([value.flatten() for value in AVERAGE.values()])


@pytest.mark.parametrize(
    "average", [list(AVERAGE.items()), {"a": list(AVERAGE.items())}, {"flat": FLAT}, FLAT]
)
def test_raw_weights_never_stand_for_an_average_that_cannot_be_read(average):
    with pytest.raises(CheckpointError, match="average under 'ema', but not as a state") as caught:
        choose({"model": RAW, "ema": average}, "auto", "'x'")
    assert "--weights model" in caught.value.hint
    assert choose({"model": RAW, "ema": average}, "model", "'x'").label == "model"


def test_a_list_of_averages_that_fits_no_model_is_refused():
    with pytest.raises(CheckpointError, match="average without names .* in 'ema'"):
        choose({"model": RAW, "ema": [*SHADOW, torch.zeros(3, 5)]}, "auto", "'x'")
    chosen = choose({"model": RAW, "ema": [*SHADOW, torch.zeros(3, 5)]}, "model", "'x'")
    assert chosen.state == RAW


def test_models_that_nothing_tells_apart_are_refused():
    with pytest.raises(CheckpointError, match="several models, 'one' and 'two'"):
        choose({"one": RAW, "two": RAW}, "auto", "'x'")
    with pytest.raises(CheckpointError, match="several models"):
        choose({"ema_1": AVERAGE, "ema_2": AVERAGE, "model": RAW}, "auto", "'x'")


@pytest.mark.parametrize(
    "shadow",
    [SHADOW[:-1], [*SHADOW, COUNT], SHADOW[::-1], [*SHADOW[:-1], 7]],
    ids=["one is missing", "one too many", "another order", "no tensor"],
)
def test_an_average_without_names_that_does_not_fit_is_refused(shadow):
    with pytest.raises(CheckpointError, match="average without names") as caught:
        choose({"model": RAW, "ema": {"shadow_params": shadow}}, "auto", "'x'")
    assert "copy it into the model" in caught.value.hint


def test_content_that_refers_to_itself_ends():
    content = {"model": RAW}
    content["again"] = content
    assert len(groups(content, "'x'")) >= 1
    assert groups({"a": {}, "b": [1], "": RAW, 7: RAW}, "'x'") == []


NAMES = st.sampled_from(["net", "wrapped", "trainer", "student", "unet", "dit", "run"])


@given(path=st.lists(NAMES, max_size=3), average=st.lists(NAMES, max_size=2), flat=st.booleans())
def test_an_average_is_found_wherever_it_lies(path, average, flat):
    """Nested in dicts or in the names themselves: never raw weights where an average is."""

    def placed(parts, state):
        if flat:
            return under("".join(f"{part}." for part in parts), state)
        for part in reversed(parts):
            state = {part: state}
        return state

    content = {
        **placed(["raw_weights", *path], RAW), **placed(["shadow", *average], AVERAGE)
    }  # fmt: skip
    found = choose(content, "auto", "'x'")
    assert found.label == "ema" and found.state.keys() == AVERAGE.keys()
    assert all(found.state[name] is AVERAGE[name] for name in AVERAGE)
    raw = choose(content, "model", "'x'")
    assert all(raw.state[name] is RAW[name] for name in RAW)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_8_bits_are_read_as_they_are(tmp_path, kind, suffix):
    coarse = {name: value.to(kind) if value.ndim == 2 else value for name, value in RAW.items()}
    path = tmp_path / f"x{suffix}"
    (torch.save if suffix == ".pt" else safetensors.torch.save_file)(coarse, path)
    loaded = load_checkpoint(CheckpointOptions(path=path, heads=2))
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, coarse[name].float()), name
    assert any("stored in 8 bits" in text for text in loaded.assumptions)


@pytest.mark.parametrize(
    ("settings", "objective"),
    [
        ({"path_type": "GVP", "prediction": "velocity"}, "sit:gvp:velocity"),
        ({"path_type": "VP", "prediction": "noise"}, "sit:vp:noise"),
        ({"path_type": "Linear", "prediction": "score"}, "sit:linear:score"),
        ({"path_type": "Linear", "prediction": "velocity"}, "sit"),
        ({"path_type": "spiral", "prediction": "velocity"}, "sit"),
    ],
)
def test_the_objective_is_the_one_that_the_settings_name(tmp_path, settings, objective):
    args = argparse.Namespace(model="SiT-S/2", num_classes=10, **settings)
    torch.save({"ema": AVERAGE, "args": args}, tmp_path / "x.pt")
    loaded = load_checkpoint(CheckpointOptions(path=tmp_path / "x.pt", heads=2))
    assert loaded.objective.name == objective
    said = [text for text in loaded.assumptions if "path_type" in text]
    assert len(said) == (objective != "sit" or settings["path_type"] == "spiral")


@pytest.mark.parametrize("names", [("ema2", "ema3"), ("ema1", "shadow_ema2"), ("ema_1", "ema_2")])
def test_averages_that_no_number_tells_apart_are_refused(names):
    content = {"model": RAW} | dict.fromkeys(names, AVERAGE)
    with pytest.raises(CheckpointError, match="holds several models"):
        choose(content, "auto", "'x'")


def test_the_state_of_an_optimiser_is_called_that(tmp_path):
    torch.save({"state": {0: {"step": COUNT}}, "param_groups": [{"lr": 0.1}]}, tmp_path / "opt.pt")
    with pytest.raises(CheckpointError, match="is the state of an optimizer") as caught:
        reader.read(tmp_path / "opt.pt")
    assert "the model's own file" in caught.value.hint


def test_tables_that_an_average_lacks_are_said_to_be_the_raw_ones(tmp_path):
    torch.save({"model": RAW, "ema": TRAINED}, tmp_path / "x.pt")
    loaded = load_checkpoint(CheckpointOptions(path=tmp_path / "x.pt", heads=2))
    assert any("it lacks 'pos_embed', taken from the raw" in text for text in loaded.assumptions)


@pytest.mark.parametrize("name", ["non_ema", "no_ema", "model_non_ema", "modelWithoutEMA"])
def test_weights_that_are_called_no_average_are_raw(name):
    chosen = choose({"model_ema": AVERAGE, name: RAW}, "auto", "'x'")
    assert (chosen.label, chosen.state) == ("ema", AVERAGE)
    chosen = choose({name: RAW}, "auto", "'x'")
    assert chosen.label != "ema"
    flat = {"state_dict": under("model.", RAW) | squashed(f"{name}.", AVERAGE, "")}
    assert choose(flat, "model", "'x'").state == RAW


@pytest.mark.parametrize("name", ["netEMA", "modelEma", "emaModel", "emamodel", "modelema"])
def test_averages_in_names_without_separators_are_averages(name):
    chosen = choose({"model": RAW, name: AVERAGE}, "auto", "'x'")
    assert (chosen.label, chosen.state) == ("ema", AVERAGE)


def test_the_longest_name_may_be_a_table_that_a_squashed_average_lacks():
    table = "blocks.0.attn.a_rather_long_way_to_say.relative_position_index"
    raw = RAW | {table: COUNT}
    content = {"state_dict": under("model.", raw) | squashed("model_ema.", AVERAGE, "")}
    chosen = choose(content, "auto", "'x'")
    assert chosen.state == AVERAGE | {table: COUNT}
    assert chosen.note.endswith("ve_position_index', taken from the raw weights")


@pytest.mark.parametrize(
    "content",
    [
        {"blocks.0.pos_embed.weight": COUNT, "freqs.weight": COUNT},
        {"ema_blocks": {"0": {"weight": COUNT}}, "ema_x.weight": COUNT},
    ],
)
def test_tables_and_averages_alone_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(CheckpointOptions(path=tmp_path / "x.pt"))


def test_an_average_that_lacks_more_than_tables_is_refused(tmp_path):
    lacking = {name: value for name, value in AVERAGE.items() if "mlp.fc1" not in name}
    torch.save({"model": RAW, "ema": lacking}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="mlp.fc1"):
        load_checkpoint(CheckpointOptions(path=tmp_path / "x.pt", heads=2))


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ({"model": RAW, "ema": AVERAGE, "args": argparse.Namespace(out=pathlib.Path("x"))}, "ema"),
        ({"state_dict": under("net.", RAW), "hyper_parameters": {"lr": np.float64(0.1)}}, "model"),
        ({"net_ema": AVERAGE, "net": RAW, "log": collections.defaultdict(list)}, "ema"),
    ],
)
def test_the_line_that_saves_a_refused_file_again_keeps_its_average(tmp_path, content, label):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="it asks for") as caught:
        reader.read(tmp_path / "x.pt")
    line = caught.value.hint.split("if you trust its classes: ")[1]
    for name, file in (("FILE", "x.pt"), ("NEW", "new.pt")):
        line = line.replace(name, repr(str(tmp_path / file)))
    subprocess.run([sys.executable, "-c", line], check=True)
    found = reader.read(tmp_path / "new.pt")
    assert found.weights == label
    wanted = AVERAGE if label == "ema" else RAW
    assert all(torch.equal(found.state[name], value) for name, value in wanted.items())


def test_numbers_that_are_averages_of_something_else_are_no_weights():
    losses = {"loss_avg": [torch.rand(()) for _ in range(9)], "target": [torch.zeros(3)]}
    assert choose({"model": RAW, **losses}, "auto", "'x'").label == "model"
    assert choose({"model": RAW, "ema": AVERAGE, **losses}, "auto", "'x'").state == AVERAGE


@pytest.mark.parametrize(
    ("content", "words", "hint"),
    [
        ({"module": {name: torch.empty(0) for name in RAW}}, r"lacks the numbers", "zero_to_fp32"),
        ({"module": {name: torch.empty(1) for name in RAW}}, r"lacks the numbers", "zero_to_fp32"),
        ({"_fsdp_wrapped_module._flat_param": torch.zeros(9)}, "flat parameters of FSDP", "FULL"),
    ],
)
def test_weights_that_were_not_gathered_are_called_that(tmp_path, content, words, hint):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(CheckpointOptions(path=tmp_path / "x.pt"))
    assert hint in caught.value.hint
