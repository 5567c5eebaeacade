"""Tables and captions as text: Markdown for an issue, LaTeX (booktabs) for a paper."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from dar_probe.files.text import quantity
from dar_probe.reports.pages.wording import STATUS_WORDS
from dar_probe.reports.style import palette
from dar_probe.results.symptoms import SYMPTOMS, unit_of

if TYPE_CHECKING:
    from dar_probe.results.metrics import Metric
    from dar_probe.results.verdict import Verdict

Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # heads and rows
HEADS = ("number", "value", "95 % interval", "verdict")
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def of_analysis(metrics: "Mapping[str, Metric]", verdict: "Verdict") -> Table:
    """Return the numbers of an analysis that are measurable, symptoms first."""
    status = {item.name: item.status for item in verdict.findings}
    rows = []
    for name, metric in metrics.items():
        if metric.value != metric.value or not (name in SYMPTOMS or name in status):
            continue
        unit = unit_of(name)
        between = "one sample"
        if metric.low == metric.low:
            between = f"{quantity(metric.low, unit)} to {quantity(metric.high, unit)}"
        judged = STATUS_WORDS[status[name]] if name in SYMPTOMS else ""
        rows.append((name.replace("_", " "), quantity(metric.value, unit), between, judged))
    return HEADS, rows


def markdown(table: Table) -> str:
    """Return a table of GitHub's Markdown."""
    heads, rows = table
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(_marked, line))} |\n" for line in lines)


def latex(table: Table) -> str:
    r"""Return a ``tabular`` with booktabs' rules; it takes ``\usepackage{booktabs}``."""
    heads, rows = table

    def line(cells: Iterable[str]) -> str:
        return " & ".join(escaped(_clean(cell)) for cell in cells) + r" \\"

    return "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * len(heads)}}}", r"\toprule", line(heads), r"\midrule",
            *map(line, rows), r"\bottomrule", r"\end{tabular}", "",
        ]
    )  # fmt: skip


def latex_figure(stem: str, caption: str) -> str:
    """Return a LaTeX figure that shows the PDF of this name with a caption and a label."""
    return "\n".join(
        [
            r"\begin{figure}", r"  \centering", rf"  \includegraphics{{{stem}.pdf}}",
            rf"  \caption{{{escaped(caption)}}}", rf"  \label{{fig:{stem}}}", r"\end{figure}", "",
        ]
    )  # fmt: skip


def escaped(text: str) -> str:
    """Return a text in which no character is a command of LaTeX."""
    return "".join(_TEX.get(character, character) for character in text)


def _marked(cell: str) -> str:
    return _clean(cell).replace("\\", "\\\\").replace("|", "\\|")


def _clean(cell: str) -> str:
    """Return a cell's text without what is no letter; an empty cell stays empty."""
    return palette.clean(cell, 200) if cell else ""
