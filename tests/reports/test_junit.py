"""JUnit XML of a verdict: what continuous integration is told."""

from xml.etree import ElementTree

import pytest

from dar_probe.analysis import Analysis
from dar_probe.reports.pages import junit
from dar_probe.results.metrics import Metric
from dar_probe.results.verdict import Finding, Verdict
from tests.helpers import synthetic

HOSTILE = "a\x00b\x1b[31m<c> \"d\" 'e' & ]]> \ud800 \ufffe é\n"


def finding(name, status, value=1.5, sentence="It is so."):
    metric = Metric(name=name, value=value, low=value - 1, high=value + 1, definition="")
    return Finding(name=name, status=status, sentence=sentence, metric=metric)


VERDICT = Verdict(
    status="fail",
    sentence="PreNorm dilution.",
    findings=[
        finding("inflation", "fail"),
        finding("gradient_decay", "warn"),
        finding("redundancy", "pass"),
        finding("selectivity", "not measurable", float("nan")),
        Finding(name="measurement", status="untrained", sentence="Unjudged."),
    ],
)


def suite(content):
    root = ElementTree.fromstring(content)
    assert root.tag == "testsuites" and len(root) == 1
    found = root[0]
    for key, path in (("tests", "testcase"), ("failures", "*/failure"), ("skipped", "*/skipped")):
        assert int(found.get(key)) == int(root.get(key)) == len(found.findall(path))
    return found


def outcome(case):
    return next((kind for kind in ("failure", "skipped") if case.find(kind) is not None), "passed")


def test_every_finding_is_a_test_case():
    found = suite(junit.render(VERDICT, name="mine"))
    assert [(case.get("name"), outcome(case)) for case in found] == [
        ("inflation", "failure"), ("gradient decay", "passed"), ("redundancy", "passed"),
        ("selectivity", "skipped"), ("measurement", "skipped"),
    ]  # fmt: skip
    assert {case.get("classname") for case in found} == {"dar-probe.mine"}
    assert found[0].find("failure").get("message") == "It is so."
    assert found[0].find("system-out").text.splitlines() == [
        "It is so.", "status: fail", "value: 1.5 [0.5, 2.5]",
    ]  # fmt: skip
    assert "value" not in found[3].find("system-out").text


def test_under_a_rule_nothing_else_can_fail():
    found = suite(junit.render(VERDICT, name="mine", rule="inflation > 8"))
    assert [outcome(case) for case in found].count("failure") == 1
    assert found[0].get("name") == "fail on inflation > 8"
    assert found[0].find("failure").text == VERDICT.sentence
    passed = Verdict(status="pass", sentence="Fine.", findings=VERDICT.findings)
    found = suite(junit.render(passed, name="mine", rule="inflation > 8"))
    assert found.get("failures") == "0" and len(found) == 6


def test_what_was_before_is_quoted():
    before = Verdict(
        status="pass", sentence="", findings=[finding("inflation", "pass", 9.0, "It was so.")]
    )
    found = suite(junit.render(VERDICT, name="mine", before=before))
    text = found[0].find("system-out").text
    assert "before training: It was so." in text and "value: 9 [8, 10]" in text


@pytest.mark.parametrize("rule", [None, HOSTILE])
def test_hostile_text_is_well_formed(rule):
    verdict = Verdict(
        status="fail", sentence=HOSTILE, findings=[finding("inflation", "fail", sentence=HOSTILE)]
    )
    content = junit.render(verdict, name=HOSTILE, rule=rule)
    found = suite(content)
    kept = "a\\x00b\\x1b[31m<c> \"d\" 'e' & ]]> \\ud800 \\ufffe é\n"
    assert found.get("name") == kept
    assert found[0].find("failure").text == kept
    assert "\x1b" not in content.decode("utf-8")


def test_a_real_analysis_is_rendered():
    analysis = Analysis(synthetic.dataset())
    found = suite(junit.render(analysis.verdict, name=analysis.name))
    assert [case.get("name") for case in found][:3] == ["inflation", "gradient decay", "redundancy"]
