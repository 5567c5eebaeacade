"""Modules whose parameters lie in pieces on several processes: FSDP2 and tensor parallel.

All processes of such a module take part in every forward and backward: they run in step.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from dar_probe.errors import ProbeError
from dar_probe.runtime.ranks import ALONE, Ranks
from dar_probe.runtime.torch_private import forget_reduction_dtypes


def is_sharded(model: nn.Module) -> bool:
    """Tell whether parameters of a module lie in pieces on several processes, or of one alone."""
    return bool(fsdp_parts(model)) or any(map(is_dtensor, model.parameters()))


def fsdp_parts(model: nn.Module) -> list[Any]:
    """Return the modules that ``fully_shard`` has taken, the outer ones first."""
    kind = _loaded("torch.distributed.fsdp", "FSDPModule")
    return [] if kind is None else [part for part in model.modules() if isinstance(part, kind)]


def is_dtensor(value: Any) -> bool:
    """Tell whether a value is a tensor that is spread over processes."""
    kind = _loaded("torch.distributed.tensor", "DTensor")
    return kind is not None and isinstance(value, kind)


def whole(value: Tensor) -> Tensor:
    """Return all of a tensor; of one that is spread over processes all must ask in step."""
    return value.full_tensor() if is_dtensor(value) else value  # type: ignore[attr-defined]


def own_part(value: Tensor) -> Tensor:
    """Return what of a tensor lies in this process."""
    return value.to_local() if is_dtensor(value) else value  # type: ignore[attr-defined]


def class_of(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module was made of: ``fully_shard`` puts a class of its own on it."""
    kind = _loaded("torch.distributed.fsdp", "FSDPModule")
    if kind is None or not isinstance(module, kind):
        return type(module)
    return next(one for one in type(module).__mro__ if not issubclass(one, kind))


def ranks_of(model: nn.Module) -> Ranks:
    """Return this process among those that share a module, in step; alone where nothing is shared.

    Raises:
        ProbeError: the module concerns some processes of the job alone.
    """
    if not is_sharded(model):
        return ALONE
    import torch.distributed as dist

    reshard(model)
    sizes = [p.device_mesh.size() for p in model.parameters() if is_dtensor(p)]  # type: ignore[attr-defined]
    world = dist.get_world_size()
    if max(sizes, default=1) != world:
        raise ProbeError(
            f"the module is sharded over {max(sizes, default=1)} of the {world} processes of this "
            "job: the others would wait for ever",
            hint="start as many processes as the mesh has, or shard over all of them",
        )
    return Ranks(rank=dist.get_rank(), world=world, in_step=True)


def reshard(model: nn.Module) -> None:
    """Let FSDP give back what it gathered, so that its own parameters are in their places."""
    for part in fsdp_parts(model):
        part.reshard()


@contextmanager
def resharded(model: nn.Module) -> Iterator[None]:
    """Hold the parameters of FSDP in their places before and after, however it ends within."""
    reshard(model)
    if not fsdp_parts(model):
        yield
        return
    try:
        with warnings.catch_warnings():
            # It warns of what in-place operations would do, and those are refused.
            warnings.filterwarnings("ignore", ".*returned a view tensor", UserWarning)
            yield
    except BaseException:
        # A forward or a backward may have ended half-way.
        for part in _outermost(fsdp_parts(model)):
            if hasattr(part, "reset_iter_state"):  # since torch 2.13
                part.reset_iter_state()
        raise
    finally:
        for part in fsdp_parts(model):
            part.reshard()
            forget_reduction_dtypes(part)  # it may have looked while all was frozen


@contextmanager
def gathering(model: nn.Module) -> Iterator[Callable[[Tensor], None]]:
    """Let a forward within be followed by backwards from any of its states.

    FSDP gathers the parameters of a module again where a backward comes to its output; one that
    begins at a state inside would read memory that is given back. Here whatever comes to a state
    that a module takes or returns gathers what the state was made with, one module at a time; so
    it does at others that what is yielded is called with, as soon as they are made.
    """
    parts = fsdp_parts(model)
    if not parts:
        yield lambda value: None
        return
    keeper = _Keeper(_chains(model, parts))
    handles = []
    try:
        for module in model.modules():
            handles.append(
                module.register_forward_pre_hook(keeper.enter, with_kwargs=True, prepend=True)
            )
            handles.append(module.register_forward_hook(keeper.leave))
        yield keeper.meet
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def gathered(model: nn.Module, inside: nn.Module | None) -> Iterator[None]:
    """Hold the parameters that modules ``inside`` of a model use as whole tensors."""
    parts = fsdp_parts(model) if inside is not None else []
    if inside is None or not parts:
        yield
        return
    chains = _chains(model, parts)
    wanted = list(dict.fromkeys(part for module in inside.modules() for part in chains[module]))
    for part in wanted:
        part.unshard()
    try:
        yield
    finally:
        for part in wanted:
            part.reshard()


class Origins:
    """Tells what tensors were before FSDP handed them on as new ones, to the modules it has taken.

    A state that is used elsewhere too, as by a long skip, has all of its gradient there.
    """

    def __init__(self) -> None:
        self._origins = WeakIdKeyDictionary()
        self._given: list[list[Tensor]] = []

    def of(self, value: Tensor) -> Tensor:
        """Return what a tensor was outside of all modules of FSDP."""
        while value in self._origins:
            value = self._origins[value]
        return value

    def watch(self, model: nn.Module) -> Iterator[RemovableHandle]:
        """Stand before and behind what FSDP does at its modules."""
        for part in fsdp_parts(model):
            yield part.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)
            yield part.register_forward_pre_hook(self._behind, with_kwargs=True)

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._given.append(list(tensors_of([args, kwargs])))

    def _behind(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        for old, new in zip(self._given.pop(), tensors_of([args, kwargs]), strict=True):
            if new is not old:
                self._origins[new] = old


class _Keeper:
    """Gathers what states were made with: parameters of one module, and of those around it.

    Args:
        chains: per module those of FSDP that hold it.
    """

    def __init__(self, chains: dict[nn.Module, tuple[Any, ...]]) -> None:
        self._chains = chains
        self._held: tuple[Any, ...] = ()
        self._running: list[nn.Module] = []
        self._met = WeakIdKeyDictionary()

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Meet what a module takes: what calls it has made it."""
        for value in tensors_of([args, kwargs]):
            self.meet(value)
        self._running.append(module)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Meet what a module returns."""
        for value in tensors_of(output):
            self.meet(value)
        self._running.pop()

    def meet(self, value: Tensor) -> None:
        """Meet what the module that runs now has made, unless it was met before."""
        if not value.requires_grad or value in self._met:
            return
        self._met[value] = None
        chain = self._chains[self._running[-1]] if self._running else ()

        def gather(grad: Tensor) -> None:
            self._hold(chain)

        value.register_hook(gather)  # type: ignore[no-untyped-call]

    def _hold(self, chain: tuple[Any, ...]) -> None:
        for part in self._held:
            if not any(part is one for one in chain):
                part.reshard()
        for part in chain:
            part.unshard()
        self._held = chain


def tensors_of(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output in nested tuples, lists and dicts."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict | tuple | list):
        for part in output.values() if isinstance(output, dict) else output:
            yield from tensors_of(part)


def _chains(model: nn.Module, parts: list[Any]) -> dict[nn.Module, tuple[Any, ...]]:
    """Return per module those of ``parts`` that hold it, the outer ones first."""
    found: dict[nn.Module, tuple[Any, ...]] = {module: () for module in model.modules()}
    for part in parts:
        for module in part.modules():
            found[module] = (*found[module], part)
    return found


def _outermost(parts: list[Any]) -> list[Any]:
    inner = {id(one) for part in parts for one in part.modules() if one is not part}
    return [part for part in parts if id(part) not in inner]


def _loaded(home: str, name: str) -> Any:
    """Return a class of torch if somebody has imported it: to do so takes a second."""
    return getattr(sys.modules.get(home), name, None)
