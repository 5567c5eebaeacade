"""The bundled backbone: SiT, DiT and REPA layouts, plain or routed."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dar_probe.errors import CheckpointError
from dar_probe.models.sit import SiT, SiTConfig
from dar_probe.subjects.subject import Reader, Source, Subject


def build(config: SiTConfig, state: Mapping[str, Tensor]) -> SiT:
    """Build the model of ``config`` with the weights of ``state``, all of them and no others.

    Raises:
        CheckpointError: a weight is missing, left over, or of another shape.
    """
    model = SiT(config)
    expected = model.state_dict()
    for name in [*expected, *state]:
        if name not in state or name not in expected:
            what = "misses the weight" if name not in state else "has the unknown weight"
            raise CheckpointError(f"the checkpoint {what} {name[:120]!r}")
        if state[name].shape != expected[name].shape:
            raise CheckpointError(
                f"the weight {name!r} has shape {tuple(state[name].shape)}, "
                f"expected {tuple(expected[name].shape)}"
            )
    model.load_state_dict(state)
    return model.eval()


def subject(model: SiT, *, family: str = "sit") -> Subject:
    """Name the sites of a bundled model, at sublayer granularity."""
    stream, layout, depth = model.stream, model.stream.layout, model.config.depth
    norms = [block.get_submodule(norm) for block in model.blocks for norm in ("norm1", "norm2")]
    names = [f"block {k} {kind}" for k, kind in zip(layout.blocks, layout.kinds, strict=True)]
    sublayers = list(zip(names, layout.kinds, layout.blocks, norms, strict=True))
    routed = not stream.additive

    def routes(arguments: tuple[Any, ...]) -> list[Tensor]:
        weights = stream.routes(arguments[1])
        assert weights is not None
        return weights

    return Subject(
        model=model,
        family=family,
        readers=(
            *(Reader(name=n, kind=kind, block=k, module=m) for n, kind, k, m in sublayers),
            Reader(name="head", kind="head", block=depth + 1, module=model.final_layer.norm_final),
        ),
        sources=(
            Source(name="embedding", kind="embedding", block=0),
            *(Source(name=n, kind=kind, block=k) for n, kind, k, _ in sublayers),
        ),
        offered=tuple(stream.offered(reader) for reader in range(1, len(layout) + 2)),
        writers=tuple(stream.writers),
        routes=routes if routed else None,
        state_site=model.blocks[0] if routed else None,
        facts=_facts(model, family),
    )


def _facts(model: SiT, family: str) -> dict[str, Any]:
    config = model.config
    routed = config.routing == "dar"
    return {
        "family": family,
        "routing": config.routing,
        "query": config.query if routed else None,
        "chunk_size": config.chunk_size if routed else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "depth": config.depth,
        "width": config.width,
        "heads": config.heads,
        "tokens": (config.input_size // config.patch) ** 2,
    }
