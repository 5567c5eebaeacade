"""The bar for Python: tqdm's, with the right total, and closed at the end."""

import pytest
import tqdm.auto

import dar_probe as dp


class Bar:
    made: list["Bar"] = []

    def __init__(self, *, total, desc, unit):
        self.total, self.desc, self.unit, self.n, self.closed = total, desc, unit, 0, False
        Bar.made.append(self)

    def update(self, more):
        assert not self.closed and more >= 0
        self.n += more

    def close(self):
        self.closed = True


@pytest.fixture
def bars(monkeypatch):
    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    Bar.made = []
    return Bar.made


def test_a_walk(bars):
    tell = dp.progress_bar()
    assert bars == [], "nothing is drawn before something is done"
    for done in (3, 6, 8):
        tell(done, 8)
    (bar,) = bars
    assert (bar.n, bar.total, bar.closed) == (8, 8, True)
    assert (bar.desc, bar.unit) == ("measuring", " cells")


def test_another_walk_gets_another_bar(bars):
    """``ablate`` measures, and then walks over the same cells again; a walk may be cut off."""
    tell = dp.progress_bar("ablating")
    for done, total in ((4, 8), (8, 8), (4, 8), (2, 8), (3, 5)):
        tell(done, total)
    assert [(bar.n, bar.total, bar.closed) for bar in bars] == [
        (8, 8, True), (4, 8, True), (2, 8, True), (3, 5, False),
    ]  # fmt: skip


def test_the_real_one(capsys):
    tell = dp.progress_bar()
    tell(1, 2)
    tell(2, 2)
    found = capsys.readouterr()
    assert found.out == "" and "measuring: 100%" in found.err and "2/2" in found.err
