"""``--config``: options from a file, which what is typed wins over."""

import json

import pytest

from tests.helpers.shell import run
from tests.hostile.playground import fill


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("config")
    fill(path)
    return path


def analysed(folder, text, *typed, command=("analyze", "plain.pt")):
    (folder / "run.toml").write_text(text, encoding="utf-8")
    return run(*command, "--config", "run.toml", *typed, cwd=folder, light=True)


def manifest(folder, out):
    from dar_probe.analysis import open_analysis

    return open_analysis(folder / out)


def test_a_file_says_everything(folder):
    done = analysed(
        folder,
        'out = "everything"\nnoise_levels = [0.2, 0.7]\nsamples = 3\nbatch-size = 2\nseed = 5\n'
        'dtype = "fp64"\nno_figures = true\njson = true\nfail_on = "inflation > 0"\n',
    )
    assert done.returncode == 1, done.stderr  # the rule holds
    assert json.loads(done.stdout)
    found = manifest(folder, "everything")
    assert found.dataset["noise_level"].values.tolist() == [0.2, 0.7]
    assert found.dataset.sizes["sample"] == 3
    assert found.manifest["seed"] == 5 and found.manifest["dtype"] == "float64"
    assert not (folder / "everything" / "figures").exists()


def test_what_is_typed_wins(folder):
    text = 'samples = 3\nnoise_levels = 2\nout = "never"\nseed = 5\n'
    done = analysed(folder, text, "--samples", "1", "--out", "typed")
    assert done.returncode == 0, done.stderr
    found = manifest(folder, "typed")
    assert found.dataset.sizes["sample"] == 1 and found.dataset.sizes["noise_level"] == 2
    assert found.manifest["seed"] == 5 and not (folder / "never").exists()


def test_the_file_may_be_named_last(folder):
    (folder / "last.toml").write_text("samples = 1\nnoise_levels = 1\n", encoding="utf-8")
    done = run(
        "analyze", "--out", "last", "plain.pt", "--config", "last.toml", cwd=folder, light=True
    )
    assert done.returncode == 0, done.stderr
    assert manifest(folder, "last").dataset.sizes["sample"] == 1


def test_ablate_with_a_list_of_gates(folder):
    done = analysed(
        folder, 'gate = ["2:0", "3:1"]\nkinds = ["block", "gate"]\npairs = 0\nsamples = 1\n'
        'noise_levels = 1\nout = "ablated"\n', command=("ablate", "plain.pt"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kinds = manifest(folder, "ablated").dataset["ablation_kind"].values.tolist()
    assert kinds.count("gate") == 2 and kinds.count("block") > 0


def test_audit_takes_one(folder):
    done = analysed(
        folder, 'input = "4,8"\nsamples = 2\nout = "audited"\n', command=("audit", "mine:bare")
    )
    assert done.returncode in (0, 1), done.stderr
    assert manifest(folder, "audited").dataset.sizes["sample"] == 2


@pytest.mark.parametrize(
    ("text", "sentence", "hint"),
    [
        ("sampels = 3", "sets 'sampels', which dar-probe analyze does not take", "'samples'?"),
        ("noise-level = 3", "sets 'noise-level', which", "'noise_levels'?"),
        ("teleport = 3", "sets 'teleport'", "known: out, data"),
        ("config = 'x'", "sets 'config'", "known: "),
        ("checkpoints = 'x'", "sets 'checkpoints'", "known: "),
        ("pairs = 3", "which dar-probe analyze does not take", "known: "),
        ("resume = 1", "'resume' in 'run.toml' must be true or false", "flag"),
        ("samples = true", "'samples' in 'run.toml' must be a number or a text", "samples = 16"),
        ("[samples]\nx = 1", "must be a number or a text", "samples = 16"),
        ("samples = 'many'", "Invalid value for '--samples'", "--help"),
        ("seed = -1", "Invalid value for '--seed'", "--help"),
        ("dtype = 'int8'", "unknown dtype 'int8'", "bfloat16"),
        ("samples = ", "is no TOML", "samples = 16"),
    ],
)
def test_what_a_file_may_not_say(folder, text, sentence, hint):
    done = analysed(folder, text, "--out", "refused")
    assert done.returncode == 2 and done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first.startswith("Error: ") and sentence in first
    told = [line for line in rest if not line.startswith("More: ")]
    assert hint in " ".join(told) and len(told) == 1
    assert not (folder / "refused").exists()


def test_a_file_that_is_not_there(folder):
    done = run("analyze", "plain.pt", "--config", "nowhere.toml", cwd=folder)
    assert done.returncode == 2 and "'nowhere.toml' cannot be read" in done.stderr


def test_train_names_the_nearest_setting_too(folder):
    done = analysed(folder, "warmpu = 3", "--out", "run", command=("train",))
    assert done.returncode == 2 and "did you mean 'warmup'?" in done.stderr
