"""Which modules of a model are its blocks: by the lists they are in, or by name."""

from fnmatch import fnmatchcase

from torch import nn

from dar_probe.errors import ProbeError, UsageError
from dar_probe.sites.tracing import is_norm
from dar_probe.sites.unwrap import plain_name


def members(model: nn.Module) -> list[nn.Module]:
    """Return the members of all outermost lists of blocks, and single blocks of their kind."""
    lists = {
        name: list(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        and len(module)
        and all(any(map(is_norm, member.modules())) for member in module)
        and not any(map(is_norm, module))
    }
    parents = {name: model.get_submodule(name.rpartition(".")[0]) for name in lists if name}
    if any(type(parent) is nn.ModuleList for parent in parents.values()):
        raise ProbeError(
            "this stack cannot be probed: its blocks are lists of modules, which have no output",
            hint="make each block a module of its own",
        )
    # A list within a block of another list belongs to that block.
    outer = {
        name: members
        for name, members in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists)
    }
    kinds = {type(member) for members in outer.values() for member in members}
    homes = {name.rpartition(".")[0] for name in outer}
    single = [
        child
        for home in homes
        for child in model.get_submodule(home).children()
        if type(child) in kinds
    ]
    found = [*(member for members in outer.values() for member in members), *single]
    if len(found) < 2:
        raise ProbeError(
            "no stack of blocks was found in the module",
            hint="the probe looks for a ModuleList of two or more blocks that hold norms",
        )
    return found


def named(model: nn.Module, patterns: str) -> list[nn.Module]:
    """Return the modules whose names fit one of the patterns, part by part."""
    found = []
    for pattern in patterns.split(","):
        parts = pattern.strip().split(".")
        fits = [
            module
            for name, module in model.named_modules()
            if len(own := plain_name(name).split(".")) == len(parts)
            and all(map(fnmatchcase, own, parts))
        ]
        if not fits:
            names = [plain_name(name) for name, module in model.named_modules() if is_norm(module)]
            raise UsageError(
                f"no module is called {pattern.strip()!r}",
                hint=f"names are those of named_modules(), such as {', '.join(names[:2])}",
            )
        found += fits
    return found
