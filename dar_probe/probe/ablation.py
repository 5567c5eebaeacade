"""Real interventions beside gradients: what the loss does when a gate is set to zero.

Gates act on values: keys, queries and weights see the ungated source. Everything downstream of a
changed read follows from it. N samples, T tokens, D features; R readers, S sources.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dar_probe.errors import ProbeError, UsageError
from dar_probe.probe.measure import Batch, Engine, Loss, Recorded, hooks, record, reduce
from dar_probe.probe.recorder import Recorder, Together, Visitor
from dar_probe.results.interventions import KIND_TEXT
from dar_probe.routing.mixing import mixture
from dar_probe.runtime.sharded import gathered
from dar_probe.sites.subject import Subject

KINDS = tuple(KIND_TEXT)
# Kinds that skip a block: for which streams, and how their names end.
STREAMS = {"block": ("image", "text"), "image_block": ("image",), "text_block": ("text",)}
NAMED = {"block": "", "image_block": " for the image", "text_block": " for the text"}


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """One intervention.

    Attributes:
        kind: "gate" (one source for one reader), "source" (one source for all readers), "block"
            (a block's writes for all readers outside it: the block is skipped, for both streams
            where there are two), "image_block" and "text_block" (for one of two streams),
            "uniform" (a router's weights are made equal), "frozen" (they are those of another
            noise level).
        name: e.g. "block 3 mlp without embedding".
        gates: the (reader, source) pairs, from 0, whose gate is zero.
        second: the same of the second stream.
        router: the reader, from 0, whose weights are replaced.
    """

    kind: str
    name: str
    gates: frozenset[tuple[int, int]] = frozenset()
    second: frozenset[tuple[int, int]] = frozenset()
    router: int | None = None


def choose(
    subject: Subject, gate: np.ndarray, *, kinds: Iterable[str], pairs: int, seed: int
) -> list[Intervention]:
    """Return the changes of the wanted ``kinds``.

    Single gates would be thousands. Half of the ``pairs`` are those of the largest mean square,
    the rest is drawn from all others, so that a comparison with gradients meets weak gates too.

    Args:
        subject: the sites.
        gate: signed gates (levels, samples, R, S), NaN where not offered.
        kinds: some of ``KINDS``.
        pairs: how many single gates.
        seed: random seed of the draw.

    Raises:
        UsageError: no such kind, or a router or a block is to be changed where there is none.
    """
    kinds = tuple(kinds)
    check_kinds(subject, kinds)
    found: list[Intervention] = []
    if "gate" in kinds:
        found += [single(subject, l, i) for l, i in _pairs(subject, gate, pairs, seed)]
    if "source" in kinds:
        found += [_removed(subject, "source", s.name, [i]) for i, s in enumerate(subject.sources)]
    for kind in kinds:
        if kind in STREAMS:
            found += [_skipped(subject, kind, block) for block in _blocks(subject)]
    for kind in ("uniform", "frozen"):
        if kind in kinds:
            found += [
                Intervention(kind=kind, name=f"{reader.name}, {kind} weights", router=l)
                for l, reader in enumerate(subject.readers)
                if len(subject.offered[l]) > 1
            ]
    # What ends a stage is read by nobody there.
    return [one for one in found if one.gates or one.second or one.router is not None]


def check_kinds(subject: Subject, kinds: Iterable[str]) -> None:
    """Refuse kinds that ``choose`` does not know, or that the model has nothing for.

    Raises:
        UsageError: no such kind, or a router or a block is to be changed where there is none.
    """
    kinds = tuple(kinds)
    if reason := subject.facts.get("blind"):
        raise UsageError(
            "interventions are held against gates, and the gradients of this model are not those "
            f"of its loss: {reason}",
            hint="let all of the blocks run with autograd",
        )
    if unknown := set(kinds) - set(KINDS):
        raise UsageError(
            f"unknown intervention {sorted(unknown)[0]!r}", hint=f"known: {', '.join(KINDS)}"
        )
    routed = subject.routes is not None
    if subject.granularity == "block":
        raise UsageError(
            "this model has no residual stream whose sources could be taken away",
            hint="analyze and audit measure what can be measured between its blocks",
        )
    if not routed and {"uniform", "frozen"} & set(kinds):
        raise UsageError(
            "this model has no router whose weights could be replaced",
            hint="leave out uniform and frozen",
        )
    if subject.second is None and {"image_block", "text_block"} & set(kinds):
        raise UsageError(
            "one stream is measured, so that no block can be skipped for one of two",
            hint="--stream all measures both of a joint model",
        )
    if set(STREAMS) & set(kinds) and not can_skip(subject):
        raise UsageError(
            "this model rewrites its stream between blocks, so that no block can be skipped",
            hint="--kinds gate,source takes sources from readers",
        )


def kinds_for(subject: Subject) -> list[str]:
    """Return the kinds that a model has something for."""
    routers = ("uniform", "frozen")
    return [
        kind
        for kind in KINDS
        if (subject.routes is not None or kind not in routers)
        and (kind not in STREAMS or can_skip(subject))
        and (kind not in ("image_block", "text_block") or subject.second is not None)
    ]


def can_skip(subject: Subject) -> bool:
    """Tell whether blocks can be skipped: nothing but readers takes their writes."""
    sources = (*subject.sources, *(subject.second.sources if subject.second else ()))
    return not any(source.kind == "fusion" for source in sources)


def single(subject: Subject, reader: int, source: int) -> Intervention:
    """Return the change that sets one gate to zero, both numbers from 0.

    Raises:
        UsageError: there is no such reader, or it is not offered the source.
    """
    if not 0 <= reader < len(subject.readers) or source not in subject.offered[reader]:
        raise UsageError(
            f"reader {reader + 1} is not offered source {source}",
            hint=f"readers are 1 to {len(subject.readers)}, sources are numbered from 0 "
            "(the embedding) and enter later readers",
        )
    name = f"{subject.readers[reader].name} without {subject.sources[source].name}"
    return Intervention(kind="gate", name=name, gates=frozenset({(reader, source)}))


def measure(
    subject: Subject,
    batch: Batch,
    loss: Loss,
    sample_ids: Tensor,
    noise_level: Tensor,
    changes: list[Intervention],
    *,
    frozen_at: float,
    engine: Engine = hooks,
) -> dict[str, Tensor]:
    """Return gate_ablated and gate_linear (N, changes): the true and the predicted loss change.

    The prediction is first order: minus the sum of the gates that are set to zero; for a router
    <G_l, h'_l - h_l> with the read h'_l that the other weights would make of the same sources.
    The model must be frozen and in eval mode.

    Args:
        subject: the model and its sites.
        batch: inputs for a mixed batch.
        loss: loss per sample.
        sample_ids: (N,).
        noise_level: (N,).
        changes: what is done, one at a time.
        frozen_at: noise level whose weights "frozen" takes, sample by sample.
        engine: runs one forward.
    """
    args, kwargs = batch(sample_ids, noise_level)
    frozen = None
    with torch.no_grad():
        if any(change.kind == "frozen" for change in changes):
            there = batch(sample_ids, torch.full_like(noise_level, frozen_at))
            frozen = _weights(subject, there, engine)
        before = loss(subject.model(*args, **kwargs), sample_ids, noise_level)
    recorded = record(subject, batch, loss, sample_ids, noise_level, engine=engine)
    with torch.no_grad():
        linear = _predict(subject, recorded, changes, frozen)
        del recorded
        true = []
        for change in changes:
            editor: Visitor = Editor(subject, change, frozen)
            if subject.second is not None:
                other = replace(change, gates=change.second, router=None)
                editor = Together([editor, Editor(subject.second, other)])
            output = engine(editor, args, kwargs)
            true.append(loss(output, sample_ids, noise_level) - before)
    return {"gate_ablated": torch.stack(true, 1), "gate_linear": torch.stack(linear, 1)}


class Editor(Visitor):
    """Replaces reads of one forward as a change demands.

    Args:
        subject: the model and its sites.
        change: what is done.
        frozen: weights of every reader (N, T, offered), for a change of kind "frozen".
    """

    def __init__(
        self, subject: Subject, change: Intervention, frozen: list[Tensor] | None = None
    ) -> None:
        super().__init__(subject)
        self.change = change
        self.frozen = frozen
        self._reads: list[Tensor] = []
        self._writes: list[Tensor] = []
        self._seen: dict[int, Tensor] = {}
        self._state: tuple[Any, ...] | None = None
        self._reader_after = {last: l for l, last in enumerate(subject.last_source)}

    def read(self, index: int, value: Tensor) -> Tensor:
        """Return what reader ``index`` gets instead of ``value``."""
        view = self.subject.readers[index].view
        stream = view.take(value)
        self._reads.append(stream)
        if index == self.change.router:
            return view.put(value, stream + self.rerouted(index))
        gone = sorted(i for l, i in self.change.gates if l == index)
        if not gone:
            return value
        weights = self._weights(index)
        for i in gone:
            source = self._source(i)
            if weights is not None:
                source = source * weights[..., self.subject.offered[index].index(i), None]
            stream = stream - source
        return view.put(value, stream)

    def see(self, source: int, value: Tensor) -> None:
        """Keep the stream (N, T, D) before a fusion."""
        self._seen[source] = self.subject.passages[source].view.take(value)

    def write(self, index: int, value: Tensor) -> None:
        """Keep a write (N, T, D)."""
        self._writes.append(value)

    def remember(self, state: tuple[Any, ...]) -> None:
        """Keep the routing state."""
        self._state = state

    def rerouted(self, index: int) -> Tensor:
        """Return h'_l - h_l for the replaced weights."""
        weights = self._weights(index)
        assert weights is not None
        offered = self.subject.offered[index]
        if self.change.kind == "frozen":
            assert self.frozen is not None
            difference = self.frozen[index] - weights
        else:
            difference = 1 / len(offered) - weights
        return mixture(difference, [self._source(i) for i in offered])

    def _weights(self, index: int) -> Tensor | None:
        if self.subject.routes is None:
            return None
        assert self._state is not None
        routes = self.subject.routes(self._state)
        if index >= len(routes):  # the site lies within the read, before its weights are kept
            raise ProbeError(
                f"no module takes what {self.subject.readers[index].name!r} reads, and its weights "
                "are known only after the read",
                hint="let a norm, or an nn.Identity(), of its own take what each sublayer reads",
            )
        return routes[index]

    def _source(self, i: int) -> Tensor:
        if self.subject.writers is not None:
            return self._writes[i]
        after = self._state_after(i)
        return after if self.subject.sources[i].begins else after - self._state_after(i - 1)

    def _state_after(self, i: int) -> Tensor:
        """Return the stream after source ``i`` has entered it."""
        return self._seen[i + 1] if i + 1 in self._seen else self._reads[self._reader_after[i]]


def _predict(
    subject: Subject, recorded: Recorded, changes: list[Intervention], frozen: list[Tensor] | None
) -> list[Tensor]:
    recorder, grads = recorded.recorder, recorded.grads
    gate = reduce(recorded)["gate"]
    second = reduce(recorded.second)["gate"] if recorded.second is not None else gate
    found = []
    for change in changes:
        if change.router is None:
            found.append(-_sum(gate, change.gates) - _sum(second, change.second))
            continue
        editor = Editor(subject, change, frozen)
        editor.remember(recorder.state or ())
        for index, write in enumerate(recorder.writes):
            editor.write(index, write)
        with gathered(subject.model, subject.router):
            difference = editor.rerouted(change.router)
        found.append((grads[change.router] * difference).sum((1, 2)).to(gate.dtype))
    return found


def _sum(gate: Tensor, pairs: frozenset[tuple[int, int]]) -> Tensor:
    """Return the sums (N,) of the gates (N, R, S) of these readers and sources."""
    readers, sources = [l for l, _ in sorted(pairs)], [i for _, i in sorted(pairs)]
    return gate[:, readers, sources].sum(-1)


def _weights(
    subject: Subject, inputs: tuple[tuple[Any, ...], dict[str, Any]], engine: Engine
) -> list[Tensor]:
    recorder = Recorder(subject)
    engine(recorder, *inputs)
    recorder.check()
    assert subject.routes is not None and recorder.state is not None
    with gathered(subject.model, subject.router):
        return subject.routes(recorder.state)


def _blocks(subject: Subject) -> list[int]:
    """Return the blocks that write to either stream, as the first one counts them."""
    found = {source.block for source in subject.sources} - {0}
    if subject.second is not None:
        ahead = subject.second.facts["ahead"]
        found |= {s.block + ahead for s in subject.second.sources if s.block} & set(
            range(1, subject.readers[-1].block)
        )
    return sorted(found)


def _skipped(subject: Subject, kind: str, block: int) -> Intervention:
    """Return the change that skips a block, for the streams of its kind."""
    pairs: dict[str, frozenset[tuple[int, int]]] = {"image": frozenset(), "text": frozenset()}
    own = {"image": (subject, block)}
    if subject.second is not None:
        own["text"] = subject.second, block - subject.second.facts["ahead"]
    for stream in STREAMS[kind]:
        if stream in own:
            where, number = own[stream]
            sources = [i for i, source in enumerate(where.sources) if source.block == number > 0]
            pairs[stream] = _removed(where, kind, "", sources, outside=number).gates
    name = f"without block {block}{NAMED[kind]}"
    return Intervention(kind=kind, name=name, gates=pairs["image"], second=pairs["text"])


def _removed(
    subject: Subject, kind: str, name: str, sources: list[int], *, outside: int | None = None
) -> Intervention:
    """Return the change that takes sources away from all readers but those of one block."""
    pairs = {
        (l, i)
        for l, reader in enumerate(subject.readers)
        for i in sources
        if i in subject.offered[l] and reader.block != outside
    }
    return Intervention(kind=kind, name=f"without {name}", gates=frozenset(pairs))


def _pairs(subject: Subject, gate: np.ndarray, count: int, seed: int) -> list[tuple[int, int]]:
    square = np.square(gate, dtype=np.float64).mean((0, 1))
    offered = [(l, i) for l, ids in enumerate(subject.offered) for i in ids if len(ids) > 1]
    ranked = sorted(offered, key=lambda pair: -square[pair])
    top, rest = ranked[: (count + 1) // 2], ranked[(count + 1) // 2 :]
    drawn = np.random.default_rng(seed).permutation(len(rest))[: count // 2]
    return [*top, *(rest[at] for at in sorted(drawn))]
