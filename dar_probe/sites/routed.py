"""The sites of a module whose sublayers share their results through a ``dar_probe.routing`` stream.

A stream tells what every sublayer reads and writes, and with which weights: nothing is discovered.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dar_probe.errors import ProbeError
from dar_probe.routing.stream import Stream, options_of
from dar_probe.sites.boundaries import facts
from dar_probe.sites.hooks import hooked
from dar_probe.sites.packing import Item
from dar_probe.sites.subject import Passage, Reader, Source, Subject, offered_by_addition
from dar_probe.sites.tracing import is_norm

NO_ROUTES = (
    "mixes channels or normalises as it adds: it has no scalar routes, so states are measured alone"
)

ALONE = (
    "what a sublayer reads from the routing stream is used by the module that takes it alone, and "
    "by no function of the forward beside it"
)


def streams_of(model: nn.Module) -> list[Stream]:
    """Return the streams in a module."""
    return [part for part in model.modules() if isinstance(part, Stream)]


def find(
    model: nn.Module, stream: Stream, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Subject | None:
    """Name the sites of a module with one stream; None where nothing reads that.

    One forward of one sample is run for it.

    Args:
        model: frozen and in eval mode.
        stream: a part of it.
        args: of one sample.
        kwargs: of one sample.

    Raises:
        ProbeError: some readers of the stream do not read once.
    """
    seen = _Seen(stream)
    with seen.watching(model), torch.no_grad():
        model(*args, **kwargs)
    if not seen.counts:
        return None
    names, layout = [*names_of(stream), "head"], stream.layout
    for name, module in zip(names, seen.reading, strict=True):
        if (count := seen.counts.get(module, 0)) != 1:
            raise ProbeError(
                f"the reader {name!r} of the routing stream read {count} times in one forward, "
                "expected once",
                hint="let the model read once for each sublayer of the stream's layout, and once "
                "more for its head",
            )
    takers = list(seen.takers.values())
    # Where each state is taken by a module of its own, sites are there, as in the bundled model:
    # the weights of a read are known only after it, and interventions need them.
    # A state that several take is tapped where it is read, so that no branch is missed.
    taken = not seen.shared and len(set(takers)) == len(seen.reading) and set(takers) <= seen.once
    readers = []
    for name, kind, block, module in zip(
        names, [*layout.kinds, "head"], [*layout.blocks, layout.blocks[-1] + 1], seen.reading,
        strict=True,
    ):  # fmt: skip
        taker = seen.takers.get(module)
        normed = taker is not None and is_norm(taker) and module not in seen.shared
        site = {"module": taker} if taken else {
            "module": module, "when": "output", "item": seen.items[module],
        }  # fmt: skip
        readers.append(Reader(name=name, kind=kind, block=block, normed=normed, **site))
    scheme, fields = stream.scheme, shared(stream)
    if taken:
        fields["assumptions"] = (*fields.get("assumptions", ()), ALONE)
    return Subject(
        model=model, family="module", readers=tuple(readers),
        sources=tuple(sources_of(stream)), entrance=stream.writers[0],
        facts={
            **facts(model, layout.blocks[-1], seen.state),
            "routing": scheme.name,
            **{option: getattr(stream, option, None) for option in options_of(scheme.name)},
        },
        **fields,
    )  # fmt: skip


def names_of(stream: Stream) -> list[str]:
    """Return the names of the sublayers."""
    layout = stream.layout
    return [f"block {k} {kind}" for k, kind in zip(layout.blocks, layout.kinds, strict=True)]


def sources_of(stream: Stream) -> Iterator[Source]:
    """Yield what is handed to a stream, and what rewrites it between two reads."""
    yield Source(name="embedding", kind="embedding", block=0)
    layout = stream.layout
    for l, name in enumerate(names_of(stream), 1):
        kind, k = layout.kinds[l - 1], layout.blocks[l - 1]
        fusion = stream.fusion(l)
        if fusion is not None:
            before = Passage(module=fusion)
            yield Source(name=f"block {k} skip", kind="fusion", block=k, before=before)
        yield Source(name=name, kind=kind, block=k)


def shared(stream: Stream) -> dict[str, Any]:
    """Return the fields of a ``Subject`` that say how its readers share the sources."""
    sources, readers = tuple(sources_of(stream)), len(stream.readers)
    if stream.additive:
        # A fusion is known only as a difference of what the stream was before and after.
        writers = tuple(stream.writers) if len(sources) == readers else None
        return {"offered": offered_by_addition(sources), "writers": writers}
    if not stream.scalar:
        return {
            "offered": tuple(() for _ in range(readers)),
            "granularity": "block",
            "assumptions": (f"the routing {stream.scheme.name} {NO_ROUTES}",),
        }
    return {
        "offered": tuple(stream.offered(l) for l in range(1, readers + 1)),
        "writers": tuple(stream.writers),
        "routes": lambda arguments: stream.routes(arguments[0]),
        "state_site": stream.opened,
        "router": stream,
    }


class _Seen:
    """What the readers of a stream gave in one forward, and whether a norm took it.

    Attributes:
        reading: the module that gives each reader its state.
        counts, items: per reader how often it read, and which part of its output is the state.
        takers: the first module outside of the stream that takes the state of each.
        shared: those whose state other modules take as well.
        state: what the first one read (N, T, D).
    """

    state: Tensor

    def __init__(self, stream: Stream) -> None:
        self.counts: dict[nn.Module, int] = {}
        self.items: dict[nn.Module, Item] = {}
        self.takers: dict[nn.Module, nn.Module] = {}
        self.shared: set[nn.Module] = set()
        self._calls: Counter[nn.Module] = Counter()
        self.reading = [stream.reading(l) for l in range(1, len(stream.readers) + 1)]
        self._stream = stream
        self._last: tuple[nn.Module, Tensor] | None = None

    @property
    def once(self) -> set[nn.Module]:
        """The modules outside of the stream that ran once."""
        return {module for module, count in self._calls.items() if count == 1}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Watch the forwards of a model."""
        own = set(self._stream.modules())
        with hooked() as handles:
            for reader in self.reading:
                handles.append(reader.register_forward_hook(self._read))
            for module in model.modules():
                if module not in own and not list(module.children()):
                    handles.append(module.register_forward_pre_hook(self._taken))
            yield

    def _read(self, reader: nn.Module, args: Any, output: Any) -> None:
        item = None if isinstance(output, Tensor) else 0
        state: Tensor = output if isinstance(output, Tensor) else output[0]
        if not self.counts:
            self.state = state
        self.counts[reader] = self.counts.get(reader, 0) + 1
        self.items[reader] = item
        self._last = reader, state

    def _taken(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._calls[module] += 1
        if self._last is None or not any(value is self._last[1] for value in args):
            return
        reader, _ = self._last
        if reader in self.takers:
            self.shared.add(reader)
        self.takers.setdefault(reader, module)
