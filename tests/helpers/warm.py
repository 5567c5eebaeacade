"""Runs commands in forked children of one process that has imported everything already.

A command line of its own costs seconds of importing torch, and does the same once it has. The
children see what a new process sees: arguments, folder, environment, files for stdout and stderr,
no terminal. Not shown are the interpreter's own start and end; some tests start a real one.
"""

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 600.0  # until a command counts as hanging, and is killed
SPARE = 8 * 2**30  # bytes of addresses that a command may ask for


@dataclass(frozen=True)
class Done:
    """What came of one command; ``returncode`` is minus the signal that ended it."""

    arguments: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    seconds: float


def run(
    *arguments: object, cwd: Path | str | None = None, seconds: float = SECONDS,
    fresh: bool = True, light: bool = False, **environment: str,
) -> Done:  # fmt: skip
    """Run one command.

    Args:
        arguments: of ``dar-probe``.
        cwd: where; here if left out.
        seconds: after so many it is killed.
        fresh: in a child of its own, else in that of the last command if it is still alive.
        light: leave out pages and figures, which are nearly all of the time.
        environment: on top of this process's.
    """
    wanted = [os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments]
    server = _server()
    assert server.stdin and server.stdout
    with tempfile.TemporaryDirectory() as folder:
        request = {
            "arguments": wanted, "cwd": os.fspath(cwd or os.getcwd()), "seconds": seconds,
            "fresh": fresh, "light": light, "environment": {**os.environ, **environment},
            "paths": [os.path.join(folder, name) for name in ("stdout", "stderr")],
        }  # fmt: skip
        request["environment"].setdefault("COLUMNS", "80")
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        reply = json.loads(server.stdout.readline())
        out, err = (Path(path).read_bytes().decode() for path in request["paths"])
    return Done(tuple(wanted), reply["code"], out, err, reply["seconds"])


_running: list["subprocess.Popen[str]"] = []


def _server() -> "subprocess.Popen[str]":
    if not _running:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.warm"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            # As strict as a terminal: what cannot be encoded is an error, not a surrogate.
            env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        )  # fmt: skip
        _running.append(server)
        atexit.register(_stop, server)
    return _running[0]


def _stop(server: "subprocess.Popen[str]") -> None:
    assert server.stdin and server.stdout
    server.stdin.close()
    server.stdout.close()
    server.wait()


class _Child:
    """A forked process that runs one command after the other."""

    def __init__(self) -> None:
        orders, self._orders = os.pipe()
        self._replies, replies = os.pipe()
        self._id = os.fork()
        if self._id == 0:
            os.close(self._orders)
            os.close(self._replies)
            try:
                _obey(orders, replies)
            finally:  # a child that fails must never go on as its parent
                os._exit(1)
        os.close(orders)
        os.close(replies)
        self._lines = open(self._replies)

    def run(self, order: str) -> str | None:
        """Return the reply; None from a child that died instead."""
        os.write(self._orders, order.encode())
        return self._lines.readline() or None

    def end(self) -> int:
        """Return the exit code."""
        os.close(self._orders)
        self._lines.close()
        _, status = os.waitpid(self._id, 0)
        return os.waitstatus_to_exitcode(status)


def serve() -> None:
    """Answer requests on stdin until it ends."""
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _import_everything()
    child = None
    for request in requests:
        if child and json.loads(request)["fresh"]:
            child.end()
            child = None
        child = child or _Child()
        began = time.monotonic()
        reply = child.run(request)
        if reply is None:
            reply = _reply(child.end(), time.monotonic() - began)
            child = None
        replies.write(reply)
        replies.flush()
    if child:
        child.end()


def _obey(orders: int, replies: int) -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = open(0, closefd=False)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, used + SPARE))
    with open(orders) as lines:
        for line in lines:
            order = json.loads(line)
            os.chdir(order["cwd"])
            os.environ.clear()
            os.environ.update(order["environment"])
            for number, path in enumerate(order["paths"], 1):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(descriptor, number)
                os.close(descriptor)
            if order["light"]:
                _lighten()
            began = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, order["seconds"])  # nobody handles it: it kills
            code = _command(order["arguments"])
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.write(replies, _reply(code, time.monotonic() - began).encode())
    os._exit(0)


def _command(arguments: list[str]) -> int:
    """Run one command in this process, and end it as the interpreter would."""
    from dar_probe import cli

    sys.argv = ["dar-probe", *arguments]
    code: object = 0
    try:
        cli.main()
    except SystemExit as leave:
        code = leave.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


def _reply(code: int, seconds: float) -> str:
    return json.dumps({"code": code, "seconds": seconds}) + "\n"


def _import_everything() -> None:
    import dar_probe.api
    import dar_probe.cli.shared.intervention_table
    import dar_probe.comparison
    import dar_probe.models.inspection
    import dar_probe.probe.bench
    import dar_probe.reports.pages.analysis
    import dar_probe.reports.pages.comparison
    import dar_probe.reports.pages.junit
    import dar_probe.reports.printing
    import dar_probe.training.loop  # noqa: F401

    _command(["--help"])
    # The first model makes torch import a second half of itself. No backward must come before a
    # fork: autograd would refuse every one after it.
    _command(["inspect", str(ROOT / "fixtures" / "digits-residual.pt")])


def _lighten() -> None:
    from dar_probe.reports import printing
    from dar_probe.reports.draw import matplotlib
    from dar_probe.reports.pages import analysis, comparison, study

    def save(figure: Any, path: Path, **_: Any) -> None:
        path.touch()

    matplotlib.save = printing.save = save
    matplotlib.draw = printing.draw = printing.write_all = lambda *_, **__: None
    analysis.render = comparison.render = study.render = lambda *_, **__: ""


if __name__ == "__main__":
    serve()
