"""Faults planted in real models are found by the verdict, from the forward pass to the sentence."""

import numpy as np
import pytest
import torch

import dar_probe as dp
from tests.helpers import tiny

RESIDUAL = {"routing": "residual"}
STATIC = {"routing": "dar", "query": "static", "chunk_size": 2}


def model(options, depth=8):
    return tiny.model(depth=depth, dtype=torch.float32, **options)


def scale_writes(model, factor):
    """Multiply everything that block k (from 1) writes by factor(k)."""
    with torch.no_grad():
        for k, block in enumerate(model.blocks, 1):
            for linear in (block.attn.proj, block.mlp.fc2):
                linear.weight.mul_(factor(k))
                linear.bias.mul_(factor(k))
    return model


def audit(model):
    _, problem = tiny.problem(model, samples=6, dtype=torch.float32)
    analysis = dp.audit(
        model, batch=problem.batch, loss=problem.loss, samples=6, noise_levels=[0.2, 0.8]
    )
    return analysis, {finding.name: finding for finding in analysis.verdict.findings}


@pytest.mark.parametrize("options", [RESIDUAL, STATIC], ids=tiny.name_of)
def test_without_a_fault_nothing_fails(options):
    analysis, findings = audit(model(options))
    assert analysis.verdict.status in ("pass", "warn")
    assert not {"dead_blocks", "idle_blocks"} & set(findings)


def test_writes_that_grow_are_inflation():
    analysis, findings = audit(scale_writes(model(RESIDUAL), lambda k: 2.0 ** (k - 1)))
    assert analysis.verdict.status == "fail" and findings["inflation"].status == "fail"
    # Writes double 7 times and add up like independent vectors: 2^7 and a little more.
    assert 100 < findings["inflation"].metric.value < 300
    assert findings["redundancy"].status == "pass"
    assert analysis.verdict.sentence.startswith("PreNorm dilution: inflation (")


@pytest.mark.parametrize("options", [RESIDUAL, STATIC], ids=tiny.name_of)
def test_dead_blocks_are_named(options):
    analysis, findings = audit(scale_writes(model(options), lambda k: float(k not in (3, 6))))
    ds = analysis.dataset
    dead = np.isin(ds["source_block"].values[1:], (3, 6))
    assert (ds["write_rms"].values[..., dead] == 0).all()
    assert (ds["write_rms"].values[..., ~dead] > 0).all()
    if options is RESIDUAL:
        # A cosine of equal vectors, each norm rounded once. Measured: 6e-8 below 1.
        assert ds["cosine"].values[..., [3, 6]].min() > 1 - 6e-7
    assert findings["dead_blocks"].sentence.startswith("Nothing is written by blocks 3, 6 (")
    assert findings["dead_blocks"].sentence in analysis.verdict.sentence
    assert analysis.verdict.status == "warn" and "idle_blocks" not in findings


def test_an_idle_deep_half_is_redundancy():
    analysis, findings = audit(scale_writes(model(RESIDUAL), lambda k: 0.01 if k > 4 else 1.0))
    assert analysis.verdict.status == "fail" and findings["redundancy"].status == "fail"
    assert "blocks 5-8 " in findings["idle_blocks"].sentence
    assert findings["inflation"].status == "pass"


def test_a_one_hot_router_is_selective():
    planted = model(STATIC)
    with torch.no_grad():
        planted.pos_embed[..., 0] = 1000  # every token of the embedding has the same key
        for reader in planted.stream.readers:
            reader.norm.weight.fill_(1)
            reader.query.weight.zero_()
            reader.query.weight[0] = 1000
    analysis, findings = audit(planted)
    assert findings["selectivity"].metric.value > 0.99
    assert "uses 1.0 of " in findings["selectivity"].sentence
    assert np.nanmean(analysis.dataset["route"].values[..., 0]) > 0.99


def test_a_uniform_router_is_not_selective():
    planted = model(STATIC)
    with torch.no_grad():
        for reader in planted.stream.readers:
            reader.query.weight.zero_()
    analysis, findings = audit(planted)
    # Measured: 0 and 3e-7, in float32.
    assert abs(findings["selectivity"].metric.value) < 3e-7
    assert findings["selectivity_shift"].metric.value == 0
    counts = np.isfinite(analysis.dataset["route"].values[0, 0]).sum(-1)
    np.testing.assert_allclose(
        analysis.dataset["route_entropy"].values,
        np.broadcast_to(np.log(counts), analysis.dataset["route_entropy"].shape),
        atol=1e-6,
    )


@pytest.mark.parametrize("options", [RESIDUAL, *tiny.ROUTINGS[1:4]], ids=tiny.name_of)
def test_at_initialisation_a_model_is_untrained(options):
    fresh = dp.build(
        "SiT-S/2", depth=3, width=32, heads=2, input_size=4, in_channels=1, num_classes=10,
        **options,
    )  # fmt: skip
    analysis, findings = audit(fresh)
    assert analysis.verdict.status == "untrained"
    assert analysis.verdict.sentence.startswith("Untrained: ")
    assert findings["redundancy"].status == "untrained", "cosines of 1 say nothing"
    assert not {"dead_blocks", "idle_blocks"} & set(findings)
