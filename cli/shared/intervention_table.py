"""What a terminal shows of interventions, in 80 columns."""

import json
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dar_probe.cli.shared.terminal import printable

if TYPE_CHECKING:
    from dar_probe.analysis import Analysis
    from dar_probe.results.metrics import Metric

LARGEST = 12
COUNTED = {"ablation": "intervention", "noise_level": "noise level", "sample": "sample"}


def show_json(analysis: "Analysis") -> None:
    """Print every effect."""
    from dar_probe.results import interventions

    kinds = {
        a.kind: {"count": a.count, "rank_correlation": _json(a.rank), "error": _json(a.error)}
        for a in interventions.agreement(analysis.dataset)
    }
    table = interventions.effects(analysis.dataset)
    rows = json.loads(table.to_json(orient="records", double_precision=15))
    sys.stdout.write(json.dumps({"kinds": kinds, "effects": rows}, indent=2) + "\n")


def show(analysis: "Analysis") -> None:
    """Print how well gates foretell interventions, and the largest effects."""
    from dar_probe.results import interventions

    found, table = (
        interventions.agreement(analysis.dataset),
        interventions.effects(analysis.dataset),
    )
    console = Console(highlight=False, soft_wrap=False)
    console.print(Text(printable(analysis.name), style="bold"))
    sizes = analysis.dataset.sizes
    console.print(
        Text(
            " x ".join(
                f"{sizes[dim]} {noun}{'s' * (sizes[dim] > 1)}" for dim, noun in COUNTED.items()
            ),
            style="dim",
        )
    )
    console.print()
    kinds_table = _table("what was done", "times", "rank correlation", "error")
    for a in found:
        kinds_table.add_row(
            interventions.KIND_TEXT[a.kind], str(a.count), _interval(a.rank), _interval(a.error)
        )
    console.print(kinds_table)
    console.print(
        Text(
            "Between the true loss change and the one that gates predict"
            f"{'; 95 % intervals.' if sizes['sample'] > 1 else '.'}",
            style="dim",
        )
    )
    console.print()
    largest = _table("largest loss changes", "true", "95 % interval", "predicted")
    for row in table.head(LARGEST).to_dict("records"):
        interval = "one sample"
        if row["low"] == row["low"]:
            interval = f"{row['low']:.3g} to {row['high']:.3g}"
        largest.add_row(
            Text(printable(str(row["name"])), overflow="ellipsis"),
            f"{row['true']:+.3g}",
            interval,
            f"{row['linear']:+.3g}",
        )
    console.print(largest)


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _interval(metric: "Metric") -> str:
    if metric.value != metric.value:
        return "n/a"
    if metric.low != metric.low:
        return f"{metric.value:.2f}"
    return f"{metric.value:.2f} [{metric.low:.2f}, {metric.high:.2f}]"


def _json(metric: "Metric") -> dict[str, float | None]:
    values = {"value": metric.value, "low": metric.low, "high": metric.high}
    return {key: value if value == value else None for key, value in values.items()}
