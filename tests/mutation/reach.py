"""A pytest plugin that lists which functions of the package each test runs, and its seconds."""

import json
import os
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest


class Reach:
    """Follows calls; what a shared fixture runs counts for every test that uses the fixture."""

    def __init__(self, root: Path, package: str) -> None:
        self._folder = f"{root / package}{os.sep}"
        self._root = root
        self._out: Path | None = None
        self._known: dict[CodeType, tuple[str, str] | None] = {}
        self._sets: list[set[tuple[str, str]]] = [set()]
        self._fixtures: dict[tuple[str, str], tuple[set[tuple[str, str]], float]] = {}
        self._own: dict[str, tuple[set[tuple[str, str]], float]] = {}
        self._uses: dict[str, list[tuple[str, str]]] = {}
        self._failed: set[str] = set()

    def start(self, out: Path) -> None:
        """Follow from now on, to write ``out`` in the end."""
        self._out = out

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        """Note one call; None says that its lines are of no interest."""
        code = frame.f_code
        try:
            where = self._known[code]
        except KeyError:
            where = None
            if code.co_filename.startswith(self._folder):
                file = os.path.relpath(os.path.realpath(code.co_filename), self._root)
                where = (file, code.co_qualname.split(".<locals>")[0])
            self._known[code] = where
        if where:
            self._sets[-1].add(where)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        if self._out is None or fixturedef.scope == "function":
            return (yield)
        self._sets.append(set())
        began = time.monotonic()
        try:
            return (yield)
        finally:
            key = (fixturedef.argname, fixturedef.baseid)
            reached, seconds = self._fixtures.get(key, (set(), 0.0))
            more = time.monotonic() - began
            self._fixtures[key] = (reached | self._sets.pop(), max(seconds, more))
            self._inside += more

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> Any:
        if self._out is None:
            return (yield)
        self._sets, self._inside = [set()], 0.0
        began = time.monotonic()
        sys.settrace(self._see)
        threading.settrace(self._see)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            own = time.monotonic() - began - self._inside
            self._own[item.nodeid] = (self._sets[0], max(own, 0.0))
            self._uses[item.nodeid] = [
                (name, definition.baseid)
                for name, definitions in item._fixtureinfo.name2fixturedefs.items()
                for definition in definitions
            ]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self._failed.add(report.nodeid)

    def finish(self) -> None:
        """Write what was seen."""
        if self._out is None:
            return
        rows = {}
        for name, (reached, seconds) in self._own.items():
            if name in self._failed:
                continue  # it cannot tell a mutant from the original
            reached = set(reached)
            for key in self._uses[name]:
                more, cost = self._fixtures.get(key, (set(), 0.0))
                reached |= more
                seconds += cost
            by: dict[str, list[str]] = defaultdict(list)
            for file, function in sorted(reached):
                by[file].append(function)
            rows[name] = {"seconds": round(seconds, 3), "reached": by}
        self._out.write_text(json.dumps(rows, indent=0), encoding="utf-8")
