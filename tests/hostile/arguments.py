"""Types hostile command lines, and counts what comes of them.

    python tests/hostile/arguments.py --count 5000 [--command analyze] [--seed 0]

Each is a command's own usage with one to three of its own options set to hostile values, or with
its arguments replaced, repeated, reordered or left out. A command may do its work, or refuse with
a documented exit code, a sentence and a hint, leaving every file as it was; everything else is a
finding, and the exit code is 1. Pages and figures are left out: they would be all of the time.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

os.environ["HF_HUB_OFFLINE"] = "1"  # some words have the form of an id of the Hub
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, tests is no package on the path

from typer.main import get_command  # noqa: E402

from dar_probe.cli import app  # noqa: E402
from dar_probe.cli.shared.error_sentences import PAGE  # noqa: E402
from dar_probe.errors import FRAMES  # noqa: E402
from tests.helpers.shell import without_progress  # noqa: E402
from tests.helpers.warm import Done, run  # noqa: E402
from tests.hostile.playground import NOT_UTF8, Playground  # noqa: E402

SECONDS = 30.0  # until a command counts as hanging
LONGEST = 1_000  # characters of a sentence, and of a line of a hint
HINT_LINES = 4  # one, but for the batch function to write
TOGETHER = 20  # commands in one child

USAGES = {
    "analyze": ["plain.pt", "--samples", "1", "--noise-levels", "0.5,", "--device", "cpu"],
    "ablate": [
        "dar.pt", "--samples", "1", "--noise-levels", "1", "--pairs", "1", "--kinds", "gate",
        "--device", "cpu",
    ],
    "audit": ["mine:model", "--samples", "1"],
    "bench": ["plain.pt", "--repeats", "1", "--batch-size", "1"],
    "compare": ["analysis", "other"],
    "doctor": ["--device", "cpu"],
    "figures": ["analysis", "--only", "dilution", "--format", "png"],
    "inspect": ["plain.pt"],
    "report": ["analysis"],
    "reproduce": [
        "--scale", "smoke", "--only", "residual", "--runs", "0", "--out", "study",
        "--device", "cpu",
    ],
    "sample": ["plain.pt", "--samples", "2", "--steps", "1", "--device", "cpu"],
    "evaluate": [
        "plain.pt", "--samples", "8", "--steps", "1", "--seeds", "1", "--device", "cpu",
    ],
    "train": [
        "--out", "run", "--steps", "1", "--depth", "1", "--width", "8", "--batch-size", "2",
        "--device", "cpu",
    ],
}  # fmt: skip
NUMBERS = (
    "0", "-0", "-1", "-2147483649", "9223372036854775808", "1" + "0" * 30, "9" * 5_000, "1e400",
    "1e-400", "1e-3", "nan", "inf", "-inf", "0.5", "1_000", "0x10", "+1", "\u0663", "\u00b2",
)  # fmt: skip
LISTS = (
    "", " ", ",", ",,", "0.5,0.5", "0.9,0.1", "0.5,,0.7", "0.5;0.7", "1-3", "3-1", "nan,0.5",
    "gate,gate", "gate,", "dilution,", "1:0", "1:99", "99:0", ":", "1:0:0", "-1:0",
)  # fmt: skip
PATHS = (
    ".", "..", "folder", "folder/thesis.tex", "folder/deeper/x", "nowhere.pt", "nowhere/x.pt",
    "empty", "empty/x", "text.pt", "page.pt", "text.nc", "loop", "pipe", "plain.pt", "analysis",
    "other/analysis.nc", "latents.npz", "bad.toml", "run.toml", "mine.py", NOT_UTF8,
    os.fsdecode(b"\xff\xfenowhere"), "/dev/null/x", "~", "-",
)  # fmt: skip
WORDS = (
    "auto", "all", "none", "digits", "images:", "images:folder", "images:nowhere", "images:loop",
    "latents:", "latents:latents.npz", "latents:text.pt", "latents:pipe", "sit", "repa", "dit",
    "ddpm:cosine:v", "ddpm:", "dar", "dynamic", "float64", "int8", "cuda:99", "meta", "cpu:-1",
    "nnsight", "ema", "model", "mine", "mine:", ":model", "mine:absent", "mine:number",
    "mine:nothing", "mine:broken", "mine:rude", "mine:bare", "mine:endless", "nowhere:model",
    "..mine:model", "SiT-S/9", "SiT-S/8", "4,8", "4,9", "8:long", "0,8", "*", "blocks.*", "[",
    "inflation > 8", "inflation >", "inflation > 1e999", "loss < 0 and", "rms", "png,png", "one",
    "attention", "teleport", "\u202eevil", "\x1b[31mred\x07", "two\nlines", "tab\tbed", "x" * 300,
    "x" * 5_000, "x/" * 2_000, "$(touch pwned)", "%s%n", "{0}", "--", "-x", "--seed", "--\x1b[31m",
)  # fmt: skip
POOL = NUMBERS + LISTS + PATHS + WORDS
# What a user asks for may take its time: many rounds or steps, or a large model, are no fault.
PATIENT = {"--repeats", "--steps", "--train-steps", "--samples", "--seeds", "--runs"}
SMALL = ("0", "-1", "1", "2", "nan", "1e400", "0.5", "x")


@cache
def options(command: str) -> dict[str, tuple[str, ...]]:
    """Return every option of a command, and the values that it is tried with; none for flags."""
    found = get_command(app).commands[command]
    hints = get_type_hints(found.callback)
    return {
        name: ()
        if getattr(parameter, "is_flag", False)
        else _pool(command, name, hints[parameter.name])
        for parameter in found.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("-") and name not in ("--help", "--compile")  # it takes half a minute
    }


def _pool(command: str, name: str, hint: Any) -> tuple[str, ...]:
    if name == "--out":
        return PATHS  # any other word would be a folder, and work
    if {int, float} & {hint, *get_args(hint)}:
        return (SMALL if name in PATIENT or command == "train" else NUMBERS) + LISTS[:3]
    return POOL


def vector(command: str, rng: random.Random) -> list[str]:
    """Return the arguments of one hostile use of a command."""
    known = options(command)
    usage = list(USAGES[command])
    for _ in range(rng.choice([1, 1, 2, 2, 3])):
        name = rng.choice(sorted(known))
        added = [name]
        if known[name]:
            value = rng.choice(known[name])
            added = rng.choice([[name, value], [name, value], [f"{name}={value}"]])
        usage = added + usage if rng.random() < 0.2 else usage + added
    match rng.randrange(12):
        case 0:  # another argument
            usage[0] = rng.choice(POOL)
        case 1:  # one more
            usage.insert(rng.randrange(len(usage) + 1), rng.choice(POOL))
        case 2:  # one less
            del usage[rng.randrange(len(usage))]
        case 3:
            usage.insert(rng.randrange(len(usage) + 1), "--")
        case 4:
            usage.insert(rng.randrange(len(usage) + 1), rng.choice(WORDS[-8:]))
        case 5:
            rng.shuffle(usage)
        case _:
            pass
    place = 1 if rng.random() < 0.03 else 0
    return [*usage[:place], command, *usage[place:]]


def fault(done: Done, changes: Sequence[str]) -> str:
    """Say what is wrong with what a command did; "" where nothing is."""
    refused = done.returncode in (2, 3, 4)
    lines = without_progress(done.stderr).splitlines()
    if done.returncode not in (0, 1, 2, 3, 4):
        last = lines[-2:] if done.returncode == 5 else lines[-1:]
        return f"exit code {done.returncode}: {' '.join(last)[:200]}"
    if done.seconds > SECONDS:
        return f"it takes {done.seconds:.0f} s"
    if "Traceback" in done.stderr + done.stdout:
        return f"a traceback: {lines[-1]}"
    if not all(line.isprintable() for line in (*lines, *done.stdout.splitlines())):
        return "it prints control characters"
    if not refused:
        talks = {"compare", "train", "reproduce"} & set(done.arguments)  # of rules, files, runs
        return f"says on stderr {lines[0]!r}" if lines and not talks else ""
    if changes:
        return f"refuses, but changes {changes[0]}"
    if "compare" in done.arguments and done.returncode == 4:
        return ""  # it shows what cannot be compared
    if not lines:  # no command at all prints the help
        return "" if "Usage: dar-probe" in done.stdout else "refuses without a word"
    if lines[-1].startswith(f"More: {PAGE}#error-"):
        lines = lines[:-1]
    if "Where:" in lines:  # of the user's own code
        lines, where = lines[: lines.index("Where:")], lines[lines.index("Where:") :]
        if len(where) > 1 + 4 * FRAMES:
            return f"quotes {len(where)} lines of code"
    if not lines[0].startswith("Error: "):
        return f"begins with {lines[0]!r}"
    if len(lines) > 1 and not lines[1].startswith("Hint: "):
        return f"says more than a sentence and a hint: {lines[1]!r}"
    if len(lines) > 1 + HINT_LINES or max(map(len, lines)) > LONGEST:
        return f"says too much: {len(lines)} lines of up to {max(map(len, lines))} characters"
    return f"prints {done.stdout[:50]!r}" if done.stdout else ""


def play(
    commands: Iterable[Sequence[str]], ground: Playground, *, light: bool = True
) -> Iterator[tuple[Done, str]]:
    """Run commands in the playground, and yield what was done and what is wrong with that."""
    cache = str(ground.folder.parents[2] / "cache")
    for at, command in enumerate(commands):
        done = run(
            *command, cwd=ground.folder, seconds=SECONDS, light=light, fresh=at % TOGETHER == 0,
            XDG_CACHE_HOME=cache,
        )  # fmt: skip
        yield done, fault(done, ground.changes())


def short(argument: str) -> str:
    return repr(argument) if len(argument) < 60 else f"{argument[:9]!r}..."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--command", choices=USAGES, action="append")
    parser.add_argument("--count", type=int, default=1000, help="command lines, over all commands")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    names = arguments.command or list(USAGES)
    codes: dict[str, Counter[int]] = {name: Counter() for name in names}
    began, wrong, slowest = time.monotonic(), 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        ground = Playground(Path(folder))
        wanted = [names[n % len(names)] for n in range(arguments.count)]
        lines = (
            vector(name, random.Random(f"{arguments.seed} {n}")) for n, name in enumerate(wanted)
        )
        for name, (done, found) in zip(wanted, play(lines, ground), strict=True):
            codes[name][done.returncode] += 1
            slowest = max(slowest, done.seconds)
            if found:
                wrong += 1
                print(f"{found}\n    {' '.join(map(short, done.arguments))}", flush=True)
    for name, counts in codes.items():
        print(f"{name:10} {counts.total():6}: " + ", ".join(
            f"{n} x exit {code}" for code, n in sorted(counts.items())
        ))  # fmt: skip
    print(f"{wrong} findings; the slowest took {slowest:.1f} s; {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
