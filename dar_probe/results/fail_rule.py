"""The user's own rule for failing: NAME OP NUMBER joined by and/or."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import ge, gt, le, lt

from dar_probe.errors import UsageError
from dar_probe.results.metrics import Metric
from dar_probe.results.symptoms import SYMPTOMS
from dar_probe.results.verdict import Verdict, plain, with_interval

RULE_NAMES = (*SYMPTOMS, "selectivity", "selectivity_shift")
OPERATORS: dict[str, Callable[[float, float], bool]] = {">": gt, ">=": ge, "<": lt, "<=": le}
TOKEN = re.compile(r"\s*([<>]=?|[^\s<>]+)")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
# What follows a name, in turn.
GRAMMAR: tuple[tuple[Callable[[str], bool], str], ...] = (
    (lambda word: word in OPERATORS, "one of > >= < <="),
    (lambda word: bool(NUMBER.fullmatch(word)) and math.isfinite(float(word)), "a number"),
    (lambda word: word in ("and", "or", ""), "and, or, or the end"),
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When to fail: any of ``groups`` whose comparisons (name, operator, number) all hold."""

    text: str
    groups: tuple[tuple[tuple[str, str, float], ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The numbers that it compares, each once."""
        return tuple(dict.fromkeys(name for group in self.groups for name, _, _ in group))

    def evaluate(self, metrics: Mapping[str, Metric]) -> bool:
        """Say whether the rule is met, i.e. the model fails; false where a metric is NaN."""
        return any(
            all(OPERATORS[sign](metrics[name].value, number) for name, sign, number in group)
            for group in self.groups
        )

    def unknown(self, metrics: Mapping[str, Metric]) -> list[str]:
        """Return the names that are NaN and could decide whether the rule is met."""
        if self.evaluate(metrics):
            return []
        found: list[str] = []
        for group in self.groups:
            missing = [name for name, _, _ in group if math.isnan(metrics[name].value)]
            known = [part for part in group if part[0] not in missing]
            if missing and all(OPERATORS[s](metrics[n].value, number) for n, s, number in known):
                found += missing
        return list(dict.fromkeys(found))


def parse_rule(text: str, names: Sequence[str] = RULE_NAMES) -> Rule:
    """Read ``NAME OP NUMBER`` joined by ``and`` and ``or``; ``and`` binds tighter.

    Raises UsageError naming the first word that does not fit, and the names there are.
    """
    words = TOKEN.findall(text)
    grammar = ((names.__contains__, "the name of a metric"), *GRAMMAR)
    for position, word in enumerate([*words, ""]):
        fits, expected = grammar[position % 4]
        if not fits(word):
            raise UsageError(
                f"the rule {text!r} has {repr(word) if word else 'its end'} where {expected} "
                "should stand",
                hint=f"write NAME OP NUMBER joined by and/or; names: {', '.join(names)}",
            )
    groups: list[list[tuple[str, str, float]]] = [[]]
    for start in range(0, len(words), 4):
        if start and words[start - 1] == "or":
            groups.append([])
        groups[-1].append((words[start], words[start + 1], float(words[start + 2])))
    return Rule(text=" ".join(words), groups=tuple(tuple(group) for group in groups))


def apply_rule(verdict: Verdict, rule: Rule, metrics: Mapping[str, Metric]) -> Verdict:
    """Replace the default judgement by the user's rule: ``fail`` if it is met, else ``pass``.

    Where numbers that decide cannot be measured, the verdict is ``not measurable``.
    """
    if unknown := rule.unknown(metrics):
        names = " and ".join(plain(name) for name in unknown)
        why = f"{names} cannot be measured here"
        sentence = f"The rule to fail on {rule.text} cannot be judged: {why}."
        return dataclasses.replace(verdict, status="not measurable", sentence=sentence)
    failed = rule.evaluate(metrics)
    values = "; ".join(f"{plain(name)} {with_interval(metrics[name])}" for name in rule.names)
    note = " The model is untrained." if verdict.status == "untrained" else ""
    sentence = f"{'Meets' if failed else 'Does not meet'} the rule to fail on {rule.text}: {values}"
    return dataclasses.replace(
        verdict, status="fail" if failed else "pass", sentence=f"{sentence}.{note}"
    )
