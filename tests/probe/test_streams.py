"""Both streams of joint models: every number is that of plain autograd on the same module."""

import numpy as np
import pytest
import torch

import dar_probe as dp
from dar_probe.probe.measure import hooks
from dar_probe.probe.recorder import Recorder, Together, untouched
from dar_probe.sites.discover import Asked, discover
from tests.sites import joint
from tests.sites.joint import DOUBLE, SINGLE

LEVELS, SAMPLES = [0.3, 0.6], 3
GIVEN = {"batch": joint.batch, "loss": joint.loss, "noise_levels": LEVELS, "samples": SAMPLES}


def cosine(a, b):
    a, b = a.detach()[0], b.detach()[0]
    return float(((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean())


def reference(model, level, i):
    """Return rms, grad_rms and cosine by block, and gates by reader, of each stream."""
    ids, at = torch.tensor([i]), torch.tensor([level], dtype=torch.float64)
    output, *streams = joint.gated(model, *joint.batch(ids, at)[0])
    loss = joint.loss(output, ids, at).sum()
    found = []
    for stream in streams:
        last = len(stream.gates)
        doubles = [2 * k for k in range(DOUBLE)]
        rows = [*doubles, *range(2 * DOUBLE, last)]
        states = [stream.states[row] for row in rows]
        slopes = torch.autograd.grad(loss, states, retain_graph=True)
        gates = torch.autograd.grad(loss, stream.gates, retain_graph=True)
        found.append(
            {
                "rms": [float(s.detach().square().mean().sqrt()) for s in states],
                "grad_rms": [float(s.square().mean().sqrt()) for s in slopes],
                "cosine": [np.nan, *map(cosine, states, states[1:])],
                "gate": [gate.tolist() for gate in gates],
            }
        )
    return found


@pytest.fixture(scope="module")
def model():
    return joint.made()


@pytest.fixture(scope="module")
def both(model):
    return dp.analyze(model, stream="all", **GIVEN)


def test_every_number_of_both_streams_is_that_of_autograd(model, both):
    datasets = [both.streams[name].dataset for name in ("image", "text")]
    assert datasets[0].sizes["reader"] == datasets[1].sizes["reader"] + 1 == 2 * DOUBLE + SINGLE + 1
    for row, level in enumerate(LEVELS):
        for i in range(SAMPLES):
            for ds, wanted in zip(datasets, reference(model, level, i), strict=True):
                one = ds.isel(noise_level=row, sample=i)
                for name in ("rms", "grad_rms", "cosine"):
                    np.testing.assert_allclose(one[name], wanted[name], rtol=1e-9, err_msg=name)
                for reader, gates in enumerate(wanted["gate"]):
                    shown = one["gate"].values[reader]
                    np.testing.assert_allclose(shown[: len(gates)], gates, rtol=1e-7, atol=1e-12)
                    assert np.isnan(shown[len(gates) :]).all()


def test_the_text_s_last_reader_writes_to_the_image_alone(both):
    text = both.streams["text"].dataset
    blocks = DOUBLE + SINGLE
    assert text["reader_name"].values[-1] == f"block {blocks} last read"
    assert text["reader_kind"].values.tolist()[:2] == ["attention", "mlp"]
    assert text.sizes["block"] == blocks
    assert both.streams["image"].dataset["reader_name"].values[-1] == "head"


def test_one_stream_alone_has_the_numbers_that_it_has_beside_the_other(model, both, tmp_path):
    for name, one in both.streams.items():
        alone = dp.analyze(model, stream=name, **GIVEN).dataset
        for variable in alone.data_vars:
            np.testing.assert_array_equal(
                alone[variable], one.dataset[variable], err_msg=f"{name} {variable}"
            )
    both.save(tmp_path / "both", figures=False)
    again = dp.open_analysis(tmp_path / "both")
    assert again.whole.identical(both.whole) and list(again.streams) == ["image", "text"]
    for name, one in again.streams.items():
        assert one.dataset.identical(both.streams[name].dataset)
    assert list(again.summary["streams"]) == ["image", "text"]
    assert again.summary["metrics"] == again.summary["streams"]["image"]["metrics"]


def test_looking_at_both_changes_nothing(model):
    args, kwargs = joint.batch(torch.arange(2), torch.full((2,), 0.5, dtype=torch.float64))
    with untouched(model):
        subject = discover(model, tuple(v[:1] for v in args), kwargs,
                           asked=Asked(second=True))  # fmt: skip
        assert subject.second is not None
        plain = model(*args)
        tapped = {}
        visitors = [Recorder(one, tapped) for one in (subject, subject.second)]
        assert torch.equal(hooks(Together(visitors), args, kwargs), plain)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    # In single blocks one norm reads both: it has one tap, and both recorders have it.
    image, text = visitors
    shared = {id(tap) for tap in image.taps} & {id(tap) for tap in text.taps}
    assert len(shared) == SINGLE


def test_recomputing_gives_the_same_numbers_of_both(model, both):
    again = dp.analyze(model, stream="all", recompute=True, **GIVEN)
    for name in both.whole.data_vars:
        np.testing.assert_array_equal(again.whole[name], both.whole[name], err_msg=name)


def test_what_has_one_stream_is_told_so(model):
    from tests.sites.test_written_otherwise import FEW, batch, loss, made

    with pytest.raises(dp.ProbeError, match="no stream of text was found beside"):
        dp.analyze(made(), batch=batch, loss=loss, stream="text", **FEW)
    with pytest.raises(dp.UsageError, match="there is no stream 'words'"):
        dp.analyze(model, stream="words", **GIVEN)
    with pytest.raises(dp.UsageError, match="stream all is of hooks"):
        dp.analyze(model, stream="all", engine="nnsight", **GIVEN)
    with pytest.raises(dp.UsageError, match="one stream is known, that of the image"):
        dp.analyze("fixtures/digits-residual.pt", stream="text", noise_levels=[0.5], samples=2)


def skipped(model, ids, at, block, streams):
    """Return the losses of one sample without a block's writes to some streams, written plainly."""
    image, text = joint.batch(ids, at)[0]
    image, text = model.embed(image), model.words(text)
    for k, one in enumerate([*model.doubles, *model.singles], 1):
        new = one(image, text)
        image = image if k == block and "image" in streams else new[0]
        text = text if k == block and "text" in streams else new[1]
    return joint.loss(model.head(model.norm(image)), ids, at)


def test_blocks_are_skipped_for_one_stream_or_both(model):
    """In a real forward that leaves the block's writes out: for the image, the text, or both."""
    found = dp.ablate(model, stream="all", pairs=0, kinds=["block", "image_block", "text_block"],
                      **GIVEN).whole  # fmt: skip
    blocks = DOUBLE + SINGLE
    kinds = {"block": ("image", "text"), "image_block": ("image",), "text_block": ("text",)}
    names = [f"without block {k}" for k in range(1, blocks + 1)]
    names += [f"{name} for the image" for name in names[:blocks]]
    # What the last block writes to the text nobody reads.
    names += [f"{name} for the text" for name in names[: blocks - 1]]
    assert found["ablation_name"].values.tolist() == names
    for at, (name, kind) in enumerate(zip(names, found["ablation_kind"].values, strict=True)):
        block = int(name.split()[2])
        for row, level in enumerate(LEVELS):
            ids, levels = torch.arange(SAMPLES), torch.full((SAMPLES,), level, dtype=torch.float64)
            with torch.no_grad():
                # A block's own text readers meet its own writes: attention before the MLP.
                true = skipped(model, ids, levels, block, kinds[kind])
                true = true - joint.loss(model(*joint.batch(ids, levels)[0]), ids, levels)
            shown = found["gate_ablated"].values[row, :, at]
            np.testing.assert_allclose(shown, true, rtol=1e-7, atol=1e-12, err_msg=name)


def test_kinds_of_one_of_two_streams_take_both(model):
    with pytest.raises(dp.UsageError, match="one stream is measured"):
        dp.ablate(model, kinds=["text_block"], **GIVEN)
    text = dp.ablate(model, stream="text", pairs=2, kinds=["gate", "block"], **GIVEN)
    assert set(text.dataset["ablation_kind"].values) == {"gate", "block"}


def test_a_selected_stream_is_an_analysis(both):
    for name, one in both.streams.items():
        selected = both.whole.sel(stream=name)
        assert selected.dar.analysis.dataset.identical(one.dataset)
        assert selected.dar.verdict.sentence == one.verdict.sentence
    frame = both.to_dataframe("rms")
    assert list(frame.columns)[:2] == ["stream", "noise_level"]
    sizes = [one.dataset["rms"].size for one in both.streams.values()]
    assert frame.groupby("stream").size().tolist() == sizes
    text = frame[frame["stream"] == "text"]["rms"].values
    np.testing.assert_array_equal(text, both.streams["text"].dataset["rms"].values.ravel())


def test_files_of_both_streams(model, tmp_path):
    found = dp.ablate(model, stream="all", pairs=2, **GIVEN)
    found.save(tmp_path / "both", formats=["png"])
    drawn = {path.relative_to(tmp_path / "both" / "figures").as_posix()
             for path in (tmp_path / "both" / "figures").rglob("*.png")}  # fmt: skip
    assert {"interventions.png", "dilution.png", "text/dilution.png"} <= drawn
    assert "text/interventions.png" not in drawn
    page = (tmp_path / "both" / "report.html").read_text()
    for words in ("Image and text over depth", "The stream of the text", "Text: Depth"):
        assert words in page
    again = dp.open_analysis(tmp_path / "both").streams
    assert "gate_ablated" in again["image"].dataset and "gate_ablated" not in again["text"].dataset


@pytest.mark.parametrize("part", ["image", "text"])
def test_a_detached_branch_of_either_stream_blinds_both(model, part):
    """The gradients of a stream are not those of the loss where either leaves a branch out."""

    class Detached(torch.nn.Module):
        def __init__(self, branch):
            super().__init__()
            self.branch = branch

        def forward(self, x):
            return self.branch(x).detach()

    blind = joint.made()
    for block in blind.doubles:
        getattr(block, part).out = Detached(getattr(block, part).out)
    found = dp.analyze(blind, stream="all", **GIVEN)
    assert any("gradients of this model are not those" in one for one in found.manifest["warnings"])
    for one in found.streams.values():
        assert np.isnan(one.dataset["gate"]).all() and np.isfinite(one.dataset["rms"]).all()
