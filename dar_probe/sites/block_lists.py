"""Which modules of a model are its blocks: by the lists they are in, or by name."""

from collections import Counter
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from dar_probe.errors import UsageError
from dar_probe.runtime.sharded import class_of
from dar_probe.sites.homes import uncalled
from dar_probe.sites.hooks import hooked
from dar_probe.sites.tracing import is_norm
from dar_probe.sites.unwrap import plain_name

LISTS = nn.ModuleList | nn.Sequential | nn.ModuleDict


def members(model: nn.Module) -> list[nn.Module]:
    """Return the members of all outermost lists of blocks, and single blocks of their kind.

    Lists of blocks are those whose members hold norms; without any, those of two or more modules of
    one class with parts of their own. Empty places of a list do not count.

    Returns:
        Blocks in the order of the model; a single one may run several times, and one that is a list
        of modules itself runs as long as these do; none where there is no such list.
    """
    lists = {
        name: _filled(module) for name, module in model.named_modules() if isinstance(module, LISTS)
    }
    by_norm = {
        name: found
        for name, found in lists.items()
        if found
        and all(any(map(is_norm, member.modules())) for member in found)
        and not any(map(is_norm, found))
        and not _holds_stages(found)
    }
    alike = {
        name: found
        for name, found in lists.items()
        if len(found) > 1
        and len(set(map(class_of, found))) == 1
        and all(next(member.children(), None) is not None for member in found)
        and not isinstance(found[0], LISTS)
    }
    # A dict may as well hold what is chosen from, such as heads: it counts where there is no list.
    chosen: dict[str, list[nn.Module]] = {}
    for candidates in (by_norm, alike):
        chosen = chosen or _without_dicts(model, candidates) or candidates
    for name in list(chosen):
        home, _, _ = name.rpartition(".")
        parent = model.get_submodule(home)
        if type(parent) is nn.ModuleList and not _holds_stages(list(parent.children())):
            chosen.setdefault(home, list(parent.children()))  # each of its lists is one block
    # A list within a block of another list belongs to that block.
    outer = {
        name: found
        for name, found in chosen.items()
        if not any(name.startswith(f"{other}.") for other in chosen)
    }
    kinds = {class_of(one) for found in outer.values() for one in found if not uncalled(one)}
    homes = {name.rpartition(".")[0] for name in outer}
    single = [
        child
        for home in homes
        for child in model.get_submodule(home).children()
        if class_of(child) in kinds
    ]
    return [*(member for found in outer.values() for member in found), *single]


def _holds_stages(found: list[nn.Module]) -> bool:
    """Tell whether the members of a list are lists of blocks: stages, each of one kind.

    One that runs its members itself may as well be a block of two residuals, of one norm each.
    """
    stages = [
        _filled(one)
        for one in found
        if uncalled(one)
        or (isinstance(one, nn.ModuleList) and min(map(_norms, _filled(one)), default=0) > 1)
    ]
    return bool(stages) and all(len(set(map(class_of, one))) == 1 for one in stages)


def _norms(module: nn.Module) -> int:
    return sum(map(is_norm, module.modules()))


def _filled(module: nn.Module) -> list[nn.Module]:
    """Return the members of a list but those that hold a place."""
    return [child for child in module.children() if not isinstance(child, nn.Identity)]


def _without_dicts(
    model: nn.Module, lists: dict[str, list[nn.Module]]
) -> dict[str, list[nn.Module]]:
    kept = (name for name in lists if not isinstance(model.get_submodule(name), nn.ModuleDict))
    return {name: lists[name] for name in kept}


def repeated(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[nn.Module]:
    """Return the outermost modules with parts of their own that run several times in a forward.

    Blocks that share their weights are such: one module, which runs once for each of them.
    """
    count: Counter[nn.Module] = Counter()
    parts = {id(part): part for part in model.modules() if next(part.children(), None) is not None}
    with hooked() as handles, torch.no_grad():
        for part in parts.values():
            handles.append(part.register_forward_pre_hook(lambda m, _: count.update([m])))
        model(*args, **kwargs)
    often = [part for part in parts.values() if count[part] > 1 and not isinstance(part, LISTS)]
    inner = {id(part) for outer in often for part in outer.modules() if part is not outer}
    return [part for part in often if id(part) not in inner]


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
