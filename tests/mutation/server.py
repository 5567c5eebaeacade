"""Runs tests on a changed copy of the tree, in forks of one process that has loaded torch."""

import contextlib
import importlib
import os
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.mutation.reach import Reach

# What takes seconds to import and is not ours. hypothesis and pytest are imported either way.
PRELOADED = (
    "torch", "torch._dynamo", "numpy", "pandas", "xarray", "h5netcdf", "h5py", "scipy.stats",
    "safetensors.torch", "PIL.Image", "jinja2", "matplotlib.pyplot", "typer", "rich.console",
    "hypothesis",
)  # fmt: skip
OPTIONS = [
    "-q", "-x", "-p", "no:randomly", "-p", "no:cacheprovider",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",  # the server has imported hypothesis
]  # fmt: skip
MEMORY = 12 * 2**30  # bytes of addresses; a mutant may ask for all there is
PATIENCE = 30.0  # seconds, beside ten times what a test takes, until it counts as endless


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: "killed", "survived" or "timeout", by which test, in seconds."""

    result: str
    by: str
    seconds: float


class Server:
    """A copy of the tree at ``root`` in ``folder``, and the forks that test it."""

    def __init__(self, root: Path, folder: Path, *, preload: bool = True) -> None:
        ignored = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", ".hypothesis")
        shutil.copytree(root, folder, symlinks=True, ignore=ignored)
        self._root, self.folder = root.resolve(), folder.resolve()
        os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
        for name in PRELOADED if preload else ():
            with contextlib.suppress(ImportError):
                importlib.import_module(name)

    def reach(self, package: str, tests: list[str], out: Path) -> None:
        """Run the tests once and write which functions each of them runs; needs minutes."""

        def work(_: Callable[[str], None]) -> int:
            options = [option for option in OPTIONS if option != "-x"]
            return int(pytest.main([*options, *tests], [Reach(self.folder, package, out)]))

        reading, child = self._fork(work, quiet=False)
        os.close(reading)
        os.waitpid(child, 0)

    def warm(self, tests: list[str]) -> None:
        """Compile package and tests once, so that no later fork has to."""
        reading, child = self._fork(lambda _: int(pytest.main([*OPTIONS, "--co", *tests])))
        os.close(reading)
        os.waitpid(child, 0)

    def test(self, file: str, text: str, tests: dict[str, float]) -> Outcome:
        """Run ``tests``, each with its usual seconds, in order while ``file`` holds ``text``."""
        path = self.folder / file
        kept = path.with_name(path.name + ".kept")
        path.rename(kept)  # with its time, by which the compiled file is known
        path.write_text(text, encoding="utf-8")
        try:
            return self._judged(tests)
        finally:
            kept.replace(path)

    def _judged(self, tests: dict[str, float]) -> Outcome:
        def work(tell: Callable[[str], None]) -> int:
            sys.dont_write_bytecode = True
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            files = dict.fromkeys(name.partition("::")[0] for name in tests)
            return int(pytest.main([*OPTIONS, "--tb=no", *files], [_Chosen(list(tests), tell)]))

        began = time.monotonic()
        reading, child = self._fork(work)
        result, by, running = "", "", ""
        buffer = b""
        while not result:
            allowed = PATIENCE + 10 * tests.get(running, 0.0)
            if not select.select([reading], [], [], allowed)[0]:
                result, by = "timeout", running or "collection"
                break
            got = os.read(reading, 65536)
            if not got:
                break
            buffer += got
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                word, _, name = line.decode().partition(" ")
                if word == "failed":
                    result, by = "killed", name
                running = name
        os.close(reading)
        if result:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not result:
            code = os.waitstatus_to_exitcode(status)
            # 1: a test failed; 5: no test was left; otherwise the process itself has died.
            result = "survived" if code in (0, 5) else "killed"
            by = "" if result == "survived" else f"exit code {code} in {running}"
        return Outcome(result, by, round(time.monotonic() - began, 1))

    def _fork(
        self, work: Callable[[Callable[[str], None]], int], *, quiet: bool = True
    ) -> tuple[int, int]:
        """Start ``work`` in the copy; return where it tells its lines, and the process."""
        reading, writing = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if child:
            os.close(writing)
            return reading, child
        os.close(reading)
        self._work(work, writing, quiet=quiet)

    def _work(
        self, work: Callable[[Callable[[str], None]], int], writing: int, *, quiet: bool
    ) -> NoReturn:
        code = 70
        try:
            os.setsid()
            if quiet:
                nowhere = os.open(os.devnull, os.O_RDWR)
                for stream in (0, 1, 2):
                    os.dup2(nowhere, stream)
            os.chdir(self.folder)
            os.environ["PYTHONPATH"] = str(self.folder)
            inside = (str(self._root), "")
            others = [p for p in sys.path if p not in inside and not p.startswith(inside[0] + "/")]
            sys.path[:] = [str(self.folder), *others]
            for name in [n for n in sys.modules if n.partition(".")[0] == "tests"]:
                del sys.modules[name]
            _steady_hypothesis()
            code = work(lambda line: _write(writing, line))
        finally:
            os._exit(code)


class _Chosen:
    """A pytest plugin: keeps the chosen tests in their order, and tells what happens to them."""

    def __init__(self, names: list[str], tell: Callable[[str], None]) -> None:
        self._order = {name: at for at, name in enumerate(names)}
        self._tell = tell

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._order),
            key=lambda item: self._order[item.nodeid],
        )
        if self._order and not items:
            self._tell("failed collection")

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._tell("failed collection")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._tell(f"runs {nodeid}")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self._tell(f"failed {report.nodeid}")


def _steady_hypothesis() -> None:
    """Let hypothesis draw the same examples each time and lose no time on beautiful ones."""
    if "hypothesis" not in sys.modules:
        return
    from hypothesis import Phase, settings

    phases = (Phase.explicit, Phase.generate)
    settings.register_profile(
        "mutation", database=None, derandomize=True, deadline=None, phases=phases
    )
    settings.load_profile("mutation")


def _write(pipe: int, line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(pipe, line.encode() + b"\n")
