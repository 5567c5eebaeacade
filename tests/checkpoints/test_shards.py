"""Models of our own families in several files: read by their index, as if they were one."""

import hashlib
import json
import os
import shutil

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

import dar_probe as dp
from dar_probe.checkpoints.folders import model_file
from dar_probe.checkpoints.naming import display_name, folder_name
from dar_probe.checkpoints.peek import peek
from dar_probe.checkpoints.reader import read
from dar_probe.cli.shared.options import check_first
from dar_probe.errors import CheckpointError
from dar_probe.models.inspection import survey
from dar_probe.models.loading import load_checkpoint
from dar_probe.models.options import CheckpointOptions
from tests.checkpoints.test_groups import AVERAGE

INDICES = {".safetensors": "model.safetensors.index.json", ".bin": "pytorch_model.bin.index.json"}


def sharded(home, suffix=".safetensors", state=AVERAGE):
    """Write a folder as transformers and accelerate do."""
    home.mkdir(parents=True, exist_ok=True)
    stem = INDICES[suffix].partition(".")[0]
    listed, names = {}, list(state)
    for at, part in enumerate((names[:9], names[9:]), 1):
        file = f"{stem}-0000{at}-of-00002{suffix}"
        tensors = {name: state[name].contiguous() for name in part}
        if suffix == ".bin":
            torch.save(tensors, home / file)
        else:
            safetensors.torch.save_file(tensors, home / file, metadata={"format": "pt"})
        listed |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": listed}
    (home / INDICES[suffix]).write_text(json.dumps(index))
    torch.save({"step": 1}, home / "optimizer.bin")
    return home


def edit(home, change):
    path = home / INDICES[".safetensors"]
    content = json.loads(path.read_text())
    change(content["weight_map"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("suffix", INDICES)
def test_shards_are_read_as_one_file(tmp_path, suffix):
    home = sharded(tmp_path / "run", suffix)
    index = home / INDICES[suffix]
    assert model_file(home) == model_file(index) == index
    found, seen = read(index), peek(index)
    assert found.state.keys() == AVERAGE.keys() == seen.shapes.keys()
    assert all(torch.equal(value, AVERAGE[name]) for name, value in found.state.items())
    assert seen.dtypes == {name: value.dtype for name, value in AVERAGE.items()}
    parts = sorted(home.glob(f"*-of-00002{suffix}"))
    assert found.bytes == seen.bytes == sum(part.stat().st_size for part in parts)
    lines = (f"{p.name}:{hashlib.sha256(p.read_bytes()).hexdigest()}\n" for p in parts)
    assert found.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("given", ["", INDICES[".safetensors"]], ids=["folder", "index"])
def test_a_model_in_shards_is_analyzed_like_one_in_a_file(tmp_path, given):
    home = sharded(tmp_path / "run")
    safetensors.torch.save_file(
        {name: value.contiguous() for name, value in AVERAGE.items()}, tmp_path / "one.safetensors"
    )
    grid = {"heads": 2, "noise_levels": [0.5], "samples": 2}
    one = dp.analyze(tmp_path / "one.safetensors", **grid).dataset
    other = dp.analyze(home / given, **grid).dataset
    for name in ("gate", "rms", "loss"):
        assert one[name].identical(other[name])
    assert one["loss"].notnull().all()


def test_settings_beside_the_index_are_read(tmp_path):
    home = sharded(tmp_path / "run")
    (home / "config.json").write_text('{"num_heads": 4}')
    for options in (CheckpointOptions(path=home), CheckpointOptions(path=model_file(home))):
        assert load_checkpoint(options).identified.sizes["heads"] == 4
        assert survey(options).sizes["heads"] == 4


def test_the_index_is_called_after_its_run(tmp_path):
    index = sharded(tmp_path / "dar") / INDICES[".safetensors"]
    assert (display_name(index), folder_name(index)) == ("dar/model", "dar-model")
    assert check_first(index) == index and check_first(index.parent) == index.parent


def test_one_shard_is_not_taken_for_the_model(tmp_path):
    home = sharded(tmp_path / "run")
    for call in (model_file, check_first, dp.analyze):
        with pytest.raises(CheckpointError, match="is one of 2 shards of a model") as caught:
            call(home / "model-00002-of-00002.safetensors")
        assert "model.safetensors.index.json" in caught.value.hint
    only = home / "model-00001-of-00001.safetensors"
    shutil.copy(home / "model-00001-of-00002.safetensors", only)
    assert model_file(only) == only


def outside(home):
    part = home / "model-00001-of-00002.safetensors"
    shutil.move(part, home.parent / part.name)
    return part


def linked(home):
    part = outside(home)
    part.symlink_to(home.parent / part.name)


def to_pipe(home):
    os.mkfifo(outside(home))


def renamed(name):
    return lambda home: edit(home, lambda listed: listed.update(pos_embed=name))


def doubled(home):
    part = home / "model-00002-of-00002.safetensors"
    state = safetensors.torch.load_file(part) | {"pos_embed": AVERAGE["pos_embed"]}
    safetensors.torch.save_file(state, part)


HOSTILE = {
    "no JSON": (lambda h: (h / INDICES[".safetensors"]).write_text("{"), "not readable JSON"),
    "no map": (lambda h: (h / INDICES[".safetensors"]).write_text("{}"), "lists no weights"),
    "huge": (lambda h: (h / INDICES[".safetensors"]).write_text(" " * 2**21), "over 1048576 bytes"),
    "many": (
        lambda h: edit(h, lambda m: m.update({f"w{k}": f"{k}.safetensors" for k in range(1001)})),
        "over 1000 shards",
    ),
    "above": (renamed("../x.safetensors"), "outside the folder"),
    "absolute": (renamed("/etc/x.safetensors"), "outside the folder"),
    "device": (renamed("/dev/zero"), "no shard"),
    "pickle": (renamed("x.bin"), "no shard"),
    "number": (renamed(7), "no shard"),
    "NUL": (renamed("x\0.safetensors"), "lacks the shard"),
    "not there": (renamed("x.safetensors"), "lacks the shard"),
    "link": (linked, "a link out of the folder"),
    "pipe": (to_pipe, "lacks the shard"),
    "doubled": (doubled, "'pos_embed' in two of its files"),
    "promised": (lambda h: edit(h, lambda m: m.update(w=m["pos_embed"])), "disagree on 'w'"),
    "unlisted": (lambda h: edit(h, lambda m: m.pop("pos_embed")), "disagree on 'pos_embed'"),
    "cut": (
        lambda h: os.truncate(h / "model-00002-of-00002.safetensors", 500), "cannot be read|damaged"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_an_index_is_not_trusted(tmp_path, name):
    home = sharded(tmp_path / "run")
    spoil, words = HOSTILE[name]
    spoil(home)
    for look in (peek, read):
        with pytest.raises(CheckpointError, match=words) as caught:
            look(home / INDICES[".safetensors"])
        assert str(caught.value).isprintable() and caught.value.hint


def test_a_shard_that_holds_no_dict_is_refused(tmp_path):
    home = sharded(tmp_path / "run", ".bin")
    torch.save([AVERAGE["pos_embed"]], home / "pytorch_model-00001-of-00002.bin")
    for look in (peek, read):
        with pytest.raises(CheckpointError, match="holds a list, no shard"):
            look(home / INDICES[".bin"])


def test_links_of_the_hub_s_cache_are_followed(tmp_path):
    home = sharded(tmp_path / "models--a--b" / "snapshots" / "0")
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for at, part in enumerate(sorted(home.glob("*-of-*"))):
        shutil.move(part, blobs / str(at))
        part.symlink_to(f"../../blobs/{at}")
    assert read(home / INDICES[".safetensors"]).state.keys() == AVERAGE.keys()


def test_two_models_in_shards_are_not_chosen_between(tmp_path):
    home = sharded(tmp_path / "run")
    sharded(home, ".bin")
    with pytest.raises(CheckpointError, match="2 files of weights") as caught:
        model_file(home)
    assert caught.value.hint == "give one of them"


def test_the_command_line_reads_them(tmp_path):
    from dar_probe.cli import app

    done = CliRunner().invoke(app, ["inspect", str(sharded(tmp_path / "run")), "--heads", "2"])
    assert done.exit_code == 0, done.output
    assert "model.safetensors.index.json" in done.output
