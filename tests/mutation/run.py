"""Changes the core in small ways and asks whether a test notices: the mutation lane.

Run by hand or at night, never with the ordinary tests (from the repository's root):

    python -m tests.mutation.run /tmp/mutation.json              # 240 mutants of the core
    python -m tests.mutation.run /tmp/mutation.json --count 600  # adds to them
    python -m tests.mutation.run /tmp/mutation.json --file dar_probe/results/metrics.py --all
    python -m tests.mutation.run /tmp/mutation.json --again      # with those that lived

Results are kept in the file, so that a run that was stopped goes on. Beside it lies
``mutation.reach.json``: which functions each test runs, measured once (``--map`` measures anew).
Every mutant meets the tests that run its function, quickest first, until one of them fails.

Why not mutmut or cosmic-ray, by their documentation: mutmut changes the bodies of functions alone,
and a threshold in a table is a constant here; cosmic-ray starts a test process for each mutant,
which loads torch for five seconds before a test that needs a tenth of one.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.mutation.mutants import Mutant, mutants, sample
from tests.mutation.server import Outcome, Server

ROOT = Path(__file__).resolve().parents[2]
CORE = {
    "probe": (
        "gates statistics measure recorder ablation decoding grid sharding samples denoising "
        "derivative_check"
    ),
    "results": (
        "bootstrap intervals metrics verdict fail_rule importance interventions comparability "
        "paired sample_quality assemble store schema trajectory trajectory_store"
    ),
    "routing": (
        "attnres dar dense hyper kernels mixing residual scaled skips stream timemix"
    ),
    "diffusion": "objective flow ddpm objectives samplers noise_levels data",
    "sites": (
        "subject stack stream_detection tracing boundaries block_lists cross_check labels packing "
        "freshness"
    ),
    "files": "kinds safetensors_header gguf_header json_file atomic analysis_folder arrays",
    "checkpoints": (
        "state_dict groups folders shards adapters reader quantised four_bits gguf_blocks header "
        "memory_check"
    ),
    "models": "sit sit_family",
    "training": "loop ema repa",
}  # fmt: skip
# Whole commands, browsers and other processes are no judges of one line: they take too long.
JUDGES = (
    "tests/results", "tests/routing", "tests/probe", "tests/laws", "tests/diffusion",
    "tests/files", "tests/checkpoints", "tests/sites", "tests/models/test_sit.py",
    "tests/training", "tests/models/test_own.py", "tests/test_audit.py",
    "tests/hostile/test_hostile_checkpoints.py", "tests/hostile/test_storage.py",
    "tests/test_comparison.py",
)  # fmt: skip
# Tests that start another process, which nobody follows, for the sake of these files.
ELSEWHERE = {
    "dar_probe/routing/kernels.py": "tests/routing/test_kernels.py",
    "dar_probe/routing/mixing.py": "tests/routing/test_kernels.py",
}
EQUIVALENT = Path(__file__).with_name("equivalent.toml")


def main(arguments: list[str] | None = None) -> int:
    """Run the mutants that are not yet known and print the score."""
    options = _parser().parse_args(arguments)
    root = options.root.resolve()
    every = {file: mutants(file, (root / file).read_text("utf-8")) for file in _files(options)}
    chosen = sample(every, 0 if options.all else options.count, options.seed)
    chosen = [mutant for mutant in chosen if options.only in mutant.file]
    known: dict[str, Any] = {}
    if options.results.exists():
        known = json.loads(options.results.read_text("utf-8"))
    equal = equivalents(options.equivalent)
    left = [
        mutant
        for mutant in chosen
        if not is_equivalent(mutant, equal)
        and (mutant.key not in known or (options.again and _lives(known[mutant.key])))
    ]
    if left:
        for mutant, found in _tested(root, left, options):
            known[mutant.key] = {"line": mutant.line, **found}
            _write(options.results, known)
    return _say(chosen, known, equal)


def equivalents(path: Path = EQUIVALENT) -> list[dict[str, str]]:
    """Return the table of mutants that change nothing anybody can see, and why."""
    with path.open("rb") as file:
        rows: list[dict[str, str]] = tomllib.load(file).get("mutant", [])
    return rows


def is_equivalent(mutant: Mutant, rows: list[dict[str, str]]) -> bool:
    """Whether the table has this mutant."""
    here = {"file": mutant.file, "code": mutant.code, "change": mutant.change}
    return any(here == {key: row[key] for key in here} for row in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.run", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("results", type=Path, help="JSON file for what was found, outside the repository")
    add("--count", type=int, default=240, help="about how many mutants of all files (240)")
    add("--seed", type=int, default=0, help="of the sample (0)")
    add("--all", action="store_true", help="every mutant, not a sample")
    add("--file", action="append", help="only this file; may be given several times")
    add("--only", default="", help="of the sample, only files with this in their names")
    add("--again", action="store_true", help="those that lived too")
    add("--map", action="store_true", help="measure again which functions each test runs")
    add("--budget", type=float, default=120.0, help="seconds of tests for one mutant (120)")
    add("--tests", nargs="+", default=JUDGES, help="the tests that judge")
    add("--keyword", default="", help="of these tests only some, as pytest -k takes it")
    add("--root", type=Path, default=ROOT, help="the tree that holds files and tests")
    add("--equivalent", type=Path, default=EQUIVALENT, help="the table of equivalent mutants")
    add("--package", default="dar_probe", help="the package under test")
    add("--light", action="store_true", help="load nothing beforehand, such as torch")
    return parser


def _files(options: argparse.Namespace) -> list[str]:
    if options.file:
        return list(options.file)
    return [f"dar_probe/{room}/{name}.py" for room, names in CORE.items() for name in names.split()]


def _tested(
    root: Path, left: list[Mutant], options: argparse.Namespace
) -> Iterator[tuple[Mutant, dict[str, Any]]]:
    """Yield every mutant with what became of it, and print it."""
    results = options.results.resolve()
    reach_file = results.with_name(f"{results.stem}.reach.json")
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        tests = test_files(root, options.tests)
        tree = Path(folder) / "tree"
        server = Server(
            root, tree, list(tests), options.package,
            keyword=options.keyword, preload=not options.light,
        )  # fmt: skip
        reach = measured(server, tests, reach_file, options)
        for at, mutant in enumerate(left, 1):
            judges = judging(mutant, reach, options.budget)
            text = mutant.applied((root / mutant.file).read_text("utf-8"))
            outcome = Outcome("survived", "no test runs it", 0.0)
            if judges:
                outcome = server.test(mutant.file, text, _near_and_far(mutant, judges))
            told = {"survived": "SURVIVED", "killed": "killed by"}.get(
                outcome.result, outcome.result
            )
            print(
                f"{at}/{len(left)} {mutant.file}:{mutant.line} [{mutant.change}] {mutant.code} "
                f"-> {told} {outcome.by or f'{len(judges)} tests'} ({outcome.seconds} s)",
                flush=True,
            )
            yield mutant, asdict(outcome)


def test_files(root: Path, names: list[str]) -> dict[str, str]:
    """Return every test file under ``names`` with the hash of its content."""
    found = []
    for path in (root / name for name in names):
        found += sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
        if path.exists()
    }


def measured(
    server: Server, tests: dict[str, str], out: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Return what each test runs; only files that are new or have changed are run for it."""
    known: dict[str, Any] = {"files": {}, "tests": {}}
    if out.exists() and not options.map:
        known = json.loads(out.read_text("utf-8"))
    stale = [name for name, content in tests.items() if known["files"].get(name) != content]
    part = out.with_name(out.name + ".part")
    for at, file in enumerate(stale, 1):
        print(f"measuring {at}/{len(stale)}: what the tests of {file} run", flush=True)
        server.reach(file, part)
        old = known["tests"].items()
        kept = {name: row for name, row in old if name.partition("::")[0] != file}
        known["tests"] = {**kept, **json.loads(part.read_text("utf-8"))}
        known["files"][file] = tests[file]
        _write(out, known)
        part.unlink()
    return {n: row for n, row in known["tests"].items() if n.partition("::")[0] in tests}


def judging(mutant: Mutant, reach: dict[str, Any], budget: float) -> dict[str, float]:
    """Return the tests that run the mutant's function, with their seconds, in order.

    The tests of the module itself come before others that are as quick. What stands outside of
    functions is judged by every test that runs anything in the file.
    """
    own, found = _own(mutant), []
    for name, row in reach.items():
        functions = row["reached"].get(mutant.file, ())
        parts = mutant.function.split(".")
        names = {".".join(parts[:end]) for end in range(1, len(parts) + 1)} - {""}
        # A class's body runs when it is imported, by whoever uses one of its methods.
        inside = [f for f in functions if f.startswith(f"{mutant.function}.")]
        elsewhere = name.partition("::")[0] == ELSEWHERE.get(mutant.file)
        outside = bool(functions) and not mutant.function
        if names & set(functions) or inside or outside or elsewhere:
            far = not name.startswith(own)
            found.append((row["seconds"] + 0.5 * far, name, row["seconds"]))
    chosen, spent = {}, 0.0
    for _, name, seconds in sorted(found):
        if chosen and spent + seconds > budget:
            break
        chosen[name] = seconds
        spent += seconds
    return chosen


def _own(mutant: Mutant) -> str:
    """Return the test file that mirrors the mutant's."""
    folder, _, name = mutant.file.partition("/")[2].rpartition("/")
    return "/".join(filter(None, ("tests", folder, f"test_{name}")))


def _near_and_far(mutant: Mutant, judges: dict[str, float]) -> list[dict[str, float]]:
    """Part the tests: those of few files first, because every further file must be imported."""
    few = {name.partition("::")[0] for name in list(judges)[:4]} | {_own(mutant)}
    near = {name: time for name, time in judges.items() if name.partition("::")[0] in few}
    return [near, {name: time for name, time in judges.items() if name not in near}]


def _lives(found: dict[str, Any]) -> bool:
    return bool(found["result"] == "survived")


def _write(path: Path, known: dict[str, Any]) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(known, indent=1), encoding="utf-8")
    os.replace(fresh, path)


def _say(chosen: list[Mutant], known: dict[str, Any], equal: list[dict[str, str]]) -> int:
    counts: Counter[str] = Counter()
    for mutant in chosen:
        if is_equivalent(mutant, equal):
            counts["equivalent"] += 1
        elif mutant.key in known:
            counts[known[mutant.key]["result"]] += 1
            if _lives(known[mutant.key]):
                print(f"lives: {mutant.file}:{mutant.line} [{mutant.change}] {mutant.code}")
    killed = counts["killed"] + counts["timeout"]
    ran = killed + counts["survived"]
    print(
        f"{ran} mutants: {killed} killed ({counts['timeout']} of them by never ending), "
        f"{counts['survived']} lived, {counts['equivalent']} more are equivalent. "
        f"Score {100 * killed / ran if ran else 100:.1f} %"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
