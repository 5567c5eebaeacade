"""Tables for papers and issues: the numbers of the verdict, safe whatever names there are."""

import pytest

from dar_probe.analysis import Analysis
from dar_probe.comparison import Comparison
from dar_probe.reports import text_tables
from tests.helpers.synthetic import dataset


@pytest.fixture(scope="module")
def analysis():
    return Analysis(dataset(blocks=6, samples=6, levels=3, inflation=40.0))


def test_markdown_holds_the_verdict(analysis):
    lines = analysis.to_markdown().splitlines()
    assert lines[0] == "| number | value | 95 % interval | verdict |"
    (row,) = [line for line in lines if line.startswith("| inflation |")]
    metric = analysis.metrics["inflation"]
    assert f"| {metric.value:.3g}" in row and row.endswith("| fail |")
    assert not any("selectivity" in line for line in lines)  # there is no router
    assert len({line.count(" | ") for line in lines}) == 1


def test_latex_is_a_tabular_without_open_characters(analysis):
    text = analysis.to_latex()
    assert text.startswith("\\begin{tabular}{llll}\n\\toprule\n") and "95 \\% interval" in text
    assert text.rstrip().endswith("\\bottomrule\n\\end{tabular}")


def test_a_comparison_has_a_row_for_every_number(analysis):
    other = Analysis(dataset(blocks=6, samples=6, levels=3, inflation=4.0))
    found = Comparison(analysis, other, names=["base", "mine & yours"])
    lines = found.to_markdown().splitlines()
    assert lines[0] == "| other | number | base | its own | difference |"
    assert len(lines) == 2 + len(found.pairs[0].changes)
    assert "mine \\& yours" in found.to_latex()


def test_hostile_cells_stay_in_their_cells():
    table = (("a", "b"), [("x|y\n| z |", "\\end{tabular}$%_#{}~^&")])
    (row,) = text_tables.markdown(table).splitlines()[2:]
    assert row.replace("\\|", "").count("|") == 3
    body = text_tables.latex(table).split("\\midrule\n")[1].splitlines()[0]
    assert body.replace("\\&", "").count("&") == 1 and "\\end{tabular}" not in body
