"""A module of another number type, with the inputs and the loss that its author wrote."""

import numpy as np
import pytest
import torch
from torch import nn

import dar_probe as dp
from dar_probe.errors import UsageError
from dar_probe.probe.options import ModuleOptions
from dar_probe.probe.placing import offloaded, placed
from tests.sites.test_written_otherwise import FEW, made
from tests.sites.test_written_otherwise import batch as stack_batch
from tests.sites.test_written_otherwise import loss as stack_loss


def batch(sample_ids, noise_level):
    x = torch.arange(4.0)[None] + sample_ids[:, None]
    return (x, {"ids": sample_ids, "pair": [x, (x, None)]}), {"again": x}


def test_what_goes_in_and_what_comes_back():
    module, seen = nn.Linear(4, 2), []

    def loss(output, sample_ids, noise_level):
        seen.append(output)
        return output["x"].sum(1)

    moved, options = placed(
        module, ModuleOptions(batch=batch, loss=loss), device="cpu", dtype="double"
    )
    assert moved is not module and module.weight.dtype == torch.float32, "a copy is cast"
    assert moved.weight.dtype == torch.float64
    ids = torch.arange(3)
    args, kwargs = options.batch(ids, torch.zeros(3))
    assert args[0].dtype == kwargs["again"].dtype == args[1]["pair"][1][0].dtype == torch.float64
    assert args[1]["ids"].dtype == torch.int64 and args[1]["pair"][1][1] is None
    assert isinstance(args[1]["pair"], list) and isinstance(args[1]["pair"][1], tuple)
    options.loss({"x": moved(args[0]), "n": 3}, ids, torch.zeros(3))
    assert seen[0]["x"].dtype == torch.float32 and seen[0]["n"] == 3


def test_gradients_pass_the_cast():
    moved, options = placed(
        nn.Linear(4, 2),
        ModuleOptions(batch=batch, loss=lambda output, *_: output.sum(1)),
        device=None, dtype="bf16",
    )  # fmt: skip
    (x, _), _ = options.batch(torch.arange(2), torch.zeros(2))
    options.loss(moved(x), torch.arange(2), torch.zeros(2)).sum().backward()
    assert moved.weight.grad.abs().sum() > 0


def test_nothing_is_wrapped_where_nothing_is_asked_for():
    module, options = nn.Linear(4, 2), ModuleOptions(batch=batch)
    assert placed(module, options, device=None, dtype=None) == (module, options)


def test_an_output_of_a_class_of_its_own_stays_one():
    class Output(dict):
        pass

    _, options = placed(
        nn.Linear(1, 1),
        ModuleOptions(loss=lambda output, *_: output), device=None, dtype="double",
    )  # fmt: skip
    assert isinstance(options.loss(Output(x=torch.zeros(1)), None, None), Output)


def test_what_cannot_be_copied_is_refused():
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("no twins")

    with pytest.raises(UsageError, match="cannot be brought to cpu in bfloat16.*no twins") as told:
        placed(Stubborn(1, 1), ModuleOptions(), device=None, dtype="bf16")
    assert "--dtype" in told.value.hint
    with pytest.raises(UsageError, match="unknown dtype"):
        placed(nn.Linear(1, 1), ModuleOptions(), device=None, dtype="int8")
    with pytest.raises(UsageError, match="not available"):
        placed(nn.Linear(1, 1), ModuleOptions(), device="meta", dtype=None)


def test_a_module_is_kept_in_host_memory_for_a_gpu_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    module, options = made(), ModuleOptions(batch=stack_batch, loss=stack_loss)
    with offloaded(module, options) as found:
        assert found == (module, options), "nothing is wrapped where nothing is asked for"
    for place, said in (("disk", "lie in memory already"), ("cpu", "runs on the CPU")):
        with pytest.raises(dp.UsageError, match=said) as caught:
            dp.analyze(module, batch=stack_batch, loss=stack_loss, offload=place, **FEW)
        assert "disk" in caught.value.hint
    with pytest.raises(dp.UsageError, match="lie on meta already") as caught:
        dp.ablate(module.to("meta"), batch=stack_batch, loss=stack_loss, offload="cpu", **FEW)
    assert "module.to('cpu')" in caught.value.hint


def test_a_module_is_streamed_to_the_gpu_and_back(monkeypatch, tmp_path):
    """The CPU stands in for the GPU: what is fetched is the same, where it goes is not."""
    module = made()
    given = {"batch": stack_batch, "loss": stack_loss, **FEW}
    plain = dp.analyze(module, out=tmp_path / "plain", report=False, figures=False, **given)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("dar_probe.probe.placing.check_cpu", lambda place: None)
    first = next(module.blocks.parameters())
    again = dp.analyze(
        module, offload="cpu", out=tmp_path / "again", report=False, figures=False, **given
    )
    for name, value in plain.dataset.data_vars.items():
        np.testing.assert_array_equal(again.dataset[name].values, value.values, err_msg=name)
    assert again.manifest["offload"] == "cpu" and again.manifest["recompute"] is True
    assert again.manifest["config"]["module_sha256"] == plain.manifest["config"]["module_sha256"]
    assert again.manifest["model"] == plain.manifest["model"]
    assert next(module.blocks.parameters()) is first
    assert not any("forward" in part.__dict__ for part in module.modules())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_module_in_host_memory_runs_on_a_gpu():
    module, given = made(), {"batch": stack_batch, "loss": stack_loss, **FEW}
    plain = dp.audit(module, device="cuda", **given).dataset
    again = dp.analyze(module, offload="cpu", **given)
    assert again.manifest["device"].startswith("cuda")
    for name, value in plain.data_vars.items():
        np.testing.assert_array_equal(again.dataset[name].values, value.values, err_msg=name)
    assert all(p.device.type == "cpu" for p in module.parameters())
