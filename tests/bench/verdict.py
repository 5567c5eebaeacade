"""How soon a user sees the verdict of a shipped checkpoint, and when all of its files are there.

    python tests/bench/verdict.py --threads 1

Every row is a whole process, started anew: its processor time and its wall time, each the median of
the rounds, and the share of the processor time of the complete ``dar-probe analyze``. The rows are
measured in turn within each round.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "fixtures" / "digits-residual.pt"
CLI = [sys.executable, "-m", "dar_probe.cli"]
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    made = common.start(common.parser(__doc__), repeats=5)
    few = ["--samples", "2", "--noise-levels", "2"] if made.small else []
    environment = dict(os.environ)
    if made.threads:
        environment["OMP_NUM_THREADS"] = str(made.threads)
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out")
        analyze = [*CLI, "analyze", str(FIXTURE), *few]
        imports = [sys.executable, "-c", "import dar_probe.api"]
        found: dict[str, list[tuple[float, float]]] = {}
        for _ in range(made.repeats):
            for name, command in (
                ("imports", imports),
                ("analyze", [*analyze, "--out", out]),
                ("analyze --no-figures", [*analyze, "--out", f"{out}-bare", "--no-figures"]),
                ("figures", [*CLI, "figures", out]),
            ):
                verdict, whole = timed(command, environment)
                if verdict:
                    found.setdefault(f"{name}: verdict on the screen", []).append(verdict)
                found.setdefault(name, []).append(whole)
    total = statistics.median(cpu for cpu, _ in found["analyze"])
    rows = []
    for name, times in found.items():
        cpu, wall = (statistics.median(column) for column in zip(*times, strict=True))
        rows.append([name, f"{cpu:.2f}", f"{wall:.2f}", f"{100 * cpu / total:.1f} %"])
    common.table(["what", "processor s", "wall s", "share of analyze"], rows)
    common.finish(made.device)


def timed(
    command: list[str], environment: dict[str, str]
) -> tuple[tuple[float, float] | None, tuple[float, float]]:
    """Run a command; return (processor, wall) seconds until its verdict, if any, and in all."""
    began, verdict = time.monotonic(), None
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if verdict is None and "PreNorm dilution" in line:
                verdict = used(process.pid), time.monotonic() - began
        said = process.stderr.read() if process.stderr else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(said)
    return verdict, (usage.ru_utime + usage.ru_stime, time.monotonic() - began)


def used(pid: int) -> float:
    """Return the processor seconds that a running process has used, as Linux tells."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


if __name__ == "__main__":
    main()
