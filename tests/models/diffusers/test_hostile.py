"""Folders whose settings were edited, or whose weights are kept in two types."""

import json
import shutil

import numpy as np
import pytest
import torch

import dar_probe as dp
from dar_probe.checkpoints import diffusers_folder
from dar_probe.errors import CheckpointError, ProbeError, UsageError
from dar_probe.models.diffusers import model
from dar_probe.models.inspection import survey
from dar_probe.models.options import CheckpointOptions
from dar_probe.probe import bench, plan
from dar_probe.probe.options import sort
from tests.models.diffusers import tiny

pytest.importorskip("diffusers")
GRID = {"noise_levels": [0.5], "samples": 2}
CONFIG, SCHEDULER = "transformer/config.json", "scheduler/scheduler_config.json"


def inspected(home):
    """Say what a folder is, as ``dar-probe inspect`` does."""
    return survey(CheckpointOptions(path=home))


@pytest.fixture
def spoil(saved, tmp_path, monkeypatch):
    """Return a function to a copy of a tiny folder with other settings; None deletes one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def copy(name, file, **changes):
        home = shutil.copytree(saved(name), tmp_path / name)
        settings = json.loads((home / file).read_text()) | changes
        kept = {k: v for k, v in settings.items() if v is not None}
        (home / file).write_text(json.dumps(kept))
        return home

    return copy


@pytest.mark.parametrize(
    ("name", "file", "changes"),
    [
        ("dit", CONFIG, {"patch_size": "2"}),
        ("sd3", CONFIG, {"patch_size": {"a": 1}}),
        ("wan", CONFIG, {"patch_size": [1, 2, 2, 2]}),
        ("z-image", CONFIG, {"all_patch_size": {"0": 2}}),
        ("sana", CONFIG, {"timestep_scale": "x"}),
        ("sana", CONFIG, {"timestep_scale": float("nan")}),
        ("dit", SCHEDULER, {"beta_start": "x"}),
        ("dit", SCHEDULER, {"trained_betas": 3}),
        ("dit", SCHEDULER, {"trained_betas": [0.1, "a"]}),
        ("dit", SCHEDULER, {"snr_shift_scale": "z"}),
        ("dit", SCHEDULER, {"snr_shift_scale": -3}),
    ],
)
def test_settings_of_the_wrong_kind_are_refused(spoil, name, file, changes):
    home = spoil(name, file, **changes)
    for call in (inspected, dp.analyze):
        with pytest.raises(CheckpointError, match="fit no|cannot be right|do not\n"):
            call(home)


def test_settings_under_which_nothing_can_be_called_are_refused(spoil, tmp_path):
    home = spoil("flux", CONFIG, axes_dims_rope=[8])
    rows = np.random.default_rng(0).standard_normal((2, 12, 16)).astype(np.float32)
    np.savez(tmp_path / "x.npz", latents=rows, labels=np.zeros(2, dtype=np.int64))
    data = {"data": f"latents:{tmp_path / 'x.npz'}"}
    for call in (inspected, dp.analyze, lambda home: dp.analyze(home, **data, **GRID)):
        with pytest.raises(CheckpointError, match="called by its settings: 'IndexError"):
            call(home)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dit", {"_class_name": None}),
        ("dit", {"num_train_timesteps": 10}),
        ("dit", {"_class_name": "ScoreSdeVeScheduler"}),
        ("flux", {"base_image_seq_len": 4096}),
    ],
)
def test_a_scheduler_that_cannot_draw_asks_for_data(spoil, name, changes):
    home = spoil(name, SCHEDULER, **changes)
    with pytest.raises(CheckpointError, match="does not draw samples") as refused:
        dp.analyze(home, **GRID)
    assert "--data" in refused.value.hint


def test_a_forward_that_fails_is_one_sentence(spoil, tmp_path):
    home = spoil("flux", CONFIG, axes_dims_rope=None)
    rows = np.random.default_rng(0).standard_normal((2, 12, 16)).astype(np.float32)
    np.savez(tmp_path / "x.npz", latents=rows, labels=np.zeros(2, dtype=np.int64))
    with pytest.raises(ProbeError, match="does not run on its inputs: 'RuntimeError"):
        dp.analyze(home, data=f"latents:{tmp_path / 'x.npz'}", **GRID)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("sd3", {"num_layers": 4}, "'transformer_blocks.2.attn.add_out_proj.weight' is|is missing"),
        ("flux", {"num_attention_heads": 4}, r"is of shape \(16,\), where \(32,\) fits"),
        ("dit", {"num_layers": 2}, "'transformer_blocks.2.*' is unexpected"),
    ],
)
def test_weights_that_are_not_the_classs_own_are_refused_with_their_name(
    spoil, name, changes, words
):
    home = spoil(name, CONFIG, **changes)
    for call in (inspected, dp.analyze):
        with pytest.raises(CheckpointError, match=words):
            call(home)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_class_that_keeps_weights_in_float32_runs_in_another_type(saved, dtype, spoil):
    built = model.build(diffusers_folder.read(saved("wan")), dtype=dtype)
    assert next(built.parameters()).dtype == torch.float32
    assert model.dtype_of(built) == dtype
    name = str(dtype).removeprefix("torch.")
    analysis = dp.analyze(saved("wan"), dtype=name, **GRID)
    assert np.isfinite(analysis.dataset["rms"]).all()


def test_classes_are_those_that_were_drawn_or_given(saved, tmp_path, monkeypatch):
    """A model's own samples are measured under the class that each was drawn with."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    labels = []

    def keep(module, args, kwargs):
        labels.append(kwargs["class_labels"].tolist())

    def measured(**options):
        labels.clear()
        found = plan.of_checkpoint(
            *sort(saved("dit"), {"noise_levels": [0.5], "samples": 3, **options})
        )
        found.subject.model.register_forward_pre_hook(keep, with_kwargs=True)
        said = any("classes in turn" in s for s in found.manifest["assumptions"])
        found.measure()
        return {tuple(some) for some in labels if len(some) == 3}, said

    assert measured() == ({(0, 1, 2)}, True)
    rows = np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", latents=rows, labels=np.array([4, 0, 7]))
    data = f"latents:{tmp_path / 'x.npz'}"
    assert measured(data=data) == ({(4, 0, 7)}, False)
    np.savez(tmp_path / "text.npz", class_labels=np.array([9, 8, 3]))
    for options in ({}, {"data": data}):
        assert measured(text=tmp_path / "text.npz", **options) == ({(9, 8, 3)}, False)
    np.savez(tmp_path / "x.npz", latents=rows, labels=np.array([4, 50, 7]))
    with pytest.raises(UsageError, match="has the label 50, the model knows 10 classes"):
        measured(data=data)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("sd3", {"encoder_hidden_states": np.ones((2, 5, 13), np.float32)}, "samples, any, 12"),
        ("sd3", {"encoder_hidden_states": np.ones((2, 12), np.float32)}, "samples, any, 12"),
        ("sd3", {"encoder_hidden_states": np.ones((2, 5, 12), np.int64)}, "must hold real numbers"),
        ("sd3", {"hidden_states": np.ones((2, 4, 8, 8), np.float32)}, "takes no 'hidden_states'"),
        ("sd3", {"timestep": np.ones(2, np.float32)}, "takes no 'timestep'"),
        ("dit", {"class_labels": np.array([1, 50])}, "must lie between 0 and 9"),
        ("dit", {"class_labels": np.array([-1, 5])}, "must lie between 0 and 9"),
        ("dit", {"class_labels": np.array([1.0, 5.0])}, "must hold whole numbers"),
    ],
)
def test_conditions_that_do_not_fit_are_named(saved, tmp_path, name, array, words):
    np.savez(tmp_path / "text.npz", **array)
    with pytest.raises(UsageError, match=words):
        dp.analyze(saved(name), text=tmp_path / "text.npz", **GRID)


def test_a_folder_has_its_price(saved):
    for name in ("sd3", "z-image"):  # the latter takes a list of samples
        work = bench.of_checkpoint(CheckpointOptions(path=saved(name)), batch_size=2)
        price = bench.bench(work, repeats=1)
        assert price.floor.seconds > 0 and price.probe.seconds > 0


def test_a_transformer_is_known_from_wherever_one_stands(saved, tmp_path, monkeypatch):
    """By its own name, by a link's, from within, and in the layout of the hub's cache."""
    home = tmp_path / "models--a--b.5" / "snapshots" / "0f1e"
    shutil.copytree(saved("sd3"), home)
    plain = diffusers_folder.read(home)
    link = tmp_path / "link"
    link.symlink_to(home / "transformer")
    weights = home / "transformer" / "diffusion_pytorch_model.safetensors"
    monkeypatch.chdir(home / "transformer")
    for path in (".", link, home / "transformer"):
        assert diffusers_folder.read(path).scheduler == plain.scheduler is not None
        assert diffusers_folder.read(path).sha256 == plain.sha256
    for path in (".", link, home, home / "transformer", weights):
        assert diffusers_folder.name_of(path) == "a--b.5"
    assert (
        diffusers_folder.name_of(shutil.copytree(home, tmp_path / "sd-3.5-large")) == "sd-3.5-large"
    )
    assert diffusers_folder.name_of(tmp_path / "x.y.pt") == "x.y"
    # Analyses are written to a folder of that name: it must not lead out of its own.
    for name in ("...pt", "....safetensors"):
        assert diffusers_folder.name_of(tmp_path / name) == "checkpoint"
    outside = tmp_path / "models--.." / "snapshots" / "0f1e"
    assert diffusers_folder.name_of(shutil.copytree(home, outside)) == "checkpoint"


def test_shards_are_read_without_a_bar(tmp_path, capfd):
    home = tiny.save("sd3", tmp_path / "sharded", max_shard_size="60KB")
    capfd.readouterr()
    model.build(diffusers_folder.read(home))
    assert capfd.readouterr().err == ""
