"""Which family a checkpoint is of, and the sites of any module."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from dar_probe.checkpoints.header import Header
from dar_probe.errors import ProbeError, UsageError, blamed
from dar_probe.files.text import quote
from dar_probe.models import (
    conventions,
    ddt,
    ditmoe,
    fit,
    jit,
    latte,
    lightningdit,
    maskdit,
    mdt,
    meanflow,
    opensora,
    rae,
    sit_family,
    udit,
    uvit,
)
from dar_probe.models.sit import SiT
from dar_probe.runtime.version import PAGES
from dar_probe.sites import discover, routed
from dar_probe.sites.family import Family, Identified
from dar_probe.sites.subject import Subject
from dar_probe.sites.unwrap import check_forward

DEFAULT = sit_family.FAMILY  # takes every file that has no mark of another family
# Compared in this order.
MARKED = (
    uvit.FAMILY,
    mdt.FAMILY,
    udit.FAMILY,
    ddt.FAMILY,
    rae.FAMILY,
    jit.FAMILY,
    meanflow.FAMILY,
    latte.FAMILY,
    opensora.FAMILY,
    fit.FAMILY,
    lightningdit.FAMILY,
    maskdit.FAMILY,
    ditmoe.FAMILY,
)
FAMILIES = (*MARKED, DEFAULT)


def family_of(header: Header, name: str | None = None) -> Family:
    """Return the family of a file, or the one that is asked for.

    Args:
        header: the file's header.
        name: of a family, or "package.module:FAMILY" for one of the user's own.

    Raises:
        UsageError: there is no such family.
    """
    if name is None:
        return next((family for family in MARKED if family.matches(header)), DEFAULT)
    home, _, attribute = name.partition(":")
    if not attribute:
        known = {family.name: family for family in FAMILIES}
        if name not in known:
            raise UsageError(
                f"unknown family {name!r}",
                hint=f"known: {', '.join(known)}; or package.module:FAMILY for one of your own",
            )
        return known[name]
    hint = "the current directory is on the import path"
    with blamed(
        lambda why: UsageError(f"the family {name!r} cannot be imported: {why}", hint=hint)
    ):
        found = getattr(importlib.import_module(home), attribute)
    if not isinstance(found, Family):
        raise UsageError(f"{name!r} is a {type(found).__name__}, not a dar_probe Family")
    return replace(
        found,
        identify=_guarded(found.identify, name, "identify"),
        build=_guarded(found.build, name, "build"),
        subject=_guarded(found.subject, name, "subject"),
        rivals=_guarded(found.rivals, name, "rivals") if found.rivals else None,
        norm=found.norm and _guarded(found.norm, name, "norm"),
        captions=found.captions and _guarded(found.captions, name, "captions"),
    )


def identify(family: Family, header: Header, heads: int | None = None) -> Identified:
    """Tell what a file is; settings that name an objective, and are not looked at, are said."""
    found = family.identify(header, heads)
    unread = conventions.OBJECTIVE_SETTINGS - header.asked
    told = {name: header.told(name) for name in sorted(unread)}
    named = {name: value for name, value in told.items() if value not in (None, False)}
    own = header.args.get("format") == "dar-probe"  # it names its objective as a whole
    if not named or own or family not in FAMILIES:  # others may read settings by another way
        return found
    listed = " and ".join(f"{name} {quote(value, 40)}" for name, value in named.items())
    said = (
        f"the settings name {listed}, which for {family.title} choose no objective: it is "
        f"{found.objective}; --objective overrides"
    )
    return replace(found, assumptions=[*found.assumptions, said])


def _guarded(call: Callable[..., Any], name: str, step: str) -> Callable[..., Any]:
    def refuse(why: str) -> UsageError:
        hint = f"{PAGES}/how-to/add-a-family.html says what it returns"
        return UsageError(f"{step!r} of the family {name!r} failed: {why}", hint=hint)

    def run(*args: Any) -> Any:
        with blamed(refuse):
            return call(*args)

    return run


def find(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    blocks: str | None = None,
    readers: str | None = None,
    live_only: bool = False,
    axes: str | None = None,
    asked: discover.Asked | None = None,
) -> Subject:
    """Name the sites of any module: known families by their file, others by discovery.

    The module must be without wrappers (``unwrap``), frozen and in eval mode. See
    ``discover.discover`` for the options.
    """
    check_forward(module, args, kwargs)
    if isinstance(module, SiT) and not blocks and not readers and not axes:
        return sit_family.subject(module)
    streams = routed.streams_of(module)
    if len(streams) == 1 and not blocks and not readers and not axes:
        if (found := routed.find(module, streams[0], args, kwargs)) is not None:
            return found
        streams = []  # it has no part in this forward
    subject = discover.discover(
        module, args, kwargs,
        blocks=blocks, readers=readers, live_only=live_only, axes=axes, asked=asked,
    )  # fmt: skip
    if streams and subject.granularity == "block":
        raise ProbeError(
            "what blocks hand on is not what they read: they share results through a stream of "
            "dar_probe.routing",
            hint="leave --blocks, --readers and --layout out; of several streams in one module "
            "none is measured: give the part that holds one",
        )
    return subject
