"""The benchmark's arithmetic: form, memory and hygiene; how long anything takes is not tested."""

import math

import pytest
import torch

from dar_probe.errors import UsageError
from dar_probe.models.options import CheckpointOptions
from dar_probe.models.sit import SiTConfig
from dar_probe.probe import bench
from dar_probe.probe.recorder import untouched

CPU = torch.device("cpu")
SMALL = SiTConfig(
    depth=2, width=16, heads=2, patch=2, in_channels=4, input_size=4, num_classes=10
)  # fmt: skip


@pytest.fixture
def work():
    return bench.random_workload(SMALL, cells=3)


def allocate(count):
    return lambda: torch.ones(count)


def test_twice_the_memory_has_twice_the_peak():
    peaks = [bench.peak_bytes(allocate(count), CPU) for count in (1000, 2000)]
    assert peaks == [4000, 8000]


def test_peak_is_the_high_water_and_not_the_sum():
    def one_after_the_other():
        for _ in range(5):
            torch.ones(1000)

    def all_at_once():
        return [torch.ones(1000) for _ in range(5)]

    assert bench.peak_bytes(one_after_the_other, CPU) == 4000
    assert bench.peak_bytes(all_at_once, CPU) == 20_000


def test_what_was_there_before_does_not_count():
    before = torch.ones(10_000)
    assert bench.peak_bytes(lambda: before[:10].sum(), CPU) < 1000


def test_functions_take_turns_in_alternating_order():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    timings = bench.compare(functions, repeats=3, device=CPU)
    timed = "".join(calls)[bench.WARM_UPS * 3 : -3]  # without warm-up and the look at memory
    assert timed == "abc" + "cba" + "abc"
    assert list(timings) == ["a", "b", "c"]
    first = timings["a"]
    assert first.ratio == first.low == first.high == 1
    for timing in timings.values():
        assert timing.seconds > 0 and timing.low <= timing.ratio <= timing.high


def test_ratio_is_the_median_of_paired_ratios(monkeypatch):
    ticks = iter([1.0, 2.0, 40.0, 10.0, 1.0, 5.0])  # rounds: a b, b a, a b
    monkeypatch.setattr(bench, "_seconds", lambda function, device: next(ticks))
    found = bench.compare({"a": int, "b": int}, repeats=3, device=CPU)
    assert found["a"].seconds == 1.0 and found["b"].seconds == 5.0
    assert found["b"].ratio == 4.0  # of 2, 4 and 5; the medians would say 5


def test_no_repeats_are_refused():
    with pytest.raises(UsageError, match="at least 1"):
        bench.compare({"a": int}, repeats=0, device=CPU)


def test_price(work):
    price = bench.bench(work, repeats=2, with_step=True)
    assert price.cells == 3 and price.floor.ratio == 1
    for timing in (price.floor, price.probe, price.step):
        assert timing.seconds > 0 and timing.peak_bytes > 0
    assert math.isclose(price.memory_ratio, price.probe.peak_bytes / price.floor.peak_bytes)
    assert math.isclose(price.samples_per_second, 3 / price.probe.seconds)
    assert math.isclose(price.step_ratio, price.probe.ratio / price.step.ratio)
    assert all(p.grad is None for p in work.subject.model.parameters())


def test_model_is_as_it_was(work):
    model = work.subject.model
    model.train()
    model.x_embedder.proj.weight.requires_grad_(False)
    before = [(p.requires_grad, p.detach().clone()) for p in model.parameters()]
    bench.bench(work, repeats=1, with_step=True)
    assert all(module.training for module in model.modules())
    for (wanted, value), parameter in zip(before, model.parameters(), strict=True):
        assert parameter.requires_grad == wanted and torch.equal(parameter, value)


def test_step_gives_every_trained_parameter_a_gradient(work):
    run = bench.step(work)
    trained = [p for p in work.subject.model.parameters() if p.requires_grad]
    with untouched(work.subject.model):
        grads = run()
    assert [g.shape for g in grads] == [p.shape for p in trained]
    assert all(bool(g.any()) for g in grads)


def test_floor_and_probe_see_the_same_loss(work):
    args, kwargs = work.batch(work.ids, work.levels)
    with untouched(work.subject.model):
        losses = work.loss(work.subject.model(*args, **kwargs), work.ids, work.levels)
        arrays = bench.probe(work)()
        (grad,) = bench.floor(work)()
    assert torch.equal(losses, torch.from_numpy(arrays["loss"]))
    assert grad.shape == args[0].shape


@pytest.mark.parametrize("query", [None, "static+t", "dynamic"])
def test_every_gate_of_a_random_model_is_open(query):
    routed = {"routing": "dar", "query": query, "chunk_size": 2} if query else {}
    state = torch.get_rng_state()
    work = bench.random_workload(SiTConfig(**{**SMALL.to_dict(), **routed}), cells=2)
    assert torch.equal(torch.get_rng_state(), state)
    with untouched(work.subject.model):
        arrays = bench.probe(work)()
    assert (arrays["write_rms"] > 0).all() and (arrays["grad_rms"] > 0).all()


def test_checkpoint_and_preset_make_workloads():
    residual = CheckpointOptions(path="fixtures/digits-residual.pt", device="cpu")
    few = bench.of_checkpoint(residual, batch_size=3)
    assert few.ids.tolist() == [few.ids[0]] * 3 and len(set(few.levels.tolist())) == 3
    many = bench.of_checkpoint(residual, batch_size=70)
    assert len(many.ids) == len(many.levels) == 70
    work = bench.of_preset("DiT-S/8", batch_size=2, device="cpu", dtype="float64")
    (x, t, y), _ = work.batch(work.ids, work.levels)
    assert x.dtype == torch.float64 and not t.is_floating_point() and len(y) == 2
    with pytest.raises(UsageError, match="SiT-Q/3"):
        bench.of_preset("SiT-Q/3")
