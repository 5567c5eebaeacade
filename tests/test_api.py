"""One door for checkpoints and modules: names, refusals, files, and work by hand."""

import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dar_probe as dp
from dar_probe.checkpoints.naming import display_name, folder_name
from dar_probe.results import schema
from tests.test_audit import Stack, batch, loss

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
FEW = {"noise_levels": [0.2, 0.8], "samples": 2}
GIVEN = {"batch": batch, "loss": loss, **FEW}


@pytest.fixture(scope="module")
def stack():
    torch.manual_seed(0)
    model = Stack()
    for parameter in model.parameters():  # trained, as far as anybody can tell
        parameter.data += 0.01 * torch.randn_like(parameter)
    return model


def test_dir_lists_what_is_public_and_all_of_it_is_there():
    assert dir(dp) == sorted(dp.__all__)
    for name in dp.__all__:
        assert getattr(dp, name) is not None


def test_a_module_is_analysed_as_audit_does(stack):
    one, other = dp.analyze(stack, **GIVEN), dp.audit(stack, **GIVEN)
    for name in one.dataset.data_vars:
        np.testing.assert_array_equal(one.dataset[name].values, other.dataset[name].values)
    assert one.name == "Stack"
    assert dp.analyze(stack, name="mine", **GIVEN).name == "mine"
    assert dp.audit(stack, name="mine", **GIVEN).name == "mine"


def test_gates_of_a_module_are_set_to_zero_for_real(stack):
    found = dp.ablate(stack, kinds=["source", "block"], **GIVEN).dataset
    names = [str(name) for name in found["ablation_name"].values]
    at = names.index("without block 2 mlp")
    block = stack.blocks[1]
    kept = block.mlp.forward
    ids, level = torch.arange(2), torch.full((2,), 0.2, dtype=torch.float64)
    args, _ = batch(ids, level)
    stack.eval()
    with torch.no_grad():
        before = loss(stack(*args), ids, level)
        block.mlp.forward = lambda x: torch.zeros_like(kept(x))
        after = loss(stack(*args), ids, level)
        del block.mlp.forward
    np.testing.assert_allclose(
        found["gate_ablated"].values[0, :, at], (after - before).numpy(), rtol=1e-3, atol=1e-6
    )


def test_what_belongs_to_the_other_kind_is_refused(stack):
    with pytest.raises(dp.UsageError, match="heads belongs to checkpoints, and this is a module"):
        dp.analyze(stack, heads=3, **GIVEN)
    with pytest.raises(dp.UsageError, match="batch belongs to modules, and .* is a checkpoint"):
        dp.analyze(FIXTURES / "digits-residual.pt", batch=batch)
    with pytest.raises(dp.UsageError, match="cannot analyse an object of type int"):
        dp.analyze(3)
    with pytest.raises(
        TypeError, match="unexpected keyword argument 'hedas'; did you mean 'heads'"
    ):
        dp.evaluate("x.pt", hedas=3)


def test_files_of_a_module_are_continued_by_the_same_weights_alone(tmp_path, stack):
    out = tmp_path / "mine"
    first = dp.analyze(stack, out=out, figures=False, **GIVEN)
    again = dp.analyze(stack, out=out, figures=False, resume=True, **GIVEN)
    assert again.dataset.identical(first.dataset)  # with its date: nothing was measured anew
    changed = Stack()
    fresh = dp.analyze(changed, out=out, figures=False, resume=True, **GIVEN)
    assert not np.array_equal(fresh.dataset["rms"].values, first.dataset["rms"].values)


def test_the_analysis_of_another_checkpoint_is_kept(tmp_path, undrawn):
    out = tmp_path / "out"
    dp.analyze(FIXTURES / "digits-residual.pt", out=out, figures=False, **FEW)
    dp.analyze(FIXTURES / "digits-residual.pt", out=out, figures=False, **FEW)  # its own: replaced
    other = FIXTURES / "digits-dar-static.pt"
    with pytest.raises(dp.UsageError, match="holds the analysis of 'digits-residual.pt', another"):
        dp.analyze(other, out=out, figures=False, **FEW)
    dp.analyze(other, out=out, figures=False, overwrite=True, **FEW)
    assert dp.open_analysis(out).name == "digits-dar-static.pt"


def test_an_analysis_that_cannot_be_read_is_kept(tmp_path, undrawn):
    """It may be of another version, or of another model: nobody knows."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "analysis.nc").write_text("not what it says")
    with pytest.raises(dp.UsageError, match="holds an analysis that cannot be read"):
        dp.analyze(FIXTURES / "digits-residual.pt", out=out, figures=False, **FEW)
    assert (out / "analysis.nc").read_text() == "not what it says"
    dp.analyze(FIXTURES / "digits-residual.pt", out=out, figures=False, overwrite=True, **FEW)
    assert dp.open_analysis(out).name == "digits-residual.pt"


def test_a_finished_analysis_takes_another_name_without_measuring(tmp_path, stack):
    settings = {"out": tmp_path / "out", "figures": False, **GIVEN}
    first = dp.analyze(stack, **settings)

    def never(*_):
        raise AssertionError("it was measured again")

    again = dp.analyze(stack, resume=True, name="mine", on_cells=never, **settings)
    assert again.name == "mine" and dp.open_analysis(tmp_path / "out").name == "mine"
    assert "mine" in (tmp_path / "out" / "report.html").read_text()
    for name in first.dataset.data_vars:
        np.testing.assert_array_equal(again.dataset[name].values, first.dataset[name].values)
    kept = dp.analyze(stack, resume=True, on_cells=never, **settings)
    assert kept.name == "mine", "who gives no name takes what is there"


def test_what_was_done_to_the_data_of_a_training_is_said(tmp_path):
    values = np.random.default_rng(0).standard_normal((32, 1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    notices = []
    dp.train(
        tmp_path / "run", data=f"latents:{tmp_path / 'x.npy'}", steps=1, depth=1, width=8, heads=1,
        batch_size=2, on_notice=notices.append,
    )  # fmt: skip
    assert len(notices) == 1 and "has no labels: every sample is of one class" in notices[0]


@pytest.mark.parametrize(
    ("path", "shown", "folder"),
    [
        ("runs/dar/checkpoints/step-0000300.pt", "dar/step-0000300", "dar-step-0000300"),
        ("results/000-SiT-XL-2/checkpoints/0400000.pt", "000-SiT-XL-2/0400000", None),
        ("lightning_logs/mine/checkpoints/epoch=3-step=200.ckpt", "mine/epoch=3-step=200", None),
        ("runs/mine/last.safetensors", "mine/last", "mine-last"),
        ("runs/mine/ema_model.pt", "mine/ema_model", None),
        ("SiT-XL-2-256x256.pt", "SiT-XL-2-256x256.pt", "SiT-XL-2-256x256"),
        ("digits-residual.pt", "digits-residual.pt", "digits-residual"),
    ],
)
def test_a_step_is_named_with_its_run(path, shown, folder):
    assert display_name(path) == shown
    assert folder_name(path) == (folder or shown.replace("/", "-"))


def test_an_uncaught_error_shows_its_hint():
    with pytest.raises(dp.UsageError) as caught:
        dp.build("SiT-XL/2", colour=3)
    text = "".join(traceback.format_exception(caught.value))
    assert "unknown model setting" in text and "The above exception" not in text
    with pytest.raises(dp.UsageError) as caught:
        dp.analyze(FIXTURES / "digits-residual.pt", dtype="float3")
    assert f"Hint: {caught.value.hint}" in "".join(traceback.format_exception(caught.value))


def test_a_site_that_is_not_there_is_answered_with_the_nearest(stack):
    with dp.Probe(stack, batch=batch) as probe:
        with pytest.raises(KeyError) as caught:
            probe.reads["block 2 mpl"]
        assert str(caught.value) == "there is no read 'block 2 mpl'"
        assert caught.value.hint.startswith("such as 'block 2 mlp'")
        assert probe.reads.get("block 9 mlp") is None
        with pytest.raises(dp.UsageError, match="there is no noise level 1.9"):
            probe.trace(1.9)


def test_the_plain_module_and_its_inputs_give_what_a_trace_does(stack):
    with dp.Probe(stack, batch=batch, loss=loss) as probe:
        args, kwargs = probe.inputs(0.2, ids=[0, 1])
        assert probe.module is stack
        output = probe.module(*args, **kwargs)
        with probe.trace(0.2, ids=[0, 1]):
            traced = probe.save(probe.model.output)
        torch.testing.assert_close(output, traced, rtol=0, atol=0)
        assert output.requires_grad


def test_writes_of_a_module_have_the_names_of_the_report(stack):
    names = dp.analyze(stack, **GIVEN).dataset["source_name"].values.tolist()
    with dp.Probe(stack, batch=batch) as probe:
        assert list(probe.writes) == names[1:]
        with probe.trace(0.2, ids=[0, 1]):
            read = probe.save(probe.reads["block 2 mlp"].input)
            write = probe.save(probe.writes["block 2 mlp"].output)
            after = probe.save(probe.reads["block 3 attention"].input)
        torch.testing.assert_close(read + write, after)


def test_a_write_that_no_module_returns_is_left_out():
    class Halved(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.mlp = nn.LayerNorm(16), nn.Linear(16, 16)

        def forward(self, x):
            return x + 0.5 * self.mlp(self.norm(x))

    model = Stack()
    model.blocks = nn.ModuleList(Halved() for _ in range(3))
    with dp.Probe(model, batch=batch) as probe:
        assert not probe.writes and len(probe.reads) == 4


def test_unfinished_parts_of_another_version_are_not_continued(tmp_path, stack, monkeypatch):
    out = tmp_path / "mine"

    class Killed(Exception):
        pass

    def kill(done, cells):
        raise Killed

    with pytest.raises(Killed):
        dp.analyze(stack, out=out, batch_size=1, on_cells=kill, figures=False, **GIVEN)
    monkeypatch.setitem(schema.VARIABLES, "kurtosis", schema.VARIABLES["rms"])
    with pytest.raises(dp.UsageError, match="other settings|another|settings"):
        dp.analyze(stack, out=out, batch_size=1, resume=True, figures=False, **GIVEN)


def test_an_audit_in_another_number_type_leaves_the_module_alone(stack):
    before = {name: value.clone() for name, value in stack.state_dict().items()}
    found = dp.audit(stack, dtype="double", **GIVEN)
    assert found.manifest["dtype"] == "float64"
    for name, value in stack.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, before[name])
    plain = dp.audit(stack, **GIVEN).dataset
    np.testing.assert_allclose(found.dataset["rms"].values, plain["rms"].values, rtol=1e-5)
    with pytest.raises(dp.UsageError, match="not available here"):
        dp.audit(stack, device="cuda:99", **GIVEN)


def test_bench_and_doctor_have_their_functions():
    price = dp.bench(FIXTURES / "digits-residual.pt", batch_size=2, repeats=1)
    assert price.cells == 2 and price.probe.seconds > 0 and price.probe.peak_bytes > 0
    assert f"{price.probe.ratio:.2f} of the bare pass" in repr(price)
    assert dp.bench("SiT-S/8", batch_size=1, repeats=1).floor.ratio == 1
    for call, what, error in (
        (lambda: dp.bench("SiT-Q/8"), "unknown model 'SiT-Q/8'", dp.UsageError),
        (lambda: dp.bench("SiT-S/8", heads=3), "heads belongs to checkpoints", dp.UsageError),
        (lambda: dp.bench("nothing.pt"), "no file 'nothing.pt'", dp.CheckpointError),
        (lambda: dp.bench("SiT-XL-2-x.pt"), "no file 'SiT-XL-2-x.pt'", dp.CheckpointError),
        (lambda: dp.bench("x", foo=1), "unexpected keyword argument 'foo'", TypeError),
    ):
        with pytest.raises(error, match=what):
            call()
    found = dp.doctor("cpu")
    assert found.passed and found.test.device == "cpu" and found.error == ""
    assert found.environment.dar_probe == dp.__version__
    assert found.sentence in repr(found) and "self-test passed" in repr(found)
    with pytest.raises(dp.UsageError, match="not available here"):
        dp.doctor("cuda:99")


def test_a_probe_of_a_module_has_the_samples_that_were_asked_for(stack):
    with dp.Probe(stack, batch=batch, loss=loss, samples=3) as probe:
        args, _ = probe.inputs(0.5)
        assert len(args[0]) == 3
    with dp.Probe(FIXTURES / "digits-residual.pt", samples=9) as probe:
        assert len(probe.inputs(0.5)[0][0]) == 9
    with dp.Probe(FIXTURES / "digits-residual.pt") as probe:
        assert len(probe.inputs(0.5)[0][0]) == 8, "few where nobody asked"


def test_a_closed_probe_says_so(stack):
    with dp.Probe(stack, batch=batch, loss=loss) as probe:
        pass
    with pytest.raises(dp.UsageError, match="this probe is closed"):
        probe.trace(noise_level=0.5)


def test_another_module_of_the_same_class_name_is_kept(tmp_path, stack, undrawn):
    settings = {"out": tmp_path / "out", "figures": False, **GIVEN}
    dp.analyze(stack, **settings)
    with pytest.raises(dp.UsageError, match="holds the analysis of 'Stack', another"):
        dp.analyze(Stack(depth=3), **settings)


def test_arguments_of_another_kind_get_a_sentence(stack):
    for call, words in (
        (lambda: dp.analyze(stack, samples="8", batch=batch), "counted in whole numbers"),
        (lambda: dp.bench(stack), "not an object of type Stack"),
        (lambda: dp.analyze(stack, noise_levels=float("nan"), batch=batch), "make no sense"),
    ):
        with pytest.raises(dp.UsageError, match=words):
            call()
    found = dp.ablate(stack, kinds="block", **GIVEN).dataset
    assert set(found["ablation_kind"].values) == {"block"}


def test_options_that_the_routing_does_not_take_are_refused(tmp_path):
    """They would do nothing, and a plain model be trained where a router was meant."""
    with pytest.raises(dp.UsageError, match="the routing residual has no query") as caught:
        dp.train(tmp_path / "run", query="dynamic", steps=1)
    assert "--routing dar" in caught.value.hint
    assert not (tmp_path / "run").exists()
