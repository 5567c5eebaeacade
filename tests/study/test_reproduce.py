"""The study: its plan, its records, what they say, and a run that is cut off."""

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dar_probe.cli import app
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.files import atomic
from dar_probe.models.sit import SiT
from dar_probe.reports.draw import matplotlib
from dar_probe.reports.figures import study_curves, study_ranking
from dar_probe.reports.pages import study as study_page
from dar_probe.results.intervals import Interval, student
from dar_probe.results.study import aggregate, claims, record, summary
from dar_probe.results.study.record import Record
from dar_probe.routing.schemes import known
from dar_probe.study import plan, publish
from dar_probe.study import run as study
from dar_probe.study.reproduce import reproduce
from dar_probe.training.config import TrainConfig
from dar_probe.training.loop import Run as Training
from tests.helpers.studies import everything, finished


def test_every_scheme_is_in_the_plan_and_every_run_makes_a_model():
    planned = plan.runs(plan.scale_of("digits"))
    assert {run.config.routing for run in planned} == set(known())
    assert planned[0].name == "residual-seed0" and planned[0].config == planned[0].reference
    assert len({run.name for run in planned}) == len(planned)
    thrice = {
        "residual", "attnres", "dar-static", "dar-static+t", "dar-dynamic", "denseformer",
        "hc-dynamic",
    }  # fmt: skip
    assert {run.entry.name for run in planned if run.seed == 2} == thrice
    for run in planned:
        assert run.reference.routing == "residual" and run.reference.depth == run.config.depth
        with torch.device("meta"):
            SiT(run.config.model(in_channels=1, input_size=8, num_classes=10))


def test_the_wider_residual_model_is_as_large_as_dynamic_dar():
    runs = {run.entry.name: run for run in plan.runs(plan.scale_of("digits")) if not run.seed}
    sizes = [
        sum(p.numel() for p in SiT(
            runs[name].config.model(in_channels=1, input_size=8, num_classes=10)
        ).parameters())
        for name in ("residual-wide", "dar-dynamic")
    ]  # fmt: skip
    assert sizes[0] == pytest.approx(sizes[1], rel=0.03)


def test_what_a_plan_refuses():
    for match, call in {
        "no run called 'dense'": lambda: plan.runs(plan.scale_of("smoke"), only=["dense"]),
        "unknown scale 'huge'": lambda: plan.scale_of("huge"),
        "needs data": lambda: plan.runs(plan.scale_of("imagenet")),
    }.items():
        with pytest.raises(UsageError, match=match):
            call()
    only = plan.runs(plan.scale_of("imagenet"), only=["dar-static"], data="latents:x.npz")
    assert [run.config.data for run in only] == ["latents:x.npz"]


def test_a_record_is_read_as_it_was_written(tmp_path):
    one = finished(flops=None)
    one.write(tmp_path / "one.json")
    assert record.read(tmp_path / "one.json") == one


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.pop("cost"), "has not the keys"),
        (lambda d: d.update(extra=1), "has not the keys"),
        (lambda d: d.update(format="dar-probe-run-0"), "its format is 'dar-probe-run-0'"),
        (lambda d: d.update(seed=True), "seed has the wrong type"),
        (lambda d: d.update(steps="100"), "steps is no list"),
        (lambda d: d.update(steps=[100, 100, 200, 300]), "lists have not one length"),
        (lambda d: d.update(losses=[1.0]), "lists have not one length"),
        (lambda d: d.update(losses=[1.0, 1.0, 1.0, None]), "losses has the wrong type"),
        (lambda d: d["cost"].update(ratio=0), "lists have not one length"),
        (lambda d: d["end"].pop("inflation"), "end has not the keys"),
        (lambda d: d["blocks"].update(rms=[1.0]), "lists have not one length"),
        (lambda d: d["routes"][1].pop(), "lists have not one length"),
        (lambda d: d["quality"][0].update(frechet="2"), "frechet has the wrong type"),
    ],
)
def test_a_record_that_was_tampered_with_is_refused(tmp_path, change, match):
    path = tmp_path / "one.json"
    finished().write(path)
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match=match):
        record.read(path)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"\xff", b"NaN", b"[" * 100_000, b" " * (record.LIMIT + 1), b"1e999"],
    ids=["empty", "cut", "list", "bytes", "nan", "deep", "large", "infinite"],
)
def test_what_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "one.json").write_bytes(text)
    with pytest.raises(CheckpointError, match="no finished run"):
        record.read(tmp_path / "one.json")


def test_an_infinite_number_is_none(tmp_path):
    path = tmp_path / "one.json"
    finished().write(path)
    path.write_text(path.read_text().replace("0.45", "1e999"))
    with pytest.raises(CheckpointError, match="losses is not finite"):
        record.read(path)


def test_how_much_sooner_and_at_equal_time():
    # Its loss meets the reference's last, 0.45, half way between steps 200 and 300.
    fast = finished("dar-dynamic", losses=(0.7, 0.5, 0.4, 0.3), ratio=1.6)
    line = aggregate.Results([finished(), fast]).lines["dar-dynamic"]
    assert line.factors == [pytest.approx(400 / 250)]
    assert line.at_equal_time.value == pytest.approx(0.45)  # after 400 / 1.6 = 250 steps
    slow = finished("dar-dynamic", losses=(0.9, 0.8, 0.7, 0.6))
    assert aggregate.Results([finished(), slow]).lines["dar-dynamic"].factors == [0.0]
    at_once = finished("dar-dynamic", losses=(0.4, 0.4, 0.4, 0.4))
    assert aggregate.Results([finished(), at_once]).lines["dar-dynamic"].factors == [4.0]


def test_differences_are_paired_over_seeds():
    shifts = (0.0, 0.3, -0.2)  # what a seed does to both alike
    base = np.array((0.8, 0.6, 0.5, 0.45))
    plain = [finished(seed=s, losses=base + d) for s, d in enumerate(shifts)]
    gains = (0.02, 0.03, 0.04)
    better = [
        finished("dar-dynamic", s, losses=base + d - g)
        for s, (d, g) in enumerate(zip(shifts, gains, strict=True))
    ]
    found = aggregate.Results([*plain, *better]).lines["dar-dynamic"].gain(lambda r: r.losses[-1])
    assert found.value == pytest.approx(0.03)
    half = student(2) * 0.01 / math.sqrt(3)
    assert (found.low, found.high) == (pytest.approx(0.03 - half), pytest.approx(0.03 + half))


def status_of(records, start):
    (found,) = [c for c in claims.judge(aggregate.Results(records)) if c.text.startswith(start)]
    return found.status


def test_a_claim_is_confirmed_by_its_interval_alone():
    def both(better, count=3):
        return [
            one
            for seed in range(count)
            for one in (
                finished(seed=seed),
                finished("dar-dynamic", seed, losses=(0.8, 0.6, 0.5, 0.45 - better[seed])),
            )
        ]

    start = "At equal steps DAR's loss"
    assert status_of(both([0.03, 0.031, 0.029]), start) == "confirmed"
    assert status_of(both([0.03, -0.03, 0.01]), start) == "not confirmed"
    assert status_of(both([-0.03, -0.031, -0.029]), start) == "not confirmed"
    assert status_of(both([0.03], 1), start) == "undecided"
    assert status_of([finished()], start) == "undecided"
    assert status_of([finished()], "DAR can be added") == "not testable"


def test_a_gain_says_which_way_it_goes():
    gain = Interval(0.5, 0.25, 0.75, 3)
    assert claims.apart(gain) == "lower by 0.5 [0.25, 0.75]"
    assert claims.apart(-gain) == "higher by 0.5 [0.25, 0.75]"
    assert claims.apart(Interval(math.nan, math.nan, math.nan, 1)) == "not measured"


def test_the_chunk_size_is_judged_over_the_seeds_that_both_have():
    def sized(seeds):
        four = [finished("dar-static+t", seed, config=size(4)) for seed in range(3)]
        worse = (0.8, 0.6, 0.5, 0.46)
        return four + [
            finished(f"dar-static+t-S{s}", seed, group="chunks", config=size(s), losses=worse)
            for s in (1, 12)
            for seed in range(seeds)
        ]

    def size(chunk_size):
        return {**finished("dar-static+t").config, "chunk_size": chunk_size}

    assert status_of(sized(1), "Chunks of S = 4") == "undecided"
    assert status_of(sized(3), "Chunks of S = 4") == "confirmed"


def test_what_varies_dar_is_seen_beside_the_same_seeds_of_it():
    config = {**finished("dar-static+t").config, "chunk_size": 12}
    records = [
        *(finished("dar-static+t", seed, losses=(0.8, 0.6, 0.5, 0.4 - seed)) for seed in range(3)),
        finished("dar-static+t-S12", 1, group="chunks", config=config),
    ]
    found = aggregate.Results(records)
    assert [line.loss.value for line in found.varied("chunks")] == [-0.6, 0.45]
    assert found.varied("ablations") == []
    assert aggregate.Results(records[::2] + records[3:]).varied("chunks") == []  # seed 1 is missing


def test_one_seed_stands_beside_single_seeds_alone():
    """No table and no curve shows one run beside a mean over other seeds."""
    plain = [finished(seed=seed, losses=(0.8, 0.6, 0.5, 0.45 - 0.1 * seed)) for seed in range(3)]
    dar = [finished("dar-dynamic", s, losses=(0.8, 0.6, 0.5, 0.46 - 0.1 * s)) for s in range(3)]
    found = aggregate.Results([*plain, *dar, finished("denseformer"), finished("mhc")])
    assert [(line.name, line.seeds) for line in found.main] == [
        ("dar-dynamic", 3), ("residual", 3),
    ]  # fmt: skip
    assert [(line.name, line.seeds) for line in found.single] == [
        ("residual", 1), ("denseformer", 1), ("mhc", 1),
    ]  # fmt: skip
    assert found.single[0].loss.value == 0.45  # its own seed's, not the mean of three
    text = study_page.render(found, study_curves.drawings(found))
    tables = {
        name: text.split(f'id="table-{name}"')[1].split("</table>")[0]
        for name in ("schemes", "single", "symptoms-schemes", "symptoms-single")
    }
    for name, table in tables.items():
        assert ("<bdi>MHC" in table) == name.endswith("single"), name
        assert ("<bdi>DAR-DYNAMIC" in table) == name.endswith("schemes"), name
        assert "<bdi>RESIDUAL" in table, name
    (others,) = [one for one in study_curves.drawings(found) if one.name == "others-1"]
    curves = others.figure.panels[0].curves
    assert [curve.value[-1] for curve in curves] == [0.45, 0.45, 0.45]
    assert not any(np.isfinite(curve.low).any() for curve in curves)


def test_intervals_of_symptoms_lie_where_symptoms_can():
    """Gradient decay is positive and a cosine at most 1, however far seeds lie apart."""
    rows = [(0.1, 0.99), (0.2, 0.9999), (0.9, 0.91)]
    records = [finished(seed=seed) for seed in range(3)]
    for one, (decay, cosine) in zip(records, rows, strict=True):
        one.end["gradient_decay"]["value"] = decay
        one.end["redundancy"]["value"] = cosine
    line = aggregate.Results(records).lines["residual"]
    decay, cosine = (claims.of_symptom(line, name) for name in ("gradient_decay", "redundancy"))
    assert 0 < decay.low < decay.value < decay.high
    assert decay.value == pytest.approx((0.1 * 0.2 * 0.9) ** (1 / 3))
    assert cosine.low < cosine.value < cosine.high < 1


def test_the_sentences_pair_seeds():
    """A scheme of one seed is not held against the mean of another's three."""
    plain = [finished(seed=seed, losses=(0.8, 0.6, 0.5, 0.45 - 0.1 * seed)) for seed in range(3)]
    dense = finished("denseformer", losses=(0.8, 0.6, 0.5, 0.44))
    dar = [finished("dar-dynamic", s, losses=(0.8, 0.6, 0.5, 0.46 - 0.1 * s)) for s in range(3)]
    told = summary.sentences(aggregate.Results([*plain, dense, *dar]))
    assert told[0] == (
        "Validation loss after 400 steps: residual 0.3402 [0.1635, 0.7078]; DENSEFORMER lower by "
        "0.01 (one seed); DAR-DYNAMIC higher by 0.01 [0.01, 0.01]."
    )
    first, second = summary.plain(aggregate.Results([*plain, dense], ["residual"]))["lines"]
    assert first["loss_difference"] is None
    assert second["loss_difference"]["value"] == pytest.approx(-0.01)


def test_nine_times_fewer_steps_confirm_the_paper():
    def factor(steps):
        return [
            one
            for seed in range(3)
            for one in (
                finished(seed=seed, steps=[10, 1000], losses=[0.8, 0.45]),
                finished("dar-dynamic", seed, steps=[steps, 1000], losses=[0.45, 0.4]),
            )
        ]

    assert status_of(factor(100), "DAR reaches") == "confirmed"
    assert status_of(factor(200), "DAR reaches") == "not confirmed"


@pytest.mark.parametrize(("share", "best"), [(0.4, 4.90), (0.5, 4.32), (0.6, 3.74), (0.7, 3.14)])
def test_the_cost_model_of_the_paper(share, best):
    assert aggregate.optimal_chunk(56, share) == pytest.approx(best, abs=0.005)
    sizes = np.linspace(1, 56, 5501)
    costs = [aggregate.chunk_cost(56, size, share) for size in sizes]
    assert sizes[np.argmin(costs)] == pytest.approx(best, abs=0.01)


def test_seconds_are_those_of_the_lines_own_reference():
    slow = {**finished().cost, "reference_seconds": 0.5, "ratio": 2.0, "low": 1.5, "high": 3.0}
    deep = [finished(n, group="deep", cost=slow) for n in ("residual-28", "dar-dynamic-28")]
    found = aggregate.Results([finished(), *deep])
    assert found.reference_seconds(found.of("schemes")) == 0.2
    assert found.reference_seconds(found.of("deep")) == 0.5
    routed, plain = (found.lines[name].price for name in ("dar-dynamic-28", "residual-28"))
    assert routed == Interval(2.0, 1.5, 3.0, 1) and plain.value == 1.0


def test_magnitudes_over_depth_stay_positive():
    blocks = [{**finished().blocks, "rms": [scale, 2.0]} for scale in (0.001, 1.0, 1000.0)]
    records = [finished(seed=seed, blocks=one) for seed, one in enumerate(blocks)]
    (depth,) = [d for d in study_curves.drawings(aggregate.Results(records)) if d.name == "depth"]
    (curve,) = depth.figure.panels[0].curves
    assert curve.value == pytest.approx([1.0, 2.0])
    half = student(2) * math.log(1000) / math.sqrt(3)
    assert curve.low == pytest.approx([math.exp(-half), 2.0])
    assert curve.high == pytest.approx([math.exp(half), 2.0])


def test_runs_that_do_not_belong_together():
    with pytest.raises(UsageError, match="no finished run yet"):
        aggregate.Results([])
    with pytest.raises(UsageError, match="scales digits and smoke"):
        aggregate.Results([finished(), finished(seed=1, scale="smoke")])
    with pytest.raises(UsageError, match="different steps"):
        aggregate.Results([finished(), finished(seed=1, steps=[1, 2, 3, 4])])


def test_a_page_of_everything_keeps_names_as_text(tmp_path):
    found = aggregate.Results(everything())
    drawings = study_curves.drawings(found)
    assert [d.name for d in drawings] == ["loss", "frechet", "depth", "others-1", "deep", "chunks"]
    text = study_page.render(found, drawings)
    assert text == study_page.render(found, drawings)
    assert "<img src=x" not in text and "&lt;img src=x" in text
    for word in ("Times fewer steps", "not testable", "S* = ", "DAR-DYNAMIC", "never"):
        assert word in text
    for drawing in (*drawings, *study_curves.drawings(found, width="one")):
        assert len(matplotlib.draw(drawing.figure).axes) == len(drawing.figure.panels)
    ranking = study_ranking.ranking(found)
    gaps = [value.value for value in ranking.columns[0].values]
    assert gaps == sorted(gaps) and gaps[ranking.names.index("RESIDUAL")] == 0
    assert len(matplotlib.draw(study_ranking.figure(ranking)).axes) == len(ranking.columns) == 3
    json.dumps(summary.plain(found), allow_nan=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One residual run at the smallest scale."""
    out = tmp_path_factory.mktemp("study")
    (run,) = plan.runs(plan.scale_of("smoke"), only=["denseformer"])
    return out, run, study.perform(run, out)


def test_a_run_leaves_a_small_record_and_nothing_else(trained):
    out, run, found = trained
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["denseformer-seed0.json"]
    path = study.record_path(out, run)
    assert path.stat().st_size < 50_000 and record.read(path) == found
    assert found.steps == [6, 12, 18, 24] and [q["step"] for q in found.quality] == [12, 24]
    assert found.parameters == sum(
        p.numel() for p in SiT(run.config.model(in_channels=1, input_size=8, num_classes=10))
        .parameters() if p.requires_grad
    )  # fmt: skip
    assert [len(row) for row in found.routes] == [1, 2, 3, 4, 5]
    assert found.flops and len(found.blocks["rms"]) == run.config.depth
    assert not study.pending([run], out)


def test_a_run_that_is_cut_off_goes_on_and_ends_the_same(trained, tmp_path):
    _, run, whole_run = trained

    def cut(_, progress):
        if progress.step == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.perform(run, tmp_path, on_step=cut)
    assert study.pending([run], tmp_path) == [run]
    seen = []
    found = study.perform(run, tmp_path, on_step=lambda _, p: seen.append(p.step))
    assert seen[0] == 13  # behind the checkpoint of step 12
    for name in ("losses", "quality", "start", "end", "blocks", "parameters"):
        assert getattr(found, name) == getattr(whole_run, name)


def test_a_run_that_another_process_does_is_left_to_it(trained, tmp_path):
    _, run, _ = trained
    lock = atomic.hold(tmp_path / "work" / run.name, tmp_path)
    try:
        assert study.perform(run, tmp_path) is None
    finally:
        os.close(lock)


def test_a_run_that_another_process_has_finished_leaves_no_folder(trained, tmp_path):
    _, run, found = trained
    path = study.record_path(tmp_path, run)
    path.parent.mkdir()
    found.write(path)
    assert study.perform(run, tmp_path) == found
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"]


def test_only_the_price_is_measured_again(trained, tmp_path):
    _, run, found = trained
    path = study.record_path(tmp_path, run)
    path.parent.mkdir()
    marked = replace(found, cost={**found.cost, "seconds": 1e9}, flops=None, version="of old")
    marked.write(path)
    again = study.reprice(run, tmp_path)
    assert record.read(path) == again
    assert again.cost["seconds"] < 1e9 and again.flops == found.flops
    assert replace(again, cost=marked.cost, flops=None) == marked


def test_prices_train_nothing(trained, tmp_path):
    _, run, found = trained
    path = study.record_path(tmp_path, run)
    path.parent.mkdir()
    found.write(path)
    arguments = ["reproduce", "--scale", "smoke", "--out", str(tmp_path), "--prices"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[0] == "Steps of denseformer-seed0 (1 of 1)"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert replace(record.read(path), cost=found.cost) == found


def test_python_has_the_study_that_the_command_has(trained, tmp_path):
    _, run, found = trained
    events = []
    settings = {"scale": "smoke", "only": ["denseformer", "attnres"], "device": "cpu"}
    lock = atomic.hold(tmp_path / "work" / "denseformer-seed0", tmp_path)
    try:
        told = reproduce(tmp_path, **settings, on_event=events.append)
    finally:
        os.close(lock)
    assert told == json.loads((tmp_path / "reproduce.json").read_text())
    assert [line["name"] for line in told["lines"]] == ["attnres"]
    steps = [event.step.step for event in events if event.kind == "step"]
    assert steps == list(range(1, 25)) and events[0].kind == "run"
    assert [(e.kind, e.run.name, e.number, e.count) for e in (events[0], events[-1])] == [
        ("run", "attnres-seed0", 1, 2), ("busy", "denseformer-seed0", 2, 2),
    ]  # fmt: skip
    found.write(study.record_path(tmp_path, run))
    again = reproduce(tmp_path, **settings, runs=0, on_event=lambda _: pytest.fail("a run"))
    assert sorted(line["name"] for line in again["lines"]) == ["attnres", "denseformer"]
    with pytest.raises(UsageError, match="runs is -1"):
        reproduce(tmp_path, **settings, runs=-1)


def test_a_run_of_other_settings_is_not_taken_for_this_one(trained, tmp_path):
    _, run, found = trained
    path = study.record_path(tmp_path, run)
    path.parent.mkdir()
    Record(**{**vars(found), "config": {**found.config, "lr": 0.5}}).write(path)
    with pytest.raises(UsageError, match="lr is 0.5 there and 0.001 here"):
        study.pending([run], tmp_path)


def test_a_page_is_published_of_what_is_there(trained, tmp_path):
    out, run, found = trained
    with pytest.raises(UsageError, match="no finished run"):
        publish.publish(tmp_path)
    path = study.record_path(tmp_path, run)
    path.parent.mkdir()
    found.write(path)
    told = publish.publish(tmp_path)
    assert told == json.loads((tmp_path / "reproduce.json").read_text())
    assert (tmp_path / "figures" / "loss.png").read_bytes()[:4] == b"\x89PNG"
    path.rename(path.with_name("residual-seed0.json"))
    with pytest.raises(CheckpointError, match="is the run denseformer, seed 0"):
        publish.publish(tmp_path)


def test_the_routing_may_learn_at_a_rate_of_its_own(tmp_path):
    settings = {"depth": 1, "width": 8, "routing": "dar", "chunk_size": 2, "batch_size": 4}
    run = Training(TrainConfig(**settings, routing_lr=10.0, warmup=1), tmp_path, device="cpu")
    run.step(1)
    slow, fast = run.optimiser.param_groups
    assert fast["lr"] == pytest.approx(10 * slow["lr"])
    own = {id(p) for p in run.model.stream.parameters()}
    assert {id(p) for p in fast["params"]} == own
    assert {id(p) for p in slow["params"]} & own == set()
    alone = Training(TrainConfig(**settings), tmp_path, device="cpu")
    assert len(alone.optimiser.param_groups) == 1
    with pytest.raises(UsageError, match="routing_lr is 0"):
        TrainConfig(routing_lr=0.0)


def test_the_timestep_embedder_starts_at_zero_unless_asked(tmp_path):
    settings = {"depth": 1, "width": 8, "routing": "dar", "chunk_size": 2, "batch_size": 4}
    for zero in (True, False):
        run = Training(TrainConfig(**settings, zero_time=zero), tmp_path, device="cpu")
        last = run.model.get_submodule("t_embedder.mlp.2")
        assert bool(last.weight.any()) is not zero
