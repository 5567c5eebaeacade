"""How much memory this process can still have; imports no torch."""

import os
from pathlib import Path

GIB = 2**30
_INFO = Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def available() -> int:
    """Return the bytes that can still be allocated in the machine's own memory.

    That is the least of what the kernel has and what each control group leaves; what swap could
    take is not counted, a probe that swaps is of no use.
    """
    return min([_kernel(), *_groups()])


def _kernel() -> int:
    """Return what the kernel reckons can be had without swapping."""
    if _INFO.exists():
        for line in _INFO.read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) * 1024
    # Systems without it, macOS among them: all there is, as the best guess.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _groups() -> list[int]:
    """Return what every control group of this process, v1 or v2, leaves below its limit."""
    left = []
    for line in _OWN.read_text().splitlines() if _OWN.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        v2 = controllers == ""
        root = _CGROUPS if v2 else _CGROUPS / "memory"
        limit, usage, cache = (
            ("memory.max", "memory.current", "inactive_file")
            if v2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        # A container sees its own group as the root, whatever the path says.
        own = root / path.lstrip("/")
        for folder in {root, own, *(p for p in own.parents if p.is_relative_to(root))}:
            most, used = _number(folder / limit), _number(folder / usage)
            if most is not None and used is not None:
                # Pages of files that nobody uses are given up before anything fails.
                left.append(max(0, most - used + _statistic(folder / "memory.stat", cache)))
    return left


def _number(path: Path) -> int | None:
    """Return the number in a file; None where there is no file, or it says "max"."""
    text = path.read_text().strip() if path.exists() else "max"
    return int(text) if text != "max" else None


def _statistic(path: Path, name: str) -> int:
    rows = (line.split() for line in path.read_text().splitlines()) if path.exists() else ()
    return next((int(value) for key, value in rows if key == name), 0)
