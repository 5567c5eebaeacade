"""What a log gets of progress: a line in half a minute, and one at the end of each part."""

import pytest

from dar_probe.cli.shared import progress as module
from dar_probe.cli.shared.progress import progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


def lines(capsys):
    found = capsys.readouterr()
    assert found.out == ""
    return found.err.splitlines()


def test_one_line_in_half_a_minute_and_one_at_the_end(clock, capsys):
    with progress("measuring") as tell:
        for done in range(1, 101):
            clock.now += 1
            tell(done, 100)
            assert done != 29 or lines(capsys) == []
        assert lines(capsys) == [
            "measuring  30 of 100 cells, 1 cells/s, 1:10 left",
            "measuring  60 of 100 cells, 1 cells/s, 0:40 left",
            "measuring  90 of 100 cells, 1 cells/s, 0:10 left",
            "measuring  100 cells in 1:40",
        ]
    assert lines(capsys) == [], "the end is told once"


def test_another_walk_has_its_own_end_and_rate(clock, capsys):
    with progress("intervening") as tell:
        clock.now += 10
        tell(4, 4)
        clock.now += 40
        tell(1, 4, "loss 0.5", "steps")
    assert lines(capsys) == [
        "intervening  4 cells in 0:10",
        "intervening  1 of 4 steps, 0.025 steps/s, 2:00 left, loss 0.5",
        "intervening  1 steps in 0:40",
    ]


def test_a_note_is_told(clock, capsys):
    with progress("training", "steps") as tell:
        clock.now += 31
        tell(31, 62, "loss 0.5")
        assert lines(capsys) == ["training  31 of 62 steps, 1 steps/s, 0:31 left, loss 0.5"]


def test_parts_follow_each_other(clock, capsys):
    with progress("measuring") as tell:
        clock.now += 2
        tell(8, 8)
        for done, name in enumerate(("analysis.nc", "summary.json", "")):
            tell.phase("writing", done, 2, name)
            clock.now += 1
        for done in range(4):
            tell.phase("drawing", done, 3, "sources")
            clock.now += 20
    assert lines(capsys) == [
        "measuring  8 cells in 0:02",
        "writing  2 files in 0:02",
        "drawing  2 of 3 figures, 0.05 figures/s, 0:20 left, sources",
        "drawing  3 figures in 1:00",
    ]


def test_what_is_not_counted_is_told_when_it_is_done(clock, capsys):
    with progress("timing", None):
        clock.now += 3661
    assert lines(capsys) == ["timing  done in 1:01:01"]


def test_nothing_is_told_of_work_that_was_not_done(clock, capsys):
    with progress("measuring"):
        pass
    assert lines(capsys) == []


def test_no_end_is_told_of_work_that_failed(clock, capsys):
    with pytest.raises(RuntimeError), progress("measuring") as tell:
        tell(1, 2)
        raise RuntimeError
    assert lines(capsys) == []


def test_only_the_leader_of_a_job_talks(clock, capsys, monkeypatch):
    monkeypatch.setattr(module.ranks, "leads", lambda: False)
    with progress("measuring") as tell:
        tell(2, 2)
        tell.phase("writing", 1, 1)
    assert lines(capsys) == []
