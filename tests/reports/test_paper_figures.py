"""Figures for a paper: panels of the user's, fonts of the user's, words as captions."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from dar_probe.analysis import Analysis
from dar_probe.errors import UsageError
from dar_probe.reports.figures import matrix
from tests.helpers import synthetic

METHODS = {
    "dilution": {}, "sources": {}, "matrix": {"noise_level": 0.5}, "decodability": {},
    "heatmap": {"variable": "rms"},
}  # fmt: skip


@pytest.fixture
def analysis():
    return Analysis(synthetic.dataset())


def words(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text().strip()]


@pytest.mark.parametrize("name", METHODS)
def test_a_figure_goes_into_given_axes(analysis, name):
    """As many axes as panels get what the figure shows; nothing else of the figure is touched."""
    own = getattr(analysis.plot, name)(**METHODS[name])
    bars = [axis for axis in own.axes if axis.get_label() == "<colorbar>"]
    shown = [axis for axis in own.axes if axis.get_visible() and axis not in bars]
    figure, axes = plt.subplots(1, len(shown) + 1, figsize=(9, 3), squeeze=False)
    try:
        axes[0, -1].set_title("mine")
        given = list(axes[0, :-1])
        drawn = getattr(analysis.plot, name)(
            ax=given if len(given) > 1 else given[0], **METHODS[name]
        )
        assert drawn is figure
        for mine, theirs in zip(given, shown, strict=True):
            assert mine.has_data()
            assert len(mine.collections) == len(theirs.collections)
            assert [list(line.get_ydata()) for line in mine.lines] == [
                list(line.get_ydata()) for line in theirs.lines
            ]
            assert mine.get_ylim() == theirs.get_ylim()
        assert not axes[0, -1].has_data() and axes[0, -1].get_title() == "mine"
        assert figure.get_size_inches().tolist() == [9, 3]
        assert not any(text.startswith("(a)") for text in words(figure))
    finally:
        plt.close(figure)


def test_another_number_of_axes_is_refused(analysis):
    figure, axes = plt.subplots(1, 2)
    try:
        with pytest.raises(UsageError, match="3 panels and takes as many axes, not 2"):
            analysis.plot.dilution(ax=axes)
        with pytest.raises(UsageError, match="1 panel and takes"):
            analysis.plot.heatmap("rms", ax=axes)
        assert not any(axis.has_data() for axis in axes)
    finally:
        plt.close(figure)


def test_rcparams_come_on_top(analysis):
    """A user's fonts, sizes and grid hold; sizes that he leaves alone keep their proportion."""
    usual = analysis.plot.dilution()
    with mpl.rc_context({"font.family": "serif", "font.size": 15.0, "grid.linestyle": ":"}):
        mine = analysis.plot.dilution()
    for small, large in zip(usual.axes, mine.axes, strict=True):
        assert large.title.get_fontfamily() == ["serif"]
        assert large.title.get_fontsize() == pytest.approx(2 * small.title.get_fontsize())
        assert small.xaxis.get_gridlines()[0].get_linestyle() == "-"
        assert large.xaxis.get_gridlines()[0].get_linestyle() == ":"
    with mpl.rc_context({"axes.titlesize": 20.0}):
        one = analysis.plot.dilution()
    assert one.axes[0].title.get_fontsize() == 20
    assert one.axes[0].xaxis.label.get_fontsize() == usual.axes[0].xaxis.label.get_fontsize()


def test_names_are_never_commands(analysis):
    """Where a user lets TeX set his texts, names of models would be commands; they stay words."""
    with mpl.rc_context({"text.usetex": True}):
        figure = analysis.plot.dilution()
    assert not any(text.get_usetex() for text in figure.findobj(mpl.text.Text) if text.get_text())


def test_large_letters_stay_inside(analysis):
    with mpl.rc_context({"font.size": 11.0, "font.family": "serif"}):
        figure = analysis.plot.dilution()
        figure.canvas.draw()
        box = figure.bbox
        for axis in figure.axes:
            extent = axis.title.get_window_extent()
            assert box.x0 <= extent.x0 and extent.x1 <= box.x1 + 1


def test_a_dark_style_has_light_words(analysis):
    with mpl.style.context("dark_background"):
        figure = analysis.plot.matrix()
    (note,) = [text for text in figure.texts if "square root" in text.get_text()]
    assert note.get_color() == "white"


def test_titles_and_notes_can_be_left_out(analysis):
    full = words(analysis.plot.matrix(noise_level=0.5))
    bare = words(analysis.plot.matrix(noise_level=0.5, titles=False, notes=False))
    assert any("importance, attention" in text for text in full)
    assert any("square root" in text for text in full)
    assert not any("importance, attention" in text or "square root" in text for text in bare)
    assert "(a)" in {text.strip() for text in bare}


def test_captions_say_what_was_left_out(analysis):
    text = analysis.plot.caption("matrix", noise_level=0.5)
    assert text.startswith("What every reader reads")
    assert "(a) importance, attention; (b) importance, mlp; (c) importance, head." in text
    assert "Noise level 0.5 (0: data, 1: noise)." in text and matrix.ROOT_NOTE in text
    assert text.endswith(f"Model: {analysis.name}.")
    dilution = analysis.plot.caption("dilution")
    assert "Bands: 95 % interval" in dilution
    assert r"Bands: 95 \% interval" in analysis.plot.caption("dilution", latex=True)
    with pytest.raises(UsageError, match="no figure 'nonsense'"):
        analysis.plot.caption("nonsense")


def test_the_rows_of_a_matrix_are_equally_high(analysis):
    figure = analysis.plot.matrix(noise_level=0.5)
    figure.canvas.draw()
    panels = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    heights = [axis.get_position().height / np.ptp(axis.get_ylim()) for axis in panels]
    assert np.ptp(heights) < 0.01 * max(heights)
