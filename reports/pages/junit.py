"""A verdict as JUnit XML, which continuous integration shows test by test."""

import math
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from dar_probe.results.verdict import Finding, Verdict

SKIPPED = ("untrained", "not measurable")


def render(
    verdict: "Verdict", *, name: str, rule: str | None = None, before: "Verdict | None" = None
) -> bytes:
    """Return one test suite in UTF-8: a test case for each finding.

    Args:
        verdict: symptoms that fail are failures; what could not be judged is skipped.
        name: of the model, whatever characters it has.
        rule: the user's own, by which ``verdict`` was judged. It is then a test case, the first,
            and the only one that can fail.
        before: the same findings of the untrained module, quoted beside the numbers.
    """
    earlier = {item.name: item for item in before.findings} if before else {}
    cases = []
    if rule is not None:
        failed = verdict.status == "fail"
        cases.append(_case(name, f"fail on {rule}", verdict.sentence, [], failed=failed))
    for item in verdict.findings:
        lines = [f"status: {item.status}", *_numbers(item)]
        if item.name in earlier:
            was = earlier[item.name]
            lines += ["", f"before training: {was.sentence}", f"status: {was.status}"]
            lines += _numbers(was)
        failed = rule is None and item.status == "fail"
        skipped = item.status if item.status in SKIPPED else ""
        title = item.name.replace("_", " ")
        cases.append(_case(name, title, item.sentence, lines, failed=failed, skipped=skipped))
    counts = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": 0,
        "skipped": sum(case.find("skipped") is not None for case in cases),
    }
    attributes = {key: str(value) for key, value in counts.items()}
    root = ElementTree.Element("testsuites", {"name": "dar-probe", **attributes})
    suite = ElementTree.SubElement(root, "testsuite", {"name": legal(name), **attributes})
    suite.extend(cases)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def legal(text: str) -> str:
    """Escape what XML 1.0 has no place for: control characters, surrogates, non-characters."""
    return "".join(c if _is_legal(ord(c)) else ascii(c)[1:-1] for c in text)


def _is_legal(code: int) -> bool:
    if code < 0x20:
        return code in (0x9, 0xA, 0xD)
    return code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000


def _case(
    model: str, title: str, sentence: str, lines: list[str], *, failed: bool, skipped: str = ""
) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase", {"classname": legal(f"dar-probe.{model}"), "name": legal(title)}
    )
    if failed:
        failure = {"message": legal(sentence), "type": "dilution"}
        ElementTree.SubElement(case, "failure", failure).text = legal(sentence)
    elif skipped:
        ElementTree.SubElement(case, "skipped", {"message": legal(f"{skipped}: {sentence}")})
    ElementTree.SubElement(case, "system-out").text = legal("\n".join([sentence, *lines]))
    return case


def _numbers(item: "Finding") -> list[str]:
    if item.metric is None or item.status == "not measurable":
        return []
    low, high = item.metric.low, item.metric.high
    spread = f" [{low:.6g}, {high:.6g}]" if math.isfinite(low) else ""
    return [f"value: {item.metric.value:.6g}{spread}"]
