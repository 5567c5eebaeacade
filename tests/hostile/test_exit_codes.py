"""Command lines that cannot work: the exit code, one sentence, one hint, and nothing written."""

import random
import shlex

import pytest

from tests.helpers.warm import Done
from tests.hostile import arguments, refused_files, refused_values
from tests.hostile.playground import Playground

TABLE = {
    "no-command": (refused_values.NO_COMMAND, ""),
    "analyze": (refused_values.ANALYZE, ""),
    "ablate": (refused_values.ABLATE, ""),
    "audit": (refused_values.AUDIT, ""),
    "bench": (refused_values.BENCH, ""),
    "compare": (refused_values.COMPARE, ""),
    "figures": (refused_values.FIGURES, ""),
    "inspect": (refused_values.INSPECT, ""),
    "report": (refused_values.REPORT, ""),
    "reproduce": (refused_values.REPRODUCE, ""),
    "train": (refused_values.TRAIN, ""),
    "sample": (refused_values.SAMPLE, ""),
    "evaluate": (refused_values.EVALUATE, ""),
    "sample-drawn": (refused_values.DRAWN, "sample"),
    "evaluate-drawn": (refused_values.DRAWN, "evaluate"),
    "sample-file": (refused_files.CHECKPOINTS, "sample"),
    "evaluate-file": (
        [case for case in refused_files.CHECKPOINTS if case[0] != "{} latents.npz"],
        "evaluate",
    ),  # it takes a .npz of images
    "analyze-file": (refused_files.CHECKPOINTS, "analyze"),
    "ablate-file": (refused_files.CHECKPOINTS, "ablate"),
    "bench-file": (refused_files.CHECKPOINTS, "bench"),
    "inspect-file": (refused_files.CHECKPOINTS, "inspect"),
    "analyze-grid": (refused_values.GRIDS, "analyze plain.pt"),
    "ablate-grid": (refused_values.GRIDS, "ablate plain.pt"),
    "compare-file": (refused_files.ANALYSES, "compare"),
    "figures-file": (refused_files.ANALYSES, "figures"),
    "report-file": (refused_files.ANALYSES, "report"),
}


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return Playground(tmp_path_factory.mktemp("ground"))


def words(line, command):
    """Return the arguments of a case, with the command in its place."""
    parts = shlex.split(line) if isinstance(line, str) else line
    return [word for part in parts for word in (command if part == "{}" else [part])]


@pytest.mark.parametrize("name", TABLE)
def test_what_cannot_work_is_refused(ground, name):
    table, command = TABLE[name]
    lines = [words(line, command.split()) for line, _, _ in table]
    if name == "compare-file":
        lines = [[*line, "other"] for line in lines]
    wrong = []
    played = arguments.play(lines, ground, light=name != "figures")  # some are found by drawing
    for (_, code, said), (done, fault) in zip(table, played, strict=True):
        if fault or done.returncode != code or said not in done.stderr:
            shown = " ".join(map(arguments.short, done.arguments))
            wrong.append(f"{shown}\n{fault}\nexit {done.returncode}: {done.stderr[-400:]}")
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "changes"),
    [
        (5, "", "Internal error: ValueError: x\nHint: y\n", []),
        (-14, "", "", []),
        (1, "", "Traceback (most recent call last):\nValueError: x\n", []),
        (2, "", "Error: \x1b[31mred\n", []),
        (2, "", "Error: \u202egnp.exe\n", []),
        (2, "", "", []),
        (2, "", "Usage: dar-probe\nError: x\n", []),
        (2, "", "Error: x\nand more\n", []),
        (2, "", f"Error: {'x' * 5_000}\n", []),
        (2, "half a result", "Error: x\n", []),
        (2, "", "Error: x\n", ["out"]),
        (0, "done", "UserWarning: x\n", ["out"]),
    ],
)
def test_every_fault_is_found(code, stdout, stderr, changes):
    assert arguments.fault(Done(("analyze",), code, stdout, stderr, 0.1), changes)


def test_what_works_or_is_refused_is_no_fault(subtests):
    for code, stderr in ((0, ""), (1, ""), (2, "Error: x\nHint: y\n"), (3, "Error: x\n")):
        with subtests.test(code=code):
            assert not arguments.fault(
                Done(("analyze",), code, "" if code > 1 else "x", stderr, 1), []
            )


def test_the_law(ground):
    names = list(arguments.USAGES)
    lines = [arguments.vector(names[n % len(names)], random.Random(n)) for n in range(120)]
    wrong = {done.arguments: fault for done, fault in arguments.play(lines, ground) if fault}
    assert not wrong
