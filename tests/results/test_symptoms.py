"""The symptoms: one list, which verdict, metrics, schema and words agree with."""

import re
from dataclasses import fields

import pytest

from dar_probe.reports.pages import definitions
from dar_probe.results import fail_rule, metrics, paired, schema
from dar_probe.results.study import record
from dar_probe.results.symptoms import CHOICES, SYMPTOMS, unit_of
from dar_probe.results.verdict import Thresholds
from tests.helpers.shell import ROOT


def test_they_are_listed_in_the_order_of_the_paper_everywhere():
    names = ["inflation", "gradient_decay", "redundancy"]
    assert list(SYMPTOMS) == names and [one.name for one in SYMPTOMS.values()] == names
    for listed in (metrics.DEFINITIONS, fail_rule.RULE_NAMES, paired.NUMBERS, record.NUMBERS):
        assert list(listed)[:3] == names
    assert set(CHOICES) < set(metrics.DEFINITIONS)


@pytest.mark.parametrize("symptom", SYMPTOMS.values(), ids=lambda one: one.name)
def test_each_has_limits_words_and_a_formula(symptom):
    limits = Thresholds()
    assert getattr(limits, f"{symptom.name}_warn") == symptom.warn < symptom.fail
    assert getattr(limits, f"{symptom.name}_fail") == symptom.fail
    assert schema.VARIABLES[symptom.variable].dims == ("block",)
    assert metrics.DEFINITIONS[symptom.name] == symptom.definition
    meaning = definitions.definitions()[f"metric:{symptom.name}"]
    assert (meaning.title, meaning.source) == (symptom.title, "arXiv 2605.20708, section 3")
    assert symptom.ratio == (unit_of(symptom.name) == "x")
    named = {field.name for field in fields(Thresholds)}
    assert {f"{symptom.name}_warn", f"{symptom.name}_fail"} < named


def test_nobody_lists_them_again():
    """Their titles and labels stand in one file; what is longer than a word is told apart."""
    texts = {one.title for one in SYMPTOMS.values()} | {one.about for one in SYMPTOMS.values()}
    texts |= {one.axis for one in SYMPTOMS.values()} | {"RMS inflation"}
    folders = ("dar_probe", "cli", "reports")
    for path in (p for folder in folders for p in (ROOT / folder).rglob("*.py")):
        if path.name != "symptoms.py":
            source = re.sub(r'"\s*\n\s*"', "", path.read_text(encoding="utf-8"))
            assert not {text for text in texts if text in source}, path


def test_other_metrics_have_no_unit():
    assert [unit_of(name) for name in ("selectivity", "loss", "redundancy")] == ["", "", ""]
