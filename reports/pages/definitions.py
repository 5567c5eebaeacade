"""What every number of the page means, in one place that each of them opens."""

from typing import NamedTuple

from dar_probe.reports.pages import wording
from dar_probe.results import metrics, schema, symptoms


class Definition(NamedTuple):
    """One meaning.

    Attributes:
        id: of the element that holds it.
        title: what is defined.
        text: the definition, one or more sentences.
        source: where it comes from; may be empty.
    """

    id: str
    title: str
    text: str
    source: str = ""


def definitions() -> dict[str, Definition]:
    """Return every definition by its key: "metric:NAME", "axis:NAME", a variable, or a word."""
    found = {}
    for name, text in metrics.DEFINITIONS.items():
        found[f"metric:{name}"] = (name.replace("_", " ").capitalize(), text, "dar-probe")
    for name, symptom in symptoms.SYMPTOMS.items():
        found[f"metric:{name}"] = (symptom.title, symptom.definition, symptoms.PAPER)
    for name, spec in {**schema.VARIABLES, **schema.ABLATION}.items():
        units = "" if spec.units == "1" else f" ({spec.units})"
        found[name] = (_opened(spec.long_name) + units, spec.definition, spec.source)
    for name, text in schema.COORD_TEXT.items():
        found[f"axis:{name}"] = (name.replace("_", " ").capitalize(), text, "")
    found |= wording.MEANINGS
    return {
        key: Definition(
            f"define-{key.replace(':', '-').replace('_', '-')}", title, _closed(text), source
        )
        for key, (title, text, source) in found.items()
    }


def _opened(text: str) -> str:
    """Begin with a capital, unless a formula comes first: "rms[B] / rms[1]"."""
    formula = "[" in text.split(maxsplit=1)[0]
    return text if formula else text[:1].upper() + text[1:]


def _closed(text: str) -> str:
    return _opened(text) + ("" if text.endswith(".") else ".")
