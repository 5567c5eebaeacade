"""The second engine: nnsight at the same sites, for interventions and for other people's modules.

nnsight changes the whole process when it is imported; this is the only file that imports it, and
it takes back what it can: ``torch.Tensor.backward`` and the ``save`` method on every object. Where
the user imported nnsight before, everything stays as they have it.
"""

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn

from dar_probe.errors import ProbeError
from dar_probe.probe.recorder import Visitor
from dar_probe.sites.packing import element, replaced
from dar_probe.sites.subject import Site

_ONE_AT_A_TIME = threading.RLock()  # nnsight's traces are not safe across threads
_STATE = "__nnsight__"  # what a wrapped module carries in its __dict__, beside ``forward``


def import_nnsight() -> ModuleType:
    """Return nnsight, imported without its effects on the rest of the process."""
    if "nnsight" in sys.modules:
        return sys.modules["nnsight"]
    backward = torch.Tensor.backward
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # of tqdm, in a notebook
        import nnsight
        import nnsight._c

    # Else any one-line ``with context: loss.backward()`` would do nothing, without a word.
    torch.Tensor.backward = backward  # type: ignore[method-assign]
    if nnsight._c.unmount is not None:
        nnsight._c.unmount("save")
    return cast(ModuleType, nnsight)


def forward(visitor: Visitor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the visitor's subject once and let the visitor meet every site; return the output.

    Values, sites and order are those of the hooks of ``Visitor``; so are the numbers, bit for bit.

    Raises:
        ProbeError: a site's module runs more than once in a forward, or a site is no module.
    """
    if visitor.subject.direct:
        raise ProbeError(
            "forwards of this module are called past their modules, where nnsight does not hear "
            "them",
            hint="leave --engine out: hooks measure it",
        )
    for reader in visitor.subject.readers:
        if reader.operation is not None:
            raise ProbeError(
                f"{reader.name!r} begins with an operation ({reader.operation.names[0]}), which is "
                "no module that nnsight could meet",
                hint="leave --engine out: hooks measure it",
            )
        if reader.call[1] > 1:
            raise ProbeError(
                f"the module at {reader.name!r} runs {reader.call[1]} times in one forward, and "
                "nnsight would meet its first call alone",
                hint="leave --engine out: the numbers are the same",
            )
    with _ONE_AT_A_TIME, wrapped(visitor.subject.model) as model:
        found: list[Any] = []
        _traced(model, args, kwargs, visitor, found)
        return found[0]


@contextmanager
def wrapped(model: nn.Module) -> Iterator[Any]:
    """Yield ``model`` as an nnsight envoy; unwrap it afterwards unless the user had wrapped it."""
    before = {module for module in model.modules() if _STATE in module.__dict__}
    try:
        yield import_nnsight().NNsight(model)
    finally:
        for module in model.modules():
            if module not in before:
                module.__dict__.pop(_STATE, None)
                module.__dict__.pop("forward", None)


def envoys(model: Any) -> dict[nn.Module, Any]:
    """Return the envoy of every module under an nnsight envoy."""
    return {envoy._module: envoy for envoy in model.modules()}


def _traced(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], visitor: Visitor, found: list[Any]
) -> None:
    # nnsight compiles the body of this block from its source; it holds one call on purpose.
    with model.trace(*args, **kwargs):
        _visit(model, visitor, found)


def _visit(model: Any, visitor: Visitor, found: list[Any]) -> None:
    subject, at = visitor.subject, envoys(model)
    for index, reader in enumerate(subject.readers):
        first = subject.last_source[index - 1] + 1 if index else 0
        for source in range(first, subject.last_source[index] + 1):
            if (passage := subject.passages.get(source)) is not None:
                visitor.see(source, _value(at, passage))
        if subject.writers is not None:
            visitor.write(index, at[subject.writers[index]].output)
        if index == 0 and subject.state_site is not None:
            visitor.remember(at[subject.state_site].inputs[0])
        _replace(at, reader, visitor.read(index, _value(at, reader)))
    found.append(model.output)


def _value(at: dict[nn.Module, Any], site: Site) -> Any:
    envoy = at[site.module]
    if site.when == "input":
        return envoy.input
    return element(envoy.output, site.item)


def _replace(at: dict[nn.Module, Any], site: Site, value: Any) -> None:
    envoy = at[site.module]
    if site.when == "input":
        envoy.input = value
    elif site.item is None:
        envoy.output = value
    else:
        envoy.output = replaced(envoy.output, site.item, value)
