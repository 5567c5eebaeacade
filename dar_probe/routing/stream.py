"""The protocol by which the sublayers of a model share their results across depth."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dar_probe.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Kind and block of every sublayer 1..L.

    Attributes:
        kinds: "attention", "mlp", "cross_attention" or "parallel", one per sublayer.
        blocks: the block of each sublayer, counted from 1.
    """

    kinds: tuple[str, ...]
    blocks: tuple[int, ...]

    @classmethod
    def transformer(cls, depth: int) -> "Layout":
        """Return the layout of ``depth`` blocks of attention and MLP."""
        return cls(
            kinds=("attention", "mlp") * depth,
            blocks=tuple(k for k in range(1, depth + 1) for _ in range(2)),
        )

    def __len__(self) -> int:
        return len(self.kinds)


class Stream(nn.Module):
    """How sublayer l gets h_l (``read``) and hands on v_l (``write``).

    A stream holds parameters only; everything of one forward lives in the state that ``open``
    returns, so that several forwards may be in flight. Every read goes through
    ``self.readers[l - 1]`` and every write through ``self.writers[i]``: both can be hooked.
    """

    additive: ClassVar[bool] = False
    """True where a reader gets the plain sum of all earlier writes."""
    scalar: ClassVar[bool] = True
    """True where what a reader reads is a sum of sources with scalar weights: ``routes``."""
    dynamic: ClassVar[bool] = False
    """True where the routes of one reader differ between samples or tokens."""

    def __init__(self, width: int, layout: Layout) -> None:
        super().__init__()
        self.width = width
        self.layout = layout
        sites = len(layout) + 1
        self.readers = nn.ModuleList(nn.Identity() for _ in range(sites))
        self.writers = nn.ModuleList(nn.Identity() for _ in range(sites))

    def init_host(self, model: nn.Module) -> None:
        """Have the last word on the host model's own initialisation; default: nothing."""

    def open(self, v_0: Tensor, t_emb: Tensor | None = None) -> Any:
        """Start one forward from the embedding ``v_0`` (N, T, D) and ``t_emb`` (N, D)."""
        raise NotImplementedError

    def read(self, state: Any, l: int) -> Tensor:
        """Return h_l (N, T, D) for l = 1..L+1; once each, in order."""
        raise NotImplementedError

    def write(self, state: Any, l: int, v_l: Tensor) -> None:
        """Hand on the output v_l (N, T, D) of sublayer l, its gate multiplied in."""
        raise NotImplementedError

    def fusion(self, l: int) -> nn.Module | None:
        """Return what rewrites the whole stream before reader l reads it; mostly nothing does.

        Its first input is the stream as it was, its output the stream as it is from then on.
        """
        return None

    def scale_of(self, l: int) -> Tensor | None:
        """Return a factor (D,) that belongs to what sublayer l writes; mostly there is none."""
        return None

    def offered(self, l: int) -> tuple[int, ...]:
        """Return the ids of the sources that reader l may use, in the order of its routes."""
        return tuple(range(l))

    def routes(self, state: Any) -> list[Tensor]:
        """Return per reader the weights (N, T, sources) or (sources,) over ``offered(l)``.

        Not to be asked where ``scalar`` is False.
        """
        raise NotImplementedError


@dataclass
class Turns:
    """Base of a state: readers must take their turns.

    A block that is run again for its backward (activation checkpointing) would read a stream
    that has moved on, and give wrong gradients without a word.
    """

    turns: int = field(default=0, kw_only=True)

    def turn(self, reader: int) -> None:
        """Take note that ``reader`` reads.

        Raises:
            UsageError: another reader is the next one.
        """
        if reader != self.turns + 1:
            raise UsageError(
                f"reader {reader} reads the stream out of turn, expected reader {self.turns + 1}",
                hint="checkpoint the branches (attention, MLP), not whole blocks",
            )
        self.turns += 1


@torch.no_grad()
def open_gates(model: nn.Module) -> None:
    """Start the adaLN gates of every block at one, for streams that start closed themselves."""
    for block in model.get_submodule("blocks").children():
        last: Any = block.get_submodule("adaLN_modulation.1")
        last.bias.view(6, -1)[[2, 5]] = 1.0  # shift, scale, gate of attention; then of the MLP


SCHEMES: dict[str, Callable[..., Stream]] = {}


def register(name: str) -> Callable[[type[Stream]], type[Stream]]:
    """Make a Stream class known under the name that ``--routing`` takes."""

    def enter(cls: type[Stream]) -> type[Stream]:
        SCHEMES[name] = cls
        return cls

    return enter


OPTIONS = ("query", "chunk_size", "streams", "dilation", "period")  # that flags and files name
OF_THE_START = ("zero_time",)  # that weights from a file do not ask for


def options_of(name: str, among: tuple[str, ...] = OPTIONS) -> tuple[str, ...]:
    """Return which of these options the stream called ``name`` takes; none for an unknown name."""
    taken = inspect.signature(SCHEMES[name]).parameters if name in SCHEMES else {}
    return tuple(option for option in among if option in taken)


def make(name: str, width: int, layout: Layout, **options: Any) -> Stream:
    """Build the stream called ``name``.

    Raises:
        UsageError: no scheme has this name, or it does not take one of the options.
    """
    if name not in SCHEMES:
        raise UsageError(f"unknown routing {name!r}", hint=f"known: {', '.join(sorted(SCHEMES))}")
    try:
        return SCHEMES[name](width, layout, **options)
    except TypeError as error:
        raise UsageError(f"routing {name!r} does not take {', '.join(options)}") from error
