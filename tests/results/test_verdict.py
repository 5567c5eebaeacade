import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from dar_probe.errors import UsageError
from dar_probe.results import fail_rule as rules
from dar_probe.results import metrics, verdict
from dar_probe.results.metrics import DEFINITIONS, Metric
from dar_probe.results.verdict import Finding, Thresholds, Verdict
from tests.helpers import synthetic

NAN = float("nan")
GOOD = {"blocks": 12, "spread": 0.01, "inflation": 1.5, "decay": 1.5, "cosine": 0.5}


def judge(ds: xr.Dataset, thresholds: Thresholds | None = None) -> Verdict:
    return verdict.judge(ds, metrics.compute(ds, resamples=200), thresholds)


def finding(result: Verdict, name: str) -> Finding:
    (found,) = [item for item in result.findings if item.name == name]
    return found


def metric(name: str, value: float, low: float = NAN, high: float = NAN) -> Metric:
    return Metric(name=name, value=value, low=low, high=high, definition="")


def with_metric(ds: xr.Dataset, *changed: Metric) -> Verdict:
    """Judge with some metrics replaced."""
    given = metrics.compute(ds, resamples=50)
    return verdict.judge(ds, given | {m.name: m for m in changed})


# --- planted models -----------------------------------------------------------------------------


def test_a_healthy_model_passes() -> None:
    result = judge(synthetic.dataset(**GOOD))
    assert result.status == "pass"
    assert [item.name for item in result.findings] == [
        "inflation",
        "gradient_decay",
        "redundancy",
        "selectivity",
        "selectivity_shift",
        "importance_shift",
        "measurement",
    ]
    assert result.sentence.startswith("No PreNorm dilution: inflation (1.5")


@pytest.mark.parametrize(
    ("name", "warns", "fails"),
    [("inflation", 3.0, 10.0), ("gradient_decay", 3.0, 10.0), ("redundancy", 0.90, 0.96)],
)
def test_the_limits_are_the_papers(name, warns, fails) -> None:
    """arXiv 2605.20708, section 3, tells where a model fails; the warnings are ours."""
    ds = synthetic.dataset(**GOOD)
    near = 1e-6
    for value, status in (
        (warns * (1 - near), "pass"), (warns * (1 + near), "warn"),
        (fails * (1 - near), "warn"), (fails * (1 + near), "fail"),
    ):  # fmt: skip
        exact = metric(name, value, value, value)
        assert finding(with_metric(ds, exact), name).status == status
    across = metric(name, fails * 1.01, fails * 0.99, fails * 1.03)
    assert finding(with_metric(ds, across), name).status == "warn"


@pytest.mark.parametrize(
    ("planted", "symptom", "status"),
    [
        ({"inflation": 15.0}, "inflation", "fail"),
        ({"inflation": 5.0}, "inflation", "warn"),
        ({"decay": 15.0}, "gradient_decay", "fail"),
        ({"decay": 5.0}, "gradient_decay", "warn"),
        ({"cosine": 0.98}, "redundancy", "fail"),
        ({"cosine": 0.93}, "redundancy", "warn"),
    ],
)
def test_each_planted_symptom_is_found_alone(planted, symptom, status) -> None:
    result = judge(synthetic.dataset(**(GOOD | planted)))
    assert result.status == status
    held = {item.name: item.status for item in result.findings[:3]}
    assert held == dict.fromkeys(held, "pass") | {symptom: status}
    sentence = finding(result, symptom).sentence
    m = metrics.compute(synthetic.dataset(**(GOOD | planted)), resamples=200)[symptom]
    shown = "{:.3f}" if symptom == "redundancy" else "{:#.3g}"
    for number in (m.value, m.low, m.high):
        assert shown.format(number).rstrip(".") in sentence
    limit = getattr(Thresholds(), f"{symptom}_{status}")
    assert f"{limit:g}" in sentence and f"{limit:g}" in result.sentence
    others = {"inflation", "gradient decay", "redundancy"} - {symptom.replace("_", " ")}
    assert not any(other in result.sentence for other in others)


def test_the_sentence_names_failures_before_warnings() -> None:
    result = judge(synthetic.dataset(**(GOOD | {"inflation": 5.0, "cosine": 0.98})))
    assert result.status == "fail"
    assert result.sentence.startswith("PreNorm dilution: redundancy (cosine 0.98")
    assert "; inflation is a warning (" in result.sentence


def test_a_block_that_hands_on_what_it_reads_is_named() -> None:
    ds = synthetic.dataset(**GOOD, routing="dar")
    ds["cosine"].values[..., 9] = 1.0  # it writes, but along what it reads
    result = judge(ds)
    assert finding(result, "redundancy").status == "pass", "one block does not move the mean enough"
    found = finding(result, "idle_blocks")
    assert (found.status, result.status) == ("warn", "warn")
    assert "block 9 " in found.sentence and found.sentence in result.sentence
    assert "dead_blocks" not in [item.name for item in result.findings]


@pytest.mark.parametrize("routing", ["residual", "dar"])
def test_blocks_that_write_nothing_are_named_once(routing) -> None:
    ds = synthetic.dataset(**GOOD, routing=routing)
    for block in (3, 9):
        for name in ("write_ratio", "write_rms"):
            ds[name].values[..., 2 * block - 2 : 2 * block] = 0
        if routing == "residual":  # a router offers the next block other sources all the same
            ds["cosine"].values[..., block] = 1.0
    ds["write_ratio"].values[..., 10] = 0  # half of block 6
    result = judge(ds)
    found = finding(result, "dead_blocks")
    assert (found.status, result.status) == ("warn", "warn")
    assert found.sentence == (
        "Nothing is written by blocks 3, 9 (every sublayer below 0.0001 of what it reads)."
    )
    assert found.sentence in result.sentence
    assert "idle_blocks" not in [item.name for item in result.findings]


def test_a_one_hot_router_is_found() -> None:
    ds = synthetic.dataset(**GOOD, routing="dar")
    offered = np.isfinite(ds["route"].values)
    hot = np.zeros_like(ds["route"].values)
    hot[..., 0] = 1
    ds["route"].values[:] = np.where(offered, hot, np.nan)
    ds["route_entropy"].values[:] = 0
    found = finding(judge(ds), "selectivity")
    assert found.status == "info"
    assert "Selectivity is 1.000" in found.sentence and "uses 1.0 of 13.5 sources" in found.sentence


def test_without_a_router_there_is_no_selectivity() -> None:
    result = judge(synthetic.dataset(**GOOD))
    for name in ("selectivity", "selectivity_shift"):
        assert finding(result, name).status == "not measurable"
        assert "no router" in finding(result, name).sentence
    assert finding(result, "importance_shift").status == "info"


def test_without_scalar_routes_the_sentence_does_not_claim_plain_residuals() -> None:
    ds = synthetic.dataset(**GOOD)
    ds["route"].values[:] = np.nan
    ds["route_entropy"].values[:] = np.nan
    found = finding(judge(ds), "selectivity")
    assert found.status == "not measurable" and "no scalar routes" in found.sentence


def test_a_shift_is_set_against_chance() -> None:
    ds = synthetic.dataset(**GOOD, samples=12, routing="dar")
    assert "more than chance" in finding(judge(ds), "selectivity_shift").sentence
    ds["route"].values[:] = ds["route"].values[:1]
    assert "may be chance (p = 1)" in finding(judge(ds), "selectivity_shift").sentence


# --- untrained ----------------------------------------------------------------------------------


def untrained(cosine: float = 1.0, write: float = 0.0, **options) -> xr.Dataset:
    """adaLN-Zero at init: every write is zero, so every block hands on what it read."""
    ds = synthetic.dataset(**options)
    ds["cosine"].values[..., 1:] = cosine
    ds["write_ratio"].values[:] = write
    ds["gate"].values[:] = np.where(np.isfinite(ds["gate"].values), 0, np.nan)
    return ds


@pytest.mark.parametrize(
    "options", [{}, {"inflation": 100.0, "decay": 100.0}, {"routing": "dar"}, {"samples": 1}]
)
def test_untrained_is_never_redundant(options) -> None:
    result = judge(untrained(**options))
    assert result.status == "untrained"
    assert result.sentence.startswith("Untrained: the median sublayer writes 0 of what it reads")
    assert all(item.status == "untrained" for item in result.findings[:3])
    assert not {"fail", "warn"} & {item.status for item in result.findings}
    assert finding(result, "importance_shift").status == "not measurable"


def test_the_median_sublayer_decides_what_is_untrained() -> None:
    assert judge(untrained(write=0.9e-4)).status == "untrained"
    assert judge(untrained(write=1.1e-4)).status == "fail"
    ds = untrained()
    ds["write_ratio"].values[..., :5] = 0.5  # five of twelve sublayers write
    assert judge(ds).status == "untrained"
    ds["write_ratio"].values[..., :7] = 0.5
    assert judge(ds).status == "fail"
    ds["write_ratio"].values[:] = np.nan
    assert judge(ds).status == "fail", "unknown is not untrained"


# --- intervals against thresholds ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "low", "high", "status", "words"),
    [
        (2.0, 1.9, 2.1, "pass", "not above the warning limit 3"),
        (2.9, 2.0, 9.9, "pass", "not above the warning limit 3"),
        (3.1, 2.0, 4.0, "warn", "above the warning limit 3, below the failure limit 10"),
        (2.9, 2.0, 10.1, "warn", "the interval reaches beyond the failure limit 10"),
        (9.9, 9.0, 10.8, "warn", "the interval reaches beyond the failure limit 10"),
        (10.5, 9.9, 11.0, "warn", "the interval reaches beyond the failure limit 10"),
        (10.5, 10.0, 11.0, "warn", "the interval reaches beyond the failure limit 10"),
        (10.5, 10.1, 11.0, "fail", "above the failure limit 10"),
        (10.5, NAN, NAN, "fail", "one sample, no interval"),
        (9.5, NAN, NAN, "warn", "one sample, no interval"),
        (2.5, NAN, NAN, "pass", "one sample, no interval"),
        (NAN, NAN, NAN, "not measurable", "not measurable"),
    ],
)
def test_the_interval_decides(value, low, high, status, words) -> None:
    ds = synthetic.dataset(**GOOD)
    result = with_metric(ds, metric("inflation", value, low, high))
    found = finding(result, "inflation")
    assert found.status == status and words in found.sentence
    assert result.status == ("pass" if status == "not measurable" else status)


@given(
    numbers=st.lists(st.floats(0, 30), min_size=3, max_size=3).map(sorted),
    name=st.sampled_from(["inflation", "gradient_decay"]),
)
def test_a_failure_is_never_nearer_than_its_whole_interval(numbers, name) -> None:
    low, value, high = numbers
    found = verdict._symptom(metric(name, value, low, high), Thresholds(), untrained=False)
    assert (found.status == "fail") == (low > 10)
    assert (found.status == "pass") == (value <= 3 and high <= 10)


def test_thresholds_can_be_changed() -> None:
    ds = synthetic.dataset(**GOOD)
    strict = Thresholds(inflation_warn=1.1, inflation_fail=1.2)
    result = judge(ds, strict)
    assert result.status == "fail" and "limit 1.2" in result.sentence


def test_one_block_has_no_depth() -> None:
    result = judge(synthetic.dataset(blocks=1, cosine=0.5))
    assert finding(result, "gradient_decay").status == "not measurable"
    assert finding(result, "inflation").status == "not measurable"
    assert result.status == "pass"


def test_sizes_do_not_compare_where_a_new_stream_begins() -> None:
    ds = synthetic.dataset(inflation=50, decay=50, cosine=0.5)
    assert judge(ds).status == "fail"
    ds["cosine"][:, :, 3] = np.nan  # no cosine between two states that are there
    result = judge(ds)
    for name in ("inflation", "gradient_decay"):
        found = finding(result, name)
        assert found.status == "not measurable"
        assert "a new stream begins" in found.sentence
    assert finding(result, "redundancy").status == "pass"
    ds["rms"][:, :, 3] = 0  # there is no cosine with a state of zero either
    assert finding(judge(ds), "inflation").status == "fail"


def test_nothing_measurable() -> None:
    ds = synthetic.dataset(blocks=1)
    ds["cosine"].values[:] = np.nan
    result = judge(ds)
    assert result.status == "not measurable"
    assert "cannot be judged" in result.sentence


@pytest.mark.parametrize("name", ["gate_conservation", "read_residual"])
def test_large_error_bars_are_a_warning(name: str) -> None:
    ds = synthetic.dataset(**GOOD)
    assert finding(judge(ds), "measurement").status == "pass"
    ds[name].values[..., 3] = 0.02
    result = judge(ds)
    assert finding(result, "measurement").status == "warn"
    assert result.status == "warn" and name.replace("_", " ") in result.sentence


def test_rounding_of_half_precision_is_reported_but_no_warning() -> None:
    ds = synthetic.dataset(**GOOD)
    ds["write_lost"].values[:] = 0.3
    found = finding(judge(ds), "measurement")
    assert found.status == "pass" and "rounding loses 0.3 of a write" in found.sentence


def test_missing_error_bars_say_so() -> None:
    ds = synthetic.dataset(**GOOD)
    ds["gate_conservation"].values[:] = np.nan
    assert "gates" not in finding(judge(ds), "measurement").sentence
    for name in ("read_residual", "write_lost"):
        ds[name].values[:] = np.nan
    assert finding(judge(ds), "measurement").status == "not measurable"


# --- rules --------------------------------------------------------------------------------------


def known(**values: float) -> dict[str, Metric]:
    return {name: metric(name, values.get(name, NAN)) for name in DEFINITIONS}


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("inflation > 8", True),
        ("inflation>8", True),
        ("inflation >= 9", True),
        ("inflation > 9", False),
        ("inflation <= 9", True),
        ("inflation < 9", False),
        ("redundancy > .4", True),
        ("redundancy > 5e-1", False),
        ("redundancy > -1", True),
        ("redundancy > +0.4", True),
        ("inflation > 8 and redundancy > 0.9", False),
        ("inflation > 8 or redundancy > 0.9", True),
        ("redundancy > 0.9 or inflation > 8", True),
        ("inflation > 8 or redundancy > 0.9 and redundancy > 2", True),  # and binds tighter
        ("redundancy > 2 and redundancy > 0.9 or inflation > 8", True),
        ("inflation > 99 or redundancy > 0.4 and redundancy > 2", False),
        ("gradient_decay > 1", False),  # NaN
        ("gradient_decay < 1", False),
        ("gradient_decay <= 1 or gradient_decay >= 1", False),
        ("  selectivity\t<\n0.5 ", True),
        ("selectivity_shift >= 0", True),
    ],
)
def test_rules(text: str, met: bool) -> None:
    given = known(inflation=9, redundancy=0.5, selectivity=0.1, selectivity_shift=0)
    assert rules.parse_rule(text).evaluate(given) is met


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("gradient_decay > 1", ["gradient_decay"]),
        ("gradient_decay > 1 or inflation > 8", []),  # met whatever the decay is
        ("gradient_decay > 1 or inflation > 99", ["gradient_decay"]),
        ("gradient_decay > 1 and inflation > 8", ["gradient_decay"]),
        ("gradient_decay > 1 and inflation > 99", []),  # not met whatever the decay is
        ("inflation > 99", []),
    ],
)
def test_a_rule_that_rests_on_what_is_not_measurable_is_not_judged(text, unknown) -> None:
    given = known(inflation=9, redundancy=0.5)
    rule = rules.parse_rule(text)
    assert rule.unknown(given) == unknown
    found = rules.apply_rule(judge(synthetic.dataset(**GOOD)), rule, given)
    assert (found.status == "not measurable") == bool(unknown)
    assert ("cannot be judged: gradient decay cannot be measured" in found.sentence) == bool(
        unknown
    )


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "its end"),
        ("   ", "its end"),
        ("inflation", "its end"),
        ("inflation >", "its end"),
        ("inflation > 3 and", "its end"),
        ("inflation > 3 or or redundancy > 1", "'or'"),
        ("and inflation > 3", "'and'"),
        ("fid > 3", "'fid'"),
        ("Inflation > 3", "'Inflation'"),
        ("importance_shift > 0.1", "'importance_shift'"),
        ("gate_conservation > 0.1", "'gate_conservation'"),
        ("inflation == 3", "'=='"),
        ("inflation => 3", "'='"),
        ("inflation >> 3", "'>'"),
        ("inflation ! 3", "'!'"),
        ("inflation > nan", "'nan'"),
        ("inflation > inf", "'inf'"),
        ("inflation > 1e999", "'1e999'"),
        ("inflation > 1_000", "'1_000'"),
        ("inflation > 3x", "'3x'"),
        ("inflation > redundancy", "'redundancy'"),
        ("3 < inflation", "'3'"),
        ("(inflation > 3)", "'(inflation'"),
        ("inflation > 3 xor redundancy > 1", "'xor'"),
        ("inflation > 3 AND redundancy > 1", "'AND'"),
        ("inflation > 3, redundancy > 1", "'3,'"),
        ("inflation > 3 > 4", "'>'"),
        ("inflation > 3 redundancy > 4", "'redundancy'"),
        ("inflation > 3; import os", "'3;'"),
        ("inflation > \u0663", "'\u0663'"),
    ],
)
def test_bad_rules_name_the_word(text: str, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        rules.parse_rule(text)
    assert f" has {word} where " in str(caught.value)
    assert "inflation, gradient_decay, redundancy, selectivity" in caught.value.hint
    assert caught.value.exit_code == 2


@given(text=st.text(alphabet="<>=. 019eandorinflationredundancy\n()-", max_size=40))
def test_any_text_is_a_rule_or_a_usage_error(text: str) -> None:
    try:
        rule = rules.parse_rule(text)
    except UsageError:
        return
    assert rules.parse_rule(rule.text) == rule


@given(
    parts=st.lists(
        st.tuples(
            st.sampled_from(rules.RULE_NAMES),
            st.sampled_from([">", ">=", "<", "<="]),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=6,
    ),
    data=st.data(),
)
def test_rules_mean_what_python_means(parts, data) -> None:
    joints = data.draw(st.lists(st.sampled_from(["and", "or"]), min_size=6, max_size=6))
    values = {name: float(data.draw(st.integers(0, 3))) for name in rules.RULE_NAMES}
    texts = [f"{name} {sign} {number}" for name, sign, number in parts]
    text = " ".join(itertools.chain(*zip(texts, joints, strict=False))).rsplit(" ", 1)[0]
    expected = eval(text, {}, values)
    assert rules.parse_rule(text).evaluate(known(**values)) is expected


def test_a_rule_replaces_the_judgement_and_keeps_the_findings() -> None:
    ds = synthetic.dataset(**(GOOD | {"cosine": 0.98}))
    given = metrics.compute(ds, resamples=50)
    first = verdict.judge(ds, given)
    passed = rules.apply_rule(first, rules.parse_rule("inflation > 8"), given)
    assert (first.status, passed.status) == ("fail", "pass")
    assert passed.findings == first.findings
    assert "Does not meet the rule to fail on inflation > 8: inflation 1.5" in passed.sentence
    failed = rules.apply_rule(first, rules.parse_rule("redundancy > 0.97"), given)
    assert failed.status == "fail" and "redundancy cosine 0.98" in failed.sentence


def test_a_rule_on_what_is_not_measurable_says_so() -> None:
    ds = synthetic.dataset(blocks=1)
    given = metrics.compute(ds, resamples=50)
    result = rules.apply_rule(
        verdict.judge(ds, given), rules.parse_rule("inflation > 8 or inflation < 8"), given
    )
    assert result.status == "not measurable"
    assert result.sentence.endswith("cannot be judged: inflation cannot be measured here.")


def test_a_rule_on_an_untrained_model_says_so() -> None:
    ds = untrained()
    given = metrics.compute(ds, resamples=50)
    result = rules.apply_rule(
        verdict.judge(ds, given), rules.parse_rule("redundancy > 0.97"), given
    )
    assert result.status == "fail" and result.sentence.endswith("The model is untrained.")


# --- summary ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"samples": 1, "blocks": 1, "levels": 1}])
def test_the_summary_is_strict_json(options) -> None:
    ds = synthetic.dataset(**options)
    text = json.loads(ds.attrs["manifest"])
    text["warnings"] = ["the clock looks reversed"]
    ds.attrs["manifest"] = json.dumps(text)
    given = metrics.compute(ds, resamples=50)
    result = verdict.judge(ds, given)
    got = json.loads(json.dumps(verdict.summary(ds, given, result), allow_nan=False))
    assert list(got) == ["verdict", "sentence", "findings", "metrics", "assumptions", "warnings"]
    assert (got["verdict"], got["sentence"]) == (result.status, result.sentence)
    assert list(got["metrics"]) == list(DEFINITIONS)
    for name, m in given.items():
        for key in ("value", "low", "high"):
            expected = getattr(m, key)
            assert got["metrics"][name][key] == (None if math.isnan(expected) else expected)
    assert got["warnings"] == ["the clock looks reversed"] and len(got["assumptions"]) == 1
    assert [item["name"] for item in got["findings"]] == [item.name for item in result.findings]
    for item in got["findings"]:
        advised = item["status"] in ("warn", "fail")
        more = {"meaning", "certainty", "commands"} if advised else set()
        assert set(item) == {"name", "status", "sentence"} | more


def test_verdicts_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        judge(synthetic.dataset()).status = "pass"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("selectivity", "no reader has two sources"),
        ("selectivity_shift", "it takes two noise levels and two sources that matter"),
        ("importance_shift", "it takes two noise levels and two sources that matter"),
        ("loss", "no loss was measured"),
        ("inflation", "too few blocks, or states that are zero"),
        ("gradient_decay", "too few blocks, or states that are zero"),
        ("redundancy", "too few blocks, or states that are zero"),
    ],
)
def test_why_a_number_is_not_measurable(name, reason) -> None:
    routed = synthetic.dataset(blocks=3, samples=2, levels=2, routing="dar")
    assert verdict.unmeasured(routed, metric(name, NAN)) == reason
    assert verdict.unmeasured(routed, metric(name, 0.5)) == ""
    plain = synthetic.dataset(blocks=3, samples=2, levels=2)
    alone = "there is no router, all sources are added with weight 1"
    expected = alone if name.startswith("selectivity") else ""
    assert verdict.unmeasured(plain, metric(name, 0.5)) == expected
    plain["route"].values[:] = NAN
    expected = "this routing has no scalar routes" if name.startswith("selectivity") else ""
    assert verdict.unmeasured(plain, metric(name, 0.5)) == expected


def test_a_shift_that_is_not_measurable_says_what_it_takes() -> None:
    result = judge(synthetic.dataset(**(GOOD | {"levels": 1, "routing": "dar"})))
    for name, words in (
        ("selectivity_shift", "Selectivity shift"),
        ("importance_shift", "Importance shift"),
    ):
        found = finding(result, name)
        assert found.status == "not measurable"
        assert found.sentence == (
            f"{words} is not measurable: it takes two noise levels and two sources that matter."
        )


@pytest.mark.parametrize(
    ("dead", "words"),
    [
        ([2], "Nothing is written by block 2 ("),
        ([2, 3], "Nothing is written by blocks 2-3 ("),
        ([2, 4], "Nothing is written by blocks 2, 4 ("),
        ([1, 2, 3, 5, 8, 9], "Nothing is written by blocks 1-3, 5, 8-9 ("),
    ],
)
def test_blocks_are_named_in_runs(dead, words) -> None:
    ds = synthetic.dataset(**(GOOD | {"blocks": 24}))
    for block in dead:
        ds["write_ratio"].values[..., 2 * block - 2 : 2 * block] = 0
    assert finding(judge(ds), "dead_blocks").sentence.startswith(words)
