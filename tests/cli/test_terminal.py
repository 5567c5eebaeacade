"""What a terminal shows: a bar that comes and goes, a summary that fits, no number cut."""

import fcntl
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
from rich.cells import cell_len

from dar_probe.analysis import Analysis
from dar_probe.cli.shared import errors, terminal
from dar_probe.cli.shared.console import printable
from dar_probe.files.text import SPARK_WIDTH, charset, sparkline
from dar_probe.reports.pages import headline
from tests.helpers import synthetic
from tests.helpers.shell import ROOT
from tests.helpers.synthetic import dataset

HOSTILE = {
    "html": "</script><b>bold[/b] [red]",
    "escape": "a\x1b[2J\x1b]0;title\x07\rb",
    "newline": "line\nfeed\ttab\u2028end",
    "math": r"$\frac{1}{",
    "long": "x" * 300 + ".pt",
    "right-to-left": "\u202egnp.exe \u05e9\u05dc\u05d5\u05dd \u200f",
    "wide": "\u6a21\u578b" * 60,
    "surrogate": "bad\udcff.pt",
}
WORK = """
import sys, time
from dar_probe.cli.shared import terminal
with terminal.progress("intervening") as tell:
    time.sleep(0.25)
    for done in (8, 16, 24, 32):
        tell(done, 64)
        time.sleep(0.25)
    if "interrupt" in sys.argv:
        raise SystemExit(130)
    for step in (1, 2, 3):
        tell(step, 99999, "training, loss 0.1234", "steps")
        time.sleep(0.25)
    tell(99999, 99999)
    time.sleep(0.25)
print("result")
"""


class Screen:
    """The few lines that a bar touches, as a terminal shows them."""

    def __init__(self, columns):
        self.columns, self.rows, self.row, self.at = columns, [""], 0, 0
        self.seen, self.cursor, self.colours = [], True, set()

    def feed(self, text):
        for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|.", text, re.DOTALL):
            if token == "\r":
                self.at = 0
            elif token == "\n":
                self.row, self.at = self.row + 1, 0
                self.rows += [""] * (self.row + 1 - len(self.rows))
            elif token == "\x1b[2K":
                self.seen.append(self.rows[self.row])
                self.rows[self.row] = ""
            elif token.endswith("A"):
                self.row -= int(token[2:-1])
            elif token in ("\x1b[?25l", "\x1b[?25h"):
                self.cursor = token.endswith("h")
            elif token.endswith("m"):
                self.colours |= set(re.findall(r"\b[34]\d\b", token))
            else:
                assert not token.startswith("\x1b"), f"the test knows no {token!r}"
                line = self.rows[self.row].ljust(self.at)
                self.rows[self.row] = line[: self.at] + token + line[self.at + 1 :]
                self.at += 1
        self.seen.append(self.rows[self.row])


def run_in_terminal(*arguments, columns=80, **environment):
    """Run WORK with stderr on a terminal and stdout in a pipe."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LC_ALL", "NO_COLOR")}
    parts = []

    def read():
        while True:
            try:
                parts.append(os.read(leader, 4096))
            except OSError:  # the other end was closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    done = subprocess.run(
        [sys.executable, "-c", WORK, *arguments], stdout=subprocess.PIPE, stderr=follower,
        check=False, cwd=ROOT, env={**kept, "TERM": "xterm-256color", "LANG": "C.UTF-8",
                                    **environment},
    )  # fmt: skip
    os.close(follower)
    reader.join()
    os.close(leader)
    return done, b"".join(parts).decode("utf-8")


@pytest.mark.parametrize(
    ("columns", "environment"),
    [(80, {}), (80, {"NO_COLOR": "1"}), (60, {"LC_ALL": "C"})],
    ids=["80 columns", "without colour", "60 columns, ASCII"],
)
def test_the_bar_comes_and_goes(columns, environment):
    done, drawn = run_in_terminal(columns=columns, **environment)
    assert done.stdout == b"result\n"
    screen = Screen(columns)
    screen.feed(drawn)
    frames = [line.rstrip() for line in screen.seen if line.strip()]
    assert max(map(len, screen.seen)) <= columns
    assert any(re.search(r"24/64\s+[\d.]+ cells/s\s+\d:\d\d left$", frame) for frame in frames)
    assert any("3/99999" in frame and "steps/s" in frame for frame in frames)
    assert re.search(r"^intervening [\s━╸╺-]+ 0:00$", frames[0])  # no rate yet: the time
    assert "finishing" in frames[-1]
    assert all(frame.startswith("intervening") for frame in frames)  # never on a second line
    assert "".join(screen.rows).strip() == "" and screen.cursor
    assert bool(screen.colours) == ("NO_COLOR" not in environment)
    if "LC_ALL" in environment:
        assert drawn.isascii()
    elif columns == 80:
        assert any("training, loss 0.1234" in frame for frame in frames)


def test_an_interrupted_bar_goes_too():
    done, drawn = run_in_terminal("interrupt")
    screen = Screen(80)
    screen.feed(drawn)
    assert done.returncode == 130 and any("cells/s" in line for line in screen.seen)
    assert "".join(screen.rows).strip() == "" and screen.cursor


LOG = r"intervening  99999 cells in 0:0\d\r?\n"


def test_a_dumb_terminal_gets_no_bar():
    done, drawn = run_in_terminal(TERM="dumb")
    assert done.stdout == b"result\n" and re.fullmatch(LOG, drawn)


def test_a_log_gets_no_bar_whatever_is_forced():
    done = subprocess.run(
        [sys.executable, "-c", WORK], capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "FORCE_COLOR": "1", "CI": "true", "TTY_COMPATIBLE": "1"},
    )  # fmt: skip
    assert done.stdout == "result\n" and re.fullmatch(LOG, done.stderr)


def renamed(ds, name):
    manifest = json.loads(ds.attrs["manifest"])
    manifest["model"]["name"] = manifest["data"]["name"] = name
    manifest["warnings"] = [f"look at {name}"]
    return ds.assign_attrs(manifest=json.dumps(manifest))


@pytest.fixture(scope="module")
def deep():
    return Analysis(dataset(blocks=28, samples=8, levels=3))


@pytest.fixture(scope="module")
def trained():
    ds = dataset(blocks=6, samples=4, levels=2, inflation=1.0)
    manifest = json.loads(ds.attrs["manifest"])
    manifest["training"] = {"steps": 300, "batch_size": 8, "lr": 1e-3}
    before = Analysis(dataset(blocks=6, samples=4, levels=2))
    return Analysis(ds.assign_attrs(manifest=json.dumps(manifest)), before=before)


def shown(analysis, capsys, monkeypatch, width, **environment):
    for key, value in {"COLUMNS": str(width), **environment}.items():
        monkeypatch.setenv(key, value)
    terminal.show(analysis)
    terminal.show_files(Path("out"))
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [200, 80, 60, 40, 30])
@pytest.mark.parametrize("which", ["deep", "trained"])
def test_no_line_is_too_long_and_no_number_is_cut(which, width, request, capsys, monkeypatch):
    analysis = request.getfixturevalue(which)
    lines = shown(analysis, capsys, monkeypatch, width)
    assert all(cell_len(line) <= min(width, 100) for line in lines)
    assert all(line == line.rstrip() for line in lines)
    numbers = re.findall(r"\d[\d.e,-]*x?", " ".join(lines))
    wanted = [analysis, analysis.before] if analysis.before else [analysis]
    for one in wanted:
        for symptom in headline.symptoms(one.dataset, one.metrics, one.verdict):
            for text in (symptom.value, *symptom.interval.split(" to ")):
                assert text in numbers, text
    full = shown(analysis, capsys, monkeypatch, 200)
    for word in " ".join(full[full.index("") :]).split():  # below the name
        if re.search(r"\d", word) and "block 1 to" not in word:
            assert any(word in line for line in lines) or width < 60, word


def test_sparklines_fill_what_is_there(deep, capsys, monkeypatch):
    sizes = {}
    for width in (200, 80, 60, 40):
        lines = shown(deep, capsys, monkeypatch, width)
        marks = ["".join(c for c in line if c in "▁▂▃▄▅▆▇█") for line in lines]
        sizes[width] = sorted(len(mark) for mark in marks if mark)
    assert sizes[200] == sizes[80] == [28, 28, 28] and sizes[40] == []
    assert 8 <= sizes[60][0] < 28 and len(set(sizes[60])) == 1


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_hostile_names_stay_text(kind, locale, capsys, monkeypatch):
    analysis = Analysis(renamed(dataset(blocks=3, samples=2, levels=2), HOSTILE[kind]))
    lines = shown(analysis, capsys, monkeypatch, 80, LC_ALL=locale)
    text = "\n".join(lines)
    assert all(cell_len(line) <= 80 for line in lines)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert text.isascii() or locale != "C"
    assert any(line.startswith("RMS inflation") for line in lines)  # at the start of its line
    if kind == "html":
        assert HOSTILE[kind] in lines[2]  # no markup was read


def test_json_is_all_there_is(deep, capsys):
    terminal.show_json(deep)
    assert json.loads(capsys.readouterr().out) == deep.summary


def test_sparkline(monkeypatch):
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.setenv("LANG", "C")
    rising = [float(value) for value in range(100)]
    line = sparkline(rising)
    assert len(line) == SPARK_WIDTH and line[0] == "." and line[-1] == "@"  # both ends
    order = [".:-=+*#@".index(mark) for mark in line]
    assert order == sorted(order) and set(order) == set(range(8))
    assert sparkline([1.0, float("nan"), 2.0]) == ". @"
    assert sparkline([float("nan")]) == "" and sparkline([3.0, 3.0]) == ".."
    assert sparkline([1.0, 1.0 + 2e-7, 1.0 - 2e-7]) == "...", "only rounding"
    assert sparkline([0.0, 1e-12]) == ".@" and sparkline([1.0, 1.0 + 2e-6]) == ".@"


@pytest.mark.parametrize(
    ("environment", "ascii_only"),
    [
        ({}, False),
        ({"LANG": "C"}, True),
        ({"LANG": "POSIX"}, True),
        ({"LANG": "C", "LC_ALL": "C.UTF-8"}, False),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "C"}, True),
    ],
)
def test_who_says_c_gets_ascii(environment, ascii_only, monkeypatch, capsys):
    for name in ("LANG", "LC_ALL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (charset(sys.stdout) == "ascii") == ascii_only
    assert printable("\u00e9") == (r"\xe9" if ascii_only else "\u00e9")


def test_a_training_run_shows_its_steps(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run = Analysis(synthetic.trained(blocks=4, samples=3, levels=2, steps=20))
    terminal.show(run)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    start = next(at for at, line in enumerate(lines) if line.split()[:1] == ["step"])
    rows = [line.split() for line in lines[start + 1 : start + 9]]
    assert [rows[0][0], rows[-1][0]] == ["100", "2000"]
    assert rows[-1][1] == terminal.quantity(run.metrics["inflation"].value, "x")
    assert rows[-1][-1] == run.verdict.status


@pytest.mark.parametrize("debug", [True, False])
def test_no_error_steers_the_terminal(debug, capsys, monkeypatch):
    """Whatever failed may quote a file: colours, bells and new lines in it stay text."""
    monkeypatch.setattr(errors, "DEBUG", debug)

    @errors.guarded
    def fails():
        raise RuntimeError("a\x1b[2J\rb\n\x07c \u202e\x9b31m\udcff")

    with pytest.raises(SystemExit) as left:
        fails()
    assert left.value.code == 5
    said = capsys.readouterr().err
    assert all(" " <= c <= "~" or c == "\n" for c in said)
    assert "RuntimeError: a\\x1b[2J b \\x07c \\u202e\\x9b31m\\udcff\nHint: " in said


def test_advised_commands_run_as_they_are_printed(capsys, monkeypatch, tmp_path):
    """With the file's folder, and with the folder of the analysis in place of a stand-in."""
    monkeypatch.setenv("COLUMNS", "60")
    analysis = Analysis(dataset(blocks=6, samples=4, levels=2))
    assert {"DIR", "synthetic.pt"} <= {
        word
        for finding in analysis.verdict.findings
        if finding.advice
        for command in finding.advice.commands
        for word in command.split()
    }
    terminal.show(analysis, checkpoint=Path("some where/synthetic.pt"), folder=Path("out"))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 60 and " \\\n" in shown
    lines = shown.replace("\\\n", "").splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("  $ ")]
    wanted = ["dar-probe", "ablate", "some where/synthetic.pt", "--kinds", "block"]
    assert wanted in [command[:5] for command in commands]
    assert ["dar-probe", "figures", "out", "--only", "heatmap"] in [one[:5] for one in commands]
    assert all(command[-2].startswith("--") and "DIR" not in command for command in commands)
