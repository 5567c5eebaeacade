"""Interventions against the slow transcription with the same gates at zero."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dar_probe.errors import UsageError
from dar_probe.models import sit_family
from dar_probe.probe import ablation, nnsight_engine
from dar_probe.probe.ablation import Intervention, kinds_for
from dar_probe.probe.measure import hooks, measure
from dar_probe.probe.recorder import untouched
from tests.helpers import reference, tiny

LEVELS = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
FROZEN_AT = 0.5


def setting(options):
    model = tiny.model(depth=3, **options)
    data, problem = tiny.problem(model, samples=3)
    return model, sit_family.subject(model), data, problem


def changes_of(subject, problem, data, *, pairs=8):
    with untouched(subject.model):
        gate = measure(subject, problem.batch, problem.loss, data.ids, LEVELS)["gate"]
    kinds = kinds_for(subject)
    return ablation.choose(subject, gate.numpy()[None], kinds=kinds, pairs=pairs, seed=0)


def run(subject, problem, data, changes, engine=hooks):
    with untouched(subject.model):
        found = ablation.measure(
            subject, problem.batch, problem.loss, data.ids, LEVELS, changes,
            frozen_at=FROZEN_AT, engine=engine,
        )  # fmt: skip
    return {name: value.numpy() for name, value in found.items()}


def slow_losses(model, problem, data, options, levels, gates=None, replaced=None):
    (x, t, y), _ = problem.batch(data.ids, levels)
    out, record = reference.forward(
        model.state_dict(), x, t, y, heads=2, patch=2, gates=gates, replaced=replaced, **options
    )
    return problem.loss(out, data.ids, levels), record


@pytest.mark.parametrize("options", tiny.ROUTINGS, ids=tiny.name_of)
def test_interventions_equal_the_transcription(options):
    model, subject, data, problem = setting(options)
    changes = changes_of(subject, problem, data)
    assert {change.kind for change in changes} == {
        "gate",
        "source",
        "block",
        *(("uniform", "frozen") if subject.routes else ()),
    }
    found = run(subject, problem, data, changes)
    readers = len(subject.readers)
    with torch.no_grad():
        plain, record = slow_losses(model, problem, data, options, LEVELS)
        there = torch.full_like(LEVELS, FROZEN_AT)
        _, other = slow_losses(model, problem, data, options, there)
        for at, change in enumerate(changes):
            gates = torch.ones(3, readers, readers, dtype=torch.float64)
            for l, i in change.gates:
                gates[:, l, i] = 0
            replaced = None
            if change.router is not None:
                frozen = other["weights"][change.router][1]
                uniform = torch.full_like(frozen, 1 / frozen.shape[-1])
                replaced = {change.router + 1: uniform if change.kind == "uniform" else frozen}
            loss, _ = slow_losses(model, problem, data, options, LEVELS, gates, replaced)
            # Measured: 5e-13 of the loss at most.
            np.testing.assert_allclose(
                found["gate_ablated"][:, at], (loss - plain).numpy(), atol=5e-12 * loss.max()
            )


def test_the_largest_gates_are_those_of_the_largest_mean_square():
    """A gate whose sign alternates over samples has no mean, and is a large gate all the same."""
    _, subject, _, _ = setting({"routing": "residual"})
    size = len(subject.readers)
    gate = np.full((2, 2, size, size), np.nan)
    for l, offered in enumerate(subject.offered):
        gate[:, :, l, list(offered)] = 1e-3
    gate[:, :, 4, 1] = np.array([[5.0, -5.0], [-5.0, 5.0]])
    gate[:, :, 5, 2] = np.array([[0.0, 0.0], [0.0, 8.0]])  # root mean square 4
    gate[:, :, 3, 1] = 3.0  # the largest mean
    gate[:, :, 0, 0] = 9.0  # the only source of its reader: nothing is left without it
    for pairs, expected in ((2, {(4, 1)}), (4, {(4, 1), (5, 2)}), (5, {(4, 1), (5, 2), (3, 1)})):
        found = ablation.choose(subject, gate, kinds=["gate"], pairs=pairs, seed=0)
        chosen = [next(iter(change.gates)) for change in found]
        assert len(chosen) == len(set(chosen)) == pairs
        assert set(chosen[: len(expected)]) == expected
        assert (0, 0) not in chosen


@pytest.mark.parametrize("options", tiny.ROUTINGS, ids=tiny.name_of)
def test_predictions_are_the_slope_of_the_true_effect(options):
    """Gates at 1 - e change the loss by e times the prediction, by central differences."""
    model, subject, data, problem = setting(options)
    changes = changes_of(subject, problem, data, pairs=4)
    found = run(subject, problem, data, changes)
    readers, step = len(subject.readers), 1e-6
    with torch.no_grad():
        _, record = slow_losses(model, problem, data, options, LEVELS)
        there = torch.full_like(LEVELS, FROZEN_AT)
        _, other = slow_losses(model, problem, data, options, there)
        for at, change in enumerate(changes):
            sides = []
            for side in (step, -step):
                gates = torch.ones(3, readers, readers, dtype=torch.float64)
                for l, i in change.gates:
                    gates[:, l, i] -= side
                replaced = None
                if change.router is not None:
                    now, then = (r["weights"][change.router][1] for r in (record, other))
                    if change.kind == "uniform":
                        then = torch.full_like(now, 1 / now.shape[-1])
                    replaced = {change.router + 1: now + side * (then - now)}
                sides.append(slow_losses(model, problem, data, options, LEVELS, gates, replaced)[0])
            slope = (sides[0] - sides[1]).numpy() / (2 * step)
            scale = np.abs(found["gate_linear"]).max()
            # Measured: 2e-8 of the largest prediction at most.
            np.testing.assert_allclose(
                found["gate_linear"][:, at], slope, rtol=0, atol=1e-7 * scale
            )


@pytest.mark.parametrize("options", tiny.ROUTINGS[:2], ids=tiny.name_of)
def test_both_engines_intervene_alike(options):
    _, subject, data, problem = setting(options)
    changes = changes_of(subject, problem, data)
    one, other = (
        run(subject, problem, data, changes, engine=engine)
        for engine in (hooks, nnsight_engine.forward)
    )
    for name, value in one.items():
        assert np.array_equal(value, other[name]), name


def test_writes_known_as_differences_of_reads_give_the_same_effects():
    _, subject, data, problem = setting({"routing": "residual"})
    changes = changes_of(subject, problem, data)
    expected = run(subject, problem, data, changes)
    again = run(replace(subject, writers=None), problem, data, changes)
    for name, value in expected.items():
        scale = np.abs(value).max()
        # Measured: 1e-15 of the largest.
        np.testing.assert_allclose(again[name], value, rtol=0, atol=1e-14 * scale, err_msg=name)


def test_half_of_the_gates_are_the_largest_and_none_comes_twice():
    _, subject, data, problem = setting({"routing": "residual"})
    with untouched(subject.model):
        gate = measure(subject, problem.batch, problem.loss, data.ids, LEVELS)["gate"].numpy()
    chosen = ablation.choose(subject, gate[None], kinds=["gate"], pairs=6, seed=3)
    pairs = [next(iter(change.gates)) for change in chosen]
    assert len(set(pairs)) == 6
    size = np.nan_to_num(np.square(gate).mean(0))
    size[0] = 0  # the first reader has one source, whose gate is zero by the conservation law
    top = sorted(np.argwhere(size >= np.sort(size.ravel())[-3]).tolist())
    assert sorted(map(list, pairs[:3])) == top


def test_skipping_a_block_leaves_its_own_readers_alone():
    _, subject, data, problem = setting({"routing": "residual"})
    block = next(c for c in changes_of(subject, problem, data) if c.name == "without block 2")
    assert block.gates == {(l, i) for l in (4, 5, 6) for i in (3, 4)}


def test_what_cannot_be_done_is_refused():
    _, subject, *_ = setting({"routing": "residual"})
    gate = np.zeros((1, 1, 7, 7))
    with pytest.raises(UsageError, match="no router"):
        ablation.choose(subject, gate, kinds=["uniform"], pairs=0, seed=0)
    with pytest.raises(UsageError, match="unknown intervention 'gates'"):
        ablation.choose(subject, gate, kinds=["gates"], pairs=0, seed=0)
    for reader, source in ((0, 1), (7, 0), (-1, 0), (3, 9)):
        with pytest.raises(UsageError, match="not offered"):
            ablation.single(subject, reader, source)
    assert ablation.single(subject, 6, 0) == Intervention(
        kind="gate", name="head without embedding", gates=frozenset({(6, 0)})
    )


@pytest.mark.parametrize("options", tiny.ROUTINGS[:2], ids=tiny.name_of)
def test_every_offered_gate_can_be_taken_away_and_no_other(options):
    _, subject, *_ = setting(options)
    for reader in range(len(subject.readers)):
        for source in range(len(subject.sources)):
            if source in subject.offered[reader]:
                found = ablation.single(subject, reader, source)
                assert found.gates == {(reader, source)} and found.kind == "gate"
            else:
                with pytest.raises(UsageError, match="not offered"):
                    ablation.single(subject, reader, source)


def test_what_a_fusion_does_to_the_stream_is_a_source_like_others():
    """Every pair of a model with long skips, taken away by hooks on the model itself."""
    model = tiny.model(depth=4, routing="uvit")
    data, problem = tiny.problem(model, samples=3)
    subject = sit_family.subject(model)
    kinds = [source.kind for source in subject.sources]
    assert kinds.count("fusion") == 2
    pairs = [
        (l, i) for l, offered in enumerate(subject.offered) for i in offered if len(offered) > 1
    ]
    changes = [ablation.single(subject, l, i) for l, i in pairs]
    found = run(subject, problem, data, changes)["gate_ablated"]
    (x, t, y), _ = problem.batch(data.ids, LEVELS)
    stream, taken = model.stream, {}

    def keep(name):
        return lambda module, args, output: taken.update({name: output.clone()})

    def difference(name):
        return lambda module, args, output: taken.update({name: output - args[0]})

    def loss(change):
        """Sources are named in their order: writes by sublayer, fusions between them."""
        handles, writers, fusions = [], iter(stream.writers), iter(stream.fusions)
        for i, kind in enumerate(kinds):
            module = next(fusions if kind == "fusion" else writers)
            act = difference(i) if kind == "fusion" else keep(i)
            handles.append(module.register_forward_hook(act))
        if change is not None:
            ((l, i),) = change.gates
            handles.append(
                stream.readers[l].register_forward_hook(lambda m, a, output: output - taken[i])
            )
        try:
            with torch.no_grad():
                return problem.loss(model(x, t, y), data.ids, LEVELS).numpy()
        finally:
            for handle in handles:
                handle.remove()

    plain = loss(None)
    for at, change in enumerate(changes):
        np.testing.assert_allclose(
            found[:, at], loss(change) - plain, atol=1e-11 * plain.max(), err_msg=change.name
        )
