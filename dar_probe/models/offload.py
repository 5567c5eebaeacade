"""Weights of blocks that lie elsewhere: they come for each call of their block, and go after it.

Blocks are run again in the backward, and their weights come again: a graph that kept inner tensors
would keep the weights of every block as well. Weights are moved by accelerate.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dar_probe.errors import UsageError
from dar_probe.models.rerun import Rerun
from dar_probe.runtime.torch_private import unmet
from dar_probe.sites.homes import uncalled

KINDS = ("disk", "cpu")
_STORED: WeakKeyDictionary[nn.Module, Mapping[str, Tensor]] = WeakKeyDictionary()


def check(kind: str | None) -> None:
    """Refuse what is none of ``KINDS``.

    Raises:
        UsageError: naming those there are, or accelerate, which is not installed.
    """
    if kind is None:
        return
    if kind not in KINDS:
        raise UsageError(f"unknown place {kind!r} of weights", hint="--offload takes disk or cpu")
    accelerate()


def check_cpu(place: torch.device) -> None:
    """Refuse to keep weights in host memory for a model that runs there.

    Raises:
        UsageError: it does.
    """
    if place.type == "cpu":
        raise UsageError(
            "--offload cpu keeps weights in host memory for a model on a GPU, and this one runs "
            "on the CPU, where its weights lie in that memory as it is",
            hint="--offload disk leaves the weights of a diffusers folder in its files; or "
            "--device cuda",
        )


def stream(model: nn.Module, weights: Mapping[str, Tensor], place: torch.device) -> None:
    """Bring a model to a device, but the weights of a block only when that is called.

    Parameters of blocks that are not here are on the meta device, in the shapes and types of those
    that come. The block that ran last keeps its own until another one runs.

    Args:
        model: its parameters may be on the meta device, its buffers are real.
        weights: every parameter by its name, on the CPU; what is asked for may be read then.
        place: where blocks run.

    Raises:
        UsageError: no blocks were found.
    """
    from accelerate.utils import PrefixedDataset, set_module_tensor_to_device

    found = blocks(model)
    inside = tuple(f"{name}." for name in found)
    here = str(place)  # accelerate knows "cpu" by its name alone
    blocks_here = _Here(place)
    for name, _ in list(model.named_parameters(remove_duplicate=False)):
        if not name.startswith(inside):
            set_module_tensor_to_device(model, name, here, value=weights[name])
    for name, _ in list(model.named_buffers(remove_duplicate=False)):
        set_module_tensor_to_device(model, name, here)
    for name, block in found.items():
        _attach(block, PrefixedDataset(weights, f"{name}."), here, blocks_here)
    _STORED[model] = weights


def stored(model: nn.Module) -> Mapping[str, Tensor]:
    """Return every parameter of a model that ``stream`` was given; of another model none."""
    return _STORED.get(model, {})


def needed(model: nn.Module) -> int:
    """Return the bytes of weights that are beside a model at once: one block, and all but blocks.

    Raises:
        UsageError: see ``blocks``.
    """
    sizes = [_bytes(block) for block in blocks(model).values()]
    return _bytes(model) - sum(sizes) + max(sizes)


@contextmanager
def streamed(model: nn.Module, place: torch.device) -> Iterator[None]:
    """Let a model on the CPU run on another device block by block; afterwards it is as it was.

    Raises:
        UsageError: see ``stream``.
    """
    own = [
        (m, dict(m._parameters), dict(m._buffers), m.__dict__.get("forward"))
        for m in model.modules()
    ]
    weights = dict(model.named_parameters(remove_duplicate=False))
    try:
        stream(model, weights, place)
        yield
    finally:
        _STORED.pop(model, None)
        for module, parameters, buffers, forward in own:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.__dict__["forward"] = forward


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the members of a model's outermost lists by name; of lists in a list, their members.

    Raises:
        UsageError: there are none.
    """
    found: dict[str, nn.Module] = {}

    def look(name: str, module: nn.Module, listed: bool) -> None:
        if listed and not uncalled(module):
            found[name] = module
            return
        for part, child in module.named_children():
            look(f"{name}.{part}" if name else part, child, uncalled(module))

    look("", model, False)
    if not any(True for block in found.values() for _ in block.parameters()):
        raise UsageError(
            f"a {type(model).__name__} has no list of blocks whose weights could come one by one",
            hint="leave --offload out",
        )
    return found


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a model runs on: that of the first weight which is not elsewhere."""
    first = next((p for p in model.parameters() if not p.is_meta), None)
    return torch.device("cpu") if first is None else first.device


def accelerate() -> Any:
    """Return the package.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import accelerate as package
    except ImportError:
        raise UsageError(
            "weights are moved by accelerate, which is not installed",
            hint="pip install 'dar-probe[diffusers]'",
        ) from None
    return package


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


class _Here:
    """The blocks whose weights are here: those that run, and of the others the last one that ran.

    That one goes only when another one comes: a block that runs twice in turn is fetched once.

    Attributes:
        rerun: what lets them run again in the backward.
    """

    def __init__(self, place: torch.device) -> None:
        self.rerun = Rerun(place)
        self._movers: dict[nn.Module, Any] = {}
        self._running: Counter[nn.Module] = Counter()

    def runs(self, block: nn.Module) -> bool:
        """Tell whether a block runs now."""
        return self._running[block] > 0

    def __contains__(self, block: nn.Module) -> bool:
        return block in self._movers

    @contextmanager
    def running(self, block: nn.Module, mover: Any) -> Iterator[None]:
        """Have the weights of a block here while it runs."""
        for other in [m for m in self._movers if m is not block and not self._running[m]]:
            self._release(other)
        if block not in self._movers:
            self._fetch(block, mover)
        self._running[block] += 1
        try:
            yield
        finally:
            self._running[block] -= 1

    def _fetch(self, block: nn.Module, mover: Any) -> None:
        self._movers[block] = mover
        try:
            with torch.no_grad(), unmet():
                mover.pre_forward(block)
        except BaseException:  # memory ran out halfway: none of them may stay
            self._release(block)
            raise

    def _release(self, block: nn.Module) -> None:
        with torch.no_grad(), unmet():
            self._movers.pop(block).post_forward(block, None)


def _attach(block: nn.Module, weights: Mapping[str, Tensor], place: str, here: _Here) -> None:
    """Let a block fetch its weights in each forward, and run again in the backward."""
    from accelerate.utils import PrefixedDataset

    mover = _mover(block, weights, place, whole=True)
    forward: Callable[..., Any] = block.forward

    def fetched(*args: Any, **kwargs: Any) -> Any:
        with here.running(block, mover):
            return forward(*args, **kwargs)

    def run(*args: Any, **kwargs: Any) -> Any:
        return here.rerun.run(fetched, args, kwargs)

    block.__dict__["forward"] = run
    for name, part in list(block.named_modules()):
        if part is not block and any(True for _ in part.parameters(recurse=False)):
            _attach_part(part, PrefixedDataset(weights, f"{name}."), place, block, here)


def _attach_part(
    part: nn.Module, weights: Mapping[str, Tensor], place: str, block: nn.Module, here: _Here
) -> None:
    """Let a part of a block fetch its own weights, where those of the block are not here.

    DiT of diffusers calls the embedding in its first block beside the blocks.
    """
    mover = _mover(part, weights, place, whole=False)
    forward: Callable[..., Any] = part.forward

    def fetched(*args: Any, **kwargs: Any) -> Any:
        if block in here:
            return forward(*args, **kwargs)
        try:
            with torch.no_grad(), unmet():
                mover.pre_forward(part)
            return forward(*args, **kwargs)
        finally:
            with torch.no_grad(), unmet():
                mover.post_forward(part, None)

    def run(*args: Any, **kwargs: Any) -> Any:
        if here.runs(block):
            return forward(*args, **kwargs)
        return here.rerun.run(fetched, args, kwargs)

    part.__dict__["forward"] = run


def _mover(module: nn.Module, weights: Mapping[str, Tensor], place: str, *, whole: bool) -> Any:
    """Return accelerate's hook for a module, or for all of its parts, and empty them."""
    from accelerate.hooks import AlignDevicesHook

    hook = AlignDevicesHook(place, offload=True, weights_map=weights, place_submodules=whole)
    hook.init_hook(module)
    return hook
