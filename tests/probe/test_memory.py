"""A batch leaves nothing behind: a long walk needs no more memory than a short one."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dar_probe.models.sit import SiTConfig
from dar_probe.probe import bench
from dar_probe.probe.recorder import untouched

CPU = torch.device("cpu")
ROUTINGS = [{}, {"routing": "dar", "query": "static+t"}, {"routing": "dar", "query": "dynamic"}]


@pytest.fixture(params=ROUTINGS, ids=lambda o: o.get("query", "residual"))
def work(request):
    config = SiTConfig(
        depth=4, width=32, heads=2, patch=2, in_channels=4, input_size=8, num_classes=10,
        **request.param,
    )  # fmt: skip
    return bench.random_workload(config, cells=4)


def test_activations_of_a_batch_are_dead_afterwards(work):
    """By reference counts alone: what waits for the garbage collector waits with its memory."""
    activations = []

    def remember(module, args, output):
        for value in (*args, output):
            if isinstance(value, Tensor):
                activations.append(weakref.ref(value))

    model = work.subject.model
    inputs = work.batch(work.ids, work.levels)  # these belong to the caller
    with untouched(model):
        run = bench.probe(replace(work, batch=lambda *_: inputs))
        handles = [m.register_forward_hook(remember) for m in model.modules()]
        gc.collect()
        gc.disable()
        try:
            arrays = run()
        finally:
            gc.enable()
            for handle in handles:
                handle.remove()
        alive = [value for ref in activations if (value := ref()) is not None]
    assert len(activations) > 100 and arrays["loss"].shape == (4,)
    assert {id(value) for value in alive} <= set(map(id, inputs[0])), [v.shape for v in alive]


def test_later_batches_need_no_more_memory_than_early_ones(work):
    with untouched(work.subject.model):
        run = bench.probe(work)
        kept, peaks = [], []
        for _ in range(12):
            peaks.append(bench.peak_bytes(lambda: kept.append(run()["loss"]), CPU))
    assert len(kept) == 12
    assert peaks[2] == peaks[11], peaks


def test_a_failed_batch_is_dead_too(work):
    refs = []

    def bad_loss(output, ids, levels):
        refs.append(weakref.ref(output))
        raise KeyError("mine")

    with untouched(work.subject.model):
        try:
            bench.probe(replace(work, loss=bad_loss))()
        except KeyError:
            pass
    gc.collect()
    assert refs and refs[0]() is None
    assert not any(module._forward_pre_hooks for module in work.subject.model.modules())
