"""Runs tests against changed code in forks of one process that has imported everything.

A change inside a function is made in memory: the function gets other code, and the tests that were
collected once run in a fork, which costs as much as they take. A change outside of functions
(constants, classes, defaults) needs new imports, in a process that has loaded torch but none of
ours. In both cases the file is changed too, for what tests start themselves.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.mutation.patch import patched
from tests.mutation.reach import Reach

# What takes seconds to import and is not ours.
PRELOADED = (
    "torch", "torch._dynamo", "numpy", "pandas", "xarray", "h5netcdf", "h5py", "scipy.stats",
    "safetensors.torch", "PIL.Image", "jinja2", "matplotlib.pyplot", "typer", "rich.console",
    "hypothesis",
)  # fmt: skip
OPTIONS = [
    "-q", "-s", "--tb=no", "-p", "no:randomly", "-p", "no:cacheprovider",
    "--continue-on-collection-errors",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",  # hypothesis is imported before
]  # fmt: skip
MEMORY = 12 * 2**30  # bytes of addresses; a mutant may ask for all there is
PATIENCE = 30.0  # seconds, beside ten times what a test takes, until it counts as endless
COLLECTION = 600.0  # seconds that collecting tests may take


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: "killed", "survived" or "timeout", by which test, in seconds."""

    result: str
    by: str
    seconds: float


class Server:
    """A copy of the tree at ``root`` in ``folder``, where the tests of ``files`` are collected."""

    def __init__(
        self,
        root: Path,
        folder: Path,
        files: list[str],
        package: str,
        *,
        keyword: str = "",
        preload: bool = True,
    ) -> None:
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis")
        shutil.copytree(root, folder, symlinks=True, ignore=ignored)
        self._root, self.folder, self._package = root.resolve(), folder.resolve(), package
        self._keyword = keyword
        os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
        for name in PRELOADED if preload else ():
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        self._all = self._session(files)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # of changed files; the first session wrote all
        sys.dont_write_bytecode = True

    def reach(self, file: str, out: Path) -> None:
        """Run a file's tests once and write to ``out`` which functions each of them runs."""
        for _ in self._all.ask({"reach": file, "out": str(out)}, lambda _: None):
            pass

    def test(self, file: str, text: str, stages: list[dict[str, float]]) -> Outcome:
        """Run tests, each with its usual seconds, in order while ``file`` holds ``text``."""
        path = self.folder / file
        kept = path.with_name(path.name + ".kept")
        old = path.read_text("utf-8")
        path.rename(kept)  # with its time, by which the compiled file is known
        path.write_text(text, encoding="utf-8")
        began = time.monotonic()
        try:
            tests = {name: time for stage in stages for name, time in stage.items()}
            result, by = self._judged(
                self._all, tests, {"file": str(path), "old": old, "new": text}
            )
            if result == "unfit":
                for stage in filter(None, stages):
                    files = list(dict.fromkeys(name.partition("::")[0] for name in stage))
                    with contextlib.closing(self._session(files)) as session:
                        result, by = self._judged(session, stage, None)
                    if result != "survived":
                        break
        finally:
            kept.replace(path)
        return Outcome(result, by, round(time.monotonic() - began, 1))

    def _judged(
        self, session: "_Session", tests: dict[str, float], patch: dict[str, str] | None
    ) -> tuple[str, str]:
        def allowed(running: str) -> float:
            return PATIENCE + 10 * tests.get(running, 0.0)

        running, result, by = "", "", ""
        command = {"tests": list(tests), "patch": patch}
        for word, rest in session.ask(command, allowed):
            if word == "runs":
                running = rest
            elif word in ("killed", "timeout", "unfit"):
                result, by = word, rest or running
            elif word == "ended" and rest != "0" and not result:
                # The process itself has died, of a signal or of its memory.
                result, by = "killed", f"exit code {rest} in {running or 'collection'}"
        return result or "survived", by

    def _session(self, files: list[str]) -> "_Session":
        return _Session(self._root, self.folder, files, self._package, self._keyword)


class _Session:
    """A process that has collected the tests of ``files`` and runs some of them when asked."""

    def __init__(
        self, root: Path, folder: Path, files: list[str], package: str, keyword: str
    ) -> None:
        asked, self._asks = os.pipe()
        self._answers, answered = os.pipe()
        self._buffer: list[str] = []
        self._log = folder.with_name("session.log")
        self._rest = b""
        sys.stdout.flush()
        self._process = os.fork()
        if not self._process:
            os.close(self._asks)
            os.close(self._answers)
            options = [f"-k={keyword}", *files] if keyword else files
            _serve(root, folder, options, package, os.fdopen(asked), answered)
        os.close(asked)
        os.close(answered)

    def ask(
        self, command: dict[str, Any], allowed: Callable[[str], float | None]
    ) -> Iterator[tuple[str, str]]:
        """Yield the answers to one command as they come, until "ended" and its exit code.

        ``allowed`` says how many seconds the running test may take before its process is killed.
        """
        with contextlib.suppress(BrokenPipeError):
            os.write(self._asks, json.dumps(command).encode() + b"\n")
        process, patience = 0, COLLECTION
        while True:
            line = self._line(patience)
            if line is None:
                yield "timeout", ""
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process or self._process, signal.SIGKILL)
                patience = COLLECTION
                continue
            word, _, rest = line.partition(" ")
            if word == "process":
                process = int(rest)
            if word == "runs":
                patience = allowed(rest) or COLLECTION
            yield word, rest
            if word == "ended":
                return

    def _line(self, patience: float) -> str | None:
        while not self._buffer:
            if not select.select([self._answers], [], [], patience)[0]:
                return None
            got = os.read(self._answers, 65536)
            if not got:
                raise RuntimeError(
                    f"the tests cannot be collected: {self._log.read_text()[-2000:]}"
                )
            *lines, self._rest = (self._rest + got).split(b"\n")
            self._buffer += [line.decode() for line in lines]
        return self._buffer.pop(0)

    def close(self) -> None:
        """End the process."""
        os.close(self._asks)
        os.close(self._answers)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)


def _serve(
    root: Path, folder: Path, files: list[str], package: str, asked: Any, answers: int
) -> NoReturn:
    """Be the process of a session: from here on there is nothing but the copied tree."""
    code = 70
    try:
        os.setsid()
        log = os.open(folder.with_name("session.log"), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(folder)
        installed = f"{sys.prefix}/"  # which may be a folder of the tree, as README has it
        sys.path[:] = [str(folder), *(p for p in sys.path if not _within(p, root, installed))]
        for name in [n for n in sys.modules if n.partition(".")[0] == "tests"]:
            del sys.modules[name]
        _steady_hypothesis()
        reach = Reach(folder, package)
        temporary = folder.with_name(f"temporary-{os.getpid()}")
        options = [*OPTIONS, f"--basetemp={temporary}"]
        sys.stderr.write(f"pytest {files}\n")
        code = int(pytest.main([*options, *files], [reach, _Loop(asked, answers, reach)]))
    finally:
        os._exit(code)


@dataclass(eq=False)
class _Loop:
    """A pytest plugin: in place of running all tests, does what it is asked, each in a fork."""

    asked: Any
    answers: int
    reach: Reach
    broken: bool = False
    counting: bool = False

    def tell(self, line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self.answers, line.encode() + b"\n")

    def pytest_collectreport(self, report: Any) -> None:
        self.broken = self.broken or report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: Any) -> bool:
        items = {item.nodeid: item for item in session.items}
        gc.collect()
        gc.freeze()
        for line in self.asked:
            command = json.loads(line)
            child = os.fork()
            if not child:
                os.setsid()
                self.tell(f"process {os.getpid()}")
                self._do(command, items)
            _, status = os.waitpid(child, 0)
            with contextlib.suppress(ProcessLookupError):  # what its tests have started
                os.killpg(child, signal.SIGKILL)
            self.tell(f"ended {os.waitstatus_to_exitcode(status)}")
        os._exit(0)

    def _do(self, command: dict[str, Any], items: dict[str, Any]) -> NoReturn:
        code = 70
        try:
            if "reach" in command:
                self.reach.start(Path(command["out"]))
                chosen = [
                    item for name, item in items.items() if name.startswith(command["reach"] + "::")
                ]
            else:
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
                chosen = [items[name] for name in command["tests"] if name in items]
                if command["patch"] is None:
                    if self.broken:
                        self._stop("killed collection")
                elif not patched(**command["patch"]):
                    self._stop("unfit")
            self.counting = "reach" not in command
            for item, following in zip(chosen, [*chosen[1:], None], strict=False):
                self.tell(f"runs {item.nodeid}")
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            self.reach.finish()
            code = 0
        finally:
            os._exit(code)

    def _stop(self, line: str) -> NoReturn:
        self.tell(line)
        os._exit(0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and self.counting:
            self._stop(f"killed {report.nodeid}")


def _within(path: str, root: Path, installed: str) -> bool:
    """Return whether a place of imports is the tree itself, rather than what is installed in it."""
    inside = path in ("", str(root)) or path.startswith(f"{root}/")
    return inside and not path.startswith(installed)


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
