"""Ids of the Hugging Face Hub: told from paths, taken from the cache, downloaded only if allowed.

Nothing here turns to a network: what would is replaced.
"""

import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from dar_probe.checkpoints import hub
from dar_probe.checkpoints.diffusers_folder import name_of
from dar_probe.errors import CheckpointError
from dar_probe.models.inspection import survey
from dar_probe.models.options import CheckpointOptions
from tests.helpers.shell import run
from tests.hostile.commands import call
from tests.models.diffusers import tiny

FLUX = "black-forest-labs/FLUX.1-dev"


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """A folder as the Hub's cache has it; the current folder is another one."""
    folder = tmp_path / "models--black-forest-labs--FLUX.1-dev" / "snapshots" / ("0" * 40)
    folder.parent.mkdir(parents=True)
    tiny.save("dit", folder)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


@pytest.fixture
def asked(monkeypatch):
    """What the library was asked for; a test puts its answers in."""
    calls, answers = [], {}

    def snapshot_download(name, *, allow_patterns, local_files_only):
        calls.append((name, local_files_only))
        assert not any(pattern in ("*", "*.safetensors") for pattern in allow_patterns)
        answer = answers[local_files_only]
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return calls, answers


@pytest.mark.parametrize("text", [FLUX, "facebook/DiT-XL-2-256", "a/b"])
def test_ids(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_id(text) and hub.is_id(Path(text))
    Path(text.partition("/")[0]).mkdir()
    assert not hub.is_id(text), "a name under a folder that is there is a path"


@pytest.mark.parametrize(
    "text",
    [
        "model.pt", "runs/model.pt", "runs/MODEL.SAFETENSORS", "a/b/c", "/a/b", "../b", "~/b",
        "a/", "", "a", "a b/c", "-x/y", "x/-y", "a/b\n", "latents:a/b",
        "a/" + "b" * 97, "a//b", "a/b.npz",
    ],
)  # fmt: skip
def test_paths(text, tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    assert not hub.is_id(text)
    assert hub.local(text) == Path(text) and asked[0] == []


def test_the_cache_comes_first(snapshot, asked):
    calls, answers = asked
    answers[True] = snapshot
    assert hub.local(FLUX) == snapshot and calls == [(FLUX, True)]
    assert name_of(snapshot) == "black-forest-labs--FLUX.1-dev"
    assert survey(CheckpointOptions(path=FLUX)).family == "DiTTransformer2DModel"


def test_what_the_cache_lacks_is_downloaded(snapshot, asked):
    calls, answers = asked
    answers[True], answers[False] = FileNotFoundError("no snapshot"), snapshot
    told = []
    assert hub.local(FLUX, on_download=told.append) == snapshot and told == [FLUX]
    assert calls == [(FLUX, True), (FLUX, False)]
    assert "Downloading the transformer" in call(["inspect", FLUX, "--json"]).stderr


def test_half_a_snapshot_is_completed(snapshot, asked, tmp_path):
    """Other programs fetch single files of a model, and the cache then has a folder of it."""
    calls, answers = asked
    answers[True], answers[False] = tmp_path / "half", snapshot
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "model_index.json").write_text('{"transformer": []}')
    assert hub.local(FLUX) == snapshot and calls == [(FLUX, True), (FLUX, False)]


def test_offline_is_respected(snapshot, asked, monkeypatch):
    calls, answers = asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    answers[True] = FileNotFoundError("no snapshot")
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE") as told:
        hub.local(FLUX)
    assert calls == [(FLUX, True)] and f"hf download {FLUX}" in told.value.hint
    answers[True] = snapshot
    assert hub.local(FLUX) == snapshot


def test_why_it_cannot_be_downloaded(snapshot, asked):
    _, answers = asked
    answers[True] = FileNotFoundError("no snapshot")
    answers[False] = PermissionError("403: this model is gated\nand more lines\n")
    with pytest.raises(CheckpointError) as told:
        hub.local(FLUX)
    assert str(told.value).endswith(
        "it cannot be downloaded: PermissionError: 403: this model is gated"
    )
    assert "hf auth login" in told.value.hint


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="huggingface_hub is not installed") as told:
        hub.local(FLUX)
    assert "hf download" in told.value.hint


def test_a_command_takes_an_id(snapshot, asked):
    _, answers = asked
    answers[True] = snapshot
    done = call(["inspect", FLUX, "--json"])
    assert done.code == 0 and done.stderr == "" and '"DiTTransformer2DModel"' in done.stdout, (
        done.stderr
    )


@pytest.mark.parametrize("command", ["analyze", "ablate", "bench", "inspect", "sample", "evaluate"])
def test_a_command_refuses_an_id_that_is_nowhere(command, tmp_path):
    done = run(command, FLUX, cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "cache"))
    assert done.returncode == 3 and done.stdout == ""
    first, second, _ = done.stderr.splitlines()
    assert first.startswith(f"Error: there is no file or folder '{FLUX}'")
    assert f"hf download {FLUX}" in second
