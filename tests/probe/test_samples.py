"""Which samples an analysis runs on, and that a model's own ones are drawn once and kept."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dar_probe.diffusion import data as datasets
from dar_probe.errors import ProbeError, UsageError
from dar_probe.probe import samples

SHAPE = (2, 4, 4)


class Model:
    """Stands in for a loaded checkpoint; counts how often it draws."""

    def __init__(self, *, shape=SHAPE, classes=3, said="drawn by hand", seen=None):
        self.identified = SimpleNamespace(shape=shape, num_classes=classes, sizes={"heads": 2})
        self.model = torch.nn.Linear(1, 1)
        self.file = {"sha256": "0" * 64, "weights": "ema", "name": "mine.pt"}
        self.objective = SimpleNamespace(name="sit")
        self.conditions, self.norm = "labels", None
        self.said, self.drawn = said, 0

    def draw(self, count, *, seed):
        self.drawn += 1
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, *self.identified.shape, generator=generator), self.said


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Return a folder of kept samples that is not there yet, nor the one above it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "there"))
    return tmp_path / "not" / "there" / "dar-probe" / "samples"


def same(one, other):
    assert torch.equal(one.latents, other.latents) and torch.equal(one.labels, other.labels)
    assert torch.equal(one.ids, other.ids)
    assert (one.name, one.description) == (other.name, other.description)


def test_own_samples_are_drawn_once(cache):
    model = Model()
    first = samples.own(model, 5, seed=1)
    assert first.latents.shape == (5, *SHAPE) and first.ids.tolist() == [0, 1, 2, 3, 4]
    assert first.labels.tolist() == [0, 1, 2, 0, 1] and first.name == samples.OWN_SAMPLES
    same(samples.own(model, 5, seed=1), first)
    same(samples.own(Model(), 5, seed=1), first)
    assert model.drawn == 1 and len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("change", ["count", "seed", "weights", "shape", "objective", "dtype"])
def test_whatever_changes_them_has_them_drawn_anew(change, cache):
    first, model = samples.own(Model(), 5, seed=1), Model()
    count, seed = 5 + (change == "count"), 1 + (change == "seed")
    if change == "weights":
        model.file["weights"] = "model"
    if change == "shape":
        model.identified.shape = (1, 4, 4)
    if change == "objective":
        model.objective.name = "repa"
    if change == "dtype":
        model.model.bfloat16()
    samples.own(model, count, seed=seed)
    assert model.drawn == 1 and len(list(cache.iterdir())) == 2
    same(samples.own(Model(), 5, seed=1), first)


@pytest.mark.parametrize(
    ("latents", "said"),
    [
        (np.zeros((5, 1, 4, 4), np.float32), "other shape"),
        (np.zeros((4, *SHAPE), np.float32), "too few"),
        (np.zeros((5, *SHAPE)), "float64"),
        (np.full((5, *SHAPE), np.nan, np.float32), "not finite"),
        (np.zeros((5, *SHAPE), np.float32), "a\x1b[31mcolour"),
        (np.zeros((5, *SHAPE), np.float32), ["two", "texts"]),
        (None, "no latents"),
        (np.zeros((5, *SHAPE), np.float32), None),
    ],
)
def test_a_kept_file_of_something_else_is_not_taken(latents, said, cache):
    first = samples.own(Model(), 5, seed=1)
    (path,) = cache.iterdir()
    parts = {"latents": latents, "description": None if said is None else np.array(said)}
    np.savez(path, **{name: part for name, part in parts.items() if part is not None})
    model = Model()
    same(samples.own(model, 5, seed=1), first)
    assert model.drawn == 1
    same(samples.own(model, 5, seed=1), first)  # and it was replaced by a good one
    assert model.drawn == 1


def test_a_long_description_is_cut_where_it_is_read(cache):
    samples.own(Model(said="a" * 599 + "bcd"), 2, seed=0)
    assert samples.own(Model(), 2, seed=0).description == "a" * 599 + "b"


def test_a_cache_that_cannot_be_kept_costs_nothing_but_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    model = Model()
    same(samples.own(model, 2, seed=0), samples.own(model, 2, seed=0))
    assert model.drawn == 2


def test_samples_that_are_not_finite_are_refused_and_not_kept(cache):
    model = Model()
    model.draw = lambda count, seed: (torch.full((count, *SHAPE), torch.inf), "")
    with pytest.raises(ProbeError, match=r"'mine.pt' draws are NaN or infinite"):
        samples.own(model, 2, seed=0)
    assert not cache.exists()


def test_a_model_without_classes_has_label_zero():
    assert samples.own(Model(classes=0), 3, seed=0).labels.tolist() == [0, 0, 0]


def test_the_digits_are_taken_where_they_fit_and_nothing_else_was_asked_for():
    model = Model(shape=(1, 8, 8), classes=10)
    held_out = datasets.load_data("digits", split="held-out")
    for asked, default, count in ((None, 7, 7), (3, 7, 3), (None, 10**6, len(held_out))):
        for spec in (None, "digits"):
            rows, assumed = samples.choose(model, spec, asked=asked, default=default, seed=0)
            assert torch.equal(rows.latents, held_out.latents[:count])
            assert torch.equal(rows.ids, held_out.ids[:count])
            assert [sentence.split(":")[0] for sentence in assumed] == (
                ["no data were given"] if spec is None else []
            )
    with pytest.raises(UsageError):
        samples.choose(model, None, asked=10**6, default=7, seed=0)
    assert model.drawn == 0


@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 11), ((3, 8, 8), 10), (SHAPE, 3)])
def test_a_model_that_the_digits_do_not_fit_draws_its_own(shape, classes):
    for asked, count in ((None, 4), (2, 2)):
        model = Model(shape=shape, classes=classes)
        rows, assumed = samples.choose(model, None, asked=asked, default=4, seed=0)
        assert rows.name == samples.OWN_SAMPLES and len(rows) == count and model.drawn == 1
        assert assumed == ["no data were given: drawn by hand"]


def test_the_digest_is_over_latents_and_labels():
    rows = datasets.load_data("digits", split="held-out").first(4)
    wanted = hashlib.sha256(rows.latents.numpy().tobytes() + rows.labels.numpy().tobytes())
    assert samples.digest(rows) == wanted.hexdigest()
    assert samples.digest(rows.take(slice(0, 3))) != samples.digest(rows)


def test_only_a_file_of_latents_is_read_before_the_model(tmp_path):
    np.savez(tmp_path / "mine.npz", latents=np.zeros((3, 4, 8, 8), np.float32),
             labels=np.zeros(3, np.int64))  # fmt: skip
    rows = samples.read(f"latents:{tmp_path / 'mine.npz'}")
    assert isinstance(rows, datasets.Data) and tuple(rows.latents.shape) == (3, 4, 8, 8)
    assert samples.read("digits") == "digits" and samples.read(None) is None
