"""Runs every command under a guard that writes down and refuses whatever turns to a network.

    unshare --user --map-root-user --net python tests/supply/offline.py

runs in the current directory and prints JSON: the exit code of every command, the attempts, and
what left the network namespace. An audit hook cannot be taken away: this is a process of its own.
"""

import json
import socket
import subprocess
import sys
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
# Whether a name is asked for or an address is called; both ends of a pair in this process are not.
EVENTS = {
    "socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
    "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo",
}  # fmt: skip
COUNTERS = {
    "Ip OutRequests", "Ip OutNoRoutes", "Tcp ActiveOpens", "Udp OutDatagrams",
    "Ip6OutRequests", "Ip6OutNoRoutes", "Udp6OutDatagrams",
}  # fmt: skip
MODELS = """
import transformers
from tests.models.diffusers import tiny

def language():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=2, bos_token_id=1, eos_token_id=2))

def pictures():
    return tiny.build("dit")
"""
attempts: list[str] = []


def guard(event, arguments):
    """Refuse what turns to a network; sockets of the file system have a path for an address."""
    if event in EVENTS and not isinstance(arguments[-1], str | bytes):
        attempts.append(f"{event} {arguments[1:]!r}")
        raise PermissionError(f"{event}: there is no network here")


def sent():
    """Return the kernel's counters of this network namespace: what C code sent counts too."""
    lines = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines()]
    pairs = {
        f"{names[0][:-1]} {name}": int(value)
        for names, values in zip(lines[::2], lines[1::2], strict=True)
        for name, value in zip(names[1:], values[1:], strict=True)
    }
    with suppress(FileNotFoundError):  # a kernel without IPv6
        rows = Path("/proc/net/snmp6").read_text().splitlines()
        pairs |= {name: int(value) for name, value in map(str.split, rows)}
    return {name: value for name, value in pairs.items() if name in COUNTERS}


def commands():
    """Return what is run, in order: small sizes, every command and both kinds of foreign model."""
    grid = ["--samples", "2", "--noise-levels", "2"]
    checkpoint = "run/checkpoints/step-0000004.pt"
    pairs = ["--kinds", "gate", "--pairs", "2"]
    size = ["--depth", "2", "--width", "16", "--batch-size", "8"]
    return [
        ["--version"],
        ["doctor"],
        ["train", "--routing", "dar", *size, "--steps", "4", "--out", "run"],
        ["inspect", checkpoint],
        ["analyze", checkpoint, *grid, "--out", "one"],
        ["report", "one"],
        ["figures", "one", "--only", "dilution", "--out", "drawn"],
        ["ablate", checkpoint, *grid, *pairs, "--engine", "nnsight", "--out", "two"],
        ["compare", "one", "two"],
        ["bench", checkpoint, "--repeats", "1", "--batch-size", "2"],
        ["audit", "guarded_models:language", "--samples", "2"],
        ["audit", "guarded_models:pictures", "--samples", "2", "--noise-levels", "2"],
        ["inspect", "pipeline"],
        ["analyze", "pipeline", *grid, "--out", "pictures"],
    ]


@contextmanager
def undrawn():
    """Write analyses without their pages and figures."""
    from dar_probe.reports import printing
    from dar_probe.reports.pages import analysis

    render = mock.patch.object(analysis, "render", lambda *_, **__: "")
    with render, mock.patch.object(printing, "write_all", lambda *_, **__: None):
        yield


def main():
    """Run everything in the current directory and print what was found."""
    sys.addaudithook(guard)
    sys.path.insert(0, str(ROOT))
    from typer.testing import CliRunner

    from dar_probe.cli import app
    from tests.models.diffusers import tiny

    Path("guarded_models.py").write_text(MODELS)
    before = sent()
    tiny.save("dit", Path("pipeline"))
    done = {}
    for command in commands():
        # Pages are drawn once, by report: drawing takes longer than all the rest.
        with nullcontext() if command[0] == "report" else undrawn():
            result = CliRunner().invoke(app, command)
        done[" ".join(command)] = [result.exit_code, result.output[-2000:]]
    found = {"done": done, "attempts": list(attempts), "sent": [before, sent()]}
    # What the guard and the counters are worth: one attempt of each kind, which they must see.
    with suppress(OSError):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    native = ["timeout", "1", "bash", "-c", ": >/dev/tcp/192.0.2.1/80"]
    subprocess.run(native, capture_output=True, check=False)
    print(json.dumps({**found, "planted": [attempts[len(found["attempts"]) :], sent()]}))


if __name__ == "__main__":
    main()
