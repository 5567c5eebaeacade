"""The protocol by which the sublayers of a model share their results across depth."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dar_probe.errors import UsageError
from dar_probe.routing import schemes
from dar_probe.routing.schemes import ALL_OPTIONS, OPTIONS, Scheme


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
    ``self.readers[l - 1]`` and every write through ``self.writers[i]``: both can be hooked. So can
    ``self.opened``, which gets the state of each forward when it begins.
    """

    additive: ClassVar[bool] = False
    """True where a reader gets the plain sum of all earlier writes."""
    scheme: ClassVar[Scheme]
    """What ``register`` was told: name, title, description, options."""
    scalar: ClassVar[bool] = True
    """True where what a reader reads is a sum of sources with scalar weights; ``register`` sets it
    from ``routes``."""
    dynamic: ClassVar[bool] = False
    """True where the routes of one reader differ between samples or tokens."""

    def __init__(self, width: int, layout: Layout) -> None:
        super().__init__()
        self.width = width
        self.layout = layout
        sites = len(layout) + 1
        self.readers = nn.ModuleList(nn.Identity() for _ in range(sites))
        self.writers = nn.ModuleList(nn.Identity() for _ in range(sites))
        self.opened = nn.Identity()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "open" in vars(cls):
            cls.open = _announced(cls.open)  # type: ignore[method-assign]

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

    def reading(self, l: int) -> nn.Module:
        """Return the module that gives h_l, as its output or the first part of it."""
        return self.readers[l - 1]

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


def _announced(begin: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method ``open`` that shows the state to whoever watches ``opened``."""

    @wraps(begin)
    def begun(self: Stream, *args: Any, **kwargs: Any) -> Any:
        return self.opened(begin(self, *args, **kwargs))

    return begun


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
                hint="checkpoint, or fully_shard, the branches (attention, MLP), not whole blocks",
            )
        self.turns += 1


@torch.no_grad()
def open_gates(model: nn.Module) -> None:
    """Start the adaLN gates of every block at one, for streams that start closed themselves."""
    for block in model.get_submodule("blocks").children():
        last: Any = block.get_submodule("adaLN_modulation.1")
        last.bias.view(6, -1)[[2, 5]] = 1.0  # shift, scale, gate of attention; then of the MLP


SCHEMES: dict[str, type[Stream]] = {}  # those whose module has been imported


def register(
    name: str,
    *,
    title: str,
    about: str,
    label: str = "",
    options: tuple[str, ...] = (),
    routes: bool = True,
) -> Callable[[type[Stream]], type[Stream]]:
    """Make a Stream class known under the name that ``--routing`` takes.

    In this folder every argument must be a literal, because ``schemes`` reads them from the
    source. See ``schemes.Scheme`` for what they mean.
    """
    scheme = Scheme(
        name=name, title=title, about=about, label=label, options=options, routes=routes
    )

    def enter(cls: type[Stream]) -> type[Stream]:
        taken = {option for option in ALL_OPTIONS if option in inspect.signature(cls).parameters}
        assert taken == set(options), f"{name} takes {sorted(taken)} and registers {options}"
        cls.scheme, cls.scalar = scheme, routes
        SCHEMES[name] = cls
        return cls

    return enter


def class_of(name: str) -> type[Stream] | None:
    """Return the class of a scheme, of this folder or registered by others; None for no scheme."""
    home = schemes.home_of(name)
    if name not in SCHEMES and home is not None:
        import_module(home)
    return SCHEMES.get(name)


def scheme_of(name: str) -> Scheme | None:
    """Return what a scheme's ``@register`` says; None for an unknown name."""
    return SCHEMES[name].scheme if name in SCHEMES else schemes.known().get(name)


def options_of(name: str, among: tuple[str, ...] = OPTIONS) -> tuple[str, ...]:
    """Return which of these options the scheme called ``name`` takes; none for an unknown name."""
    scheme = scheme_of(name)
    return tuple(option for option in among if scheme and option in scheme.options)


def make(name: str, width: int, layout: Layout, **options: Any) -> Stream:
    """Build the stream called ``name``.

    Raises:
        UsageError: no scheme has this name, or it does not take one of the options.
    """
    cls: Any = class_of(name)
    if cls is None:
        names = sorted({*schemes.known(), *SCHEMES})
        raise UsageError(f"unknown routing {name!r}", hint=f"known: {', '.join(names)}")
    try:
        stream: Stream = cls(width, layout, **options)
    except TypeError:
        raise UsageError(f"routing {name!r} does not take {', '.join(options)}") from None
    return stream
