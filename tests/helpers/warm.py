"""Runs commands and scripts in forked children of one process that has imported everything.

A command line of its own costs seconds of importing torch, and does the same once it has. The
children see what a new process sees: arguments, folder, environment, files for stdout and stderr,
no terminal. Not shown are the interpreter's own start and end; some tests start a real one.
"""

import atexit
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from tests.helpers import undrawn

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
    begun = begin(
        *arguments, cwd=cwd, seconds=seconds, fresh=fresh, light=light, **environment
    )  # fmt: skip
    return begun.wait()


def script(
    path: Path, *arguments: object, cwd: Path | str | None = None, **environment: str
) -> Done:
    """Run a Python file as ``python path arguments`` does, in a child of its own."""
    return begin(*arguments, cwd=cwd, path=path, **environment).wait()


def ranks(
    processes: int, path: Path, *arguments: object, seconds: float = 120, light: bool = False
) -> Done:
    """Run a Python file in the processes of one job, each with the variables that torchrun sets.

    Nobody watches over the job: a test of what happens when a process dies needs torchrun itself.

    Returns:
        What all of them said, in the order of their ranks, and the largest exit code.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
           "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    begun = [
        begin(*arguments, path=path, seconds=seconds, light=light, RANK=str(rank),
              LOCAL_RANK=str(rank), **job)
        for rank in range(processes)
    ]  # fmt: skip
    done = [one.wait() for one in begun]
    return Done(
        done[0].arguments, max((one.returncode for one in done), key=abs),
        "".join(one.stdout for one in done), "".join(one.stderr for one in done),
        max(one.seconds for one in done),
    )  # fmt: skip


def begin(
    *arguments: object, cwd: Path | str | None = None, seconds: float = SECONDS,
    fresh: bool = True, light: bool = False, path: Path | None = None, **environment: str,
) -> "Begun":  # fmt: skip
    """Start one command, or with ``path`` a Python file, and return while it runs; see ``run``."""
    wanted = [os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments]
    folder = tempfile.TemporaryDirectory()
    request = {
        "arguments": wanted, "cwd": os.fspath(cwd or os.getcwd()), "seconds": seconds,
        "fresh": fresh, "light": light, "path": path and os.fspath(path),
        "environment": {**os.environ, **environment},
        "paths": [os.path.join(folder.name, name) for name in ("stdout", "stderr")],
    }  # fmt: skip
    request["environment"].setdefault("COLUMNS", "80")
    return Begun(tuple(wanted), _ask(request)["process"], folder)


@dataclass(frozen=True)
class Begun:
    """A command that runs; ``process`` is its id, for signals."""

    arguments: tuple[str, ...]
    process: int
    folder: "tempfile.TemporaryDirectory[str]"

    def wait(self) -> Done:
        """Return what came of it; once."""
        reply = _ask({"process": self.process})
        with self.folder as folder:
            out, err = (
                Path(folder, name).read_bytes().decode() if Path(folder, name).exists() else ""
                for name in ("stdout", "stderr")
            )
        return Done(self.arguments, reply["code"], out, err, reply["seconds"])


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    server = _server()
    assert server.stdin and server.stdout
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    reply: dict[str, Any] = json.loads(server.stdout.readline())
    return reply


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

    _ours: ClassVar[set[int]] = set()  # ends of pipes, which no other child may keep open

    def __init__(self) -> None:
        orders, self._orders = os.pipe()
        self._replies, replies = os.pipe()
        self._ours |= {self._orders, self._replies}
        self.process = os.fork()
        if self.process == 0:
            for descriptor in self._ours:
                os.close(descriptor)
            try:
                _obey(orders, replies)
            finally:  # a child that fails must never go on as its parent
                os._exit(1)
        os.close(orders)
        os.close(replies)
        self._lines = open(self._replies)
        self._began = time.monotonic()

    def begin(self, order: str) -> None:
        """Let it run a command."""
        self._began = time.monotonic()
        os.write(self._orders, order.encode())

    def reply(self) -> str | None:
        """Wait for the end of the command; None from a child that died of it."""
        return self._lines.readline() or None

    def end(self) -> tuple[int, float]:
        """Return the exit code, and seconds since the last command began."""
        self._ours -= {self._orders, self._replies}
        os.close(self._orders)
        self._lines.close()
        _, status = os.waitpid(self.process, 0)
        return os.waitstatus_to_exitcode(status), time.monotonic() - self._began


def serve() -> None:
    """Answer requests on stdin until it ends."""
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _import_everything()
    running: dict[int, _Child] = {}
    idle: _Child | None = None  # has run a command, and may run another
    for request in requests:
        asked = json.loads(request)
        if "process" in asked:
            child = running.pop(asked["process"])
            reply = child.reply()
            if reply is None:
                reply = _reply(*child.end())
            else:
                if idle:
                    idle.end()
                idle = child
        else:
            if idle and asked["fresh"]:
                idle.end()
                idle = None
            child = idle or _Child()
            idle = None
            child.begin(request)
            running[child.process] = child
            reply = json.dumps({"process": child.process}) + "\n"
        replies.write(reply)
        replies.flush()
    for child in (*running.values(), *([idle] if idle else [])):
        child.end()


def _obey(orders: int, replies: int) -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = open(0, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever a shell ignores for us
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
                undrawn.lighten()
            began = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, order["seconds"])  # nobody handles it: it kills
            code = _command(order["arguments"], order["path"])
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.write(replies, _reply(code, time.monotonic() - began).encode())
    os._exit(0)


def _command(arguments: list[str], path: str | None = None) -> int:
    """Run one command or file in this process, and end it as the interpreter would."""
    from dar_probe import cli

    sys.argv = [path or "dar-probe", *arguments]
    code: object = 0
    try:
        if path is None:
            cli.main()
        else:
            sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
            runpy.run_path(path, run_name="__main__")
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
    import dar_probe.cli.shared.announcement
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


if __name__ == "__main__":
    serve()
