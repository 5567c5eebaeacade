"""Modules whose forward is called by itself, ``block.forward(x)``, past every hook."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dar_probe.sites.hooks import hooked


class _Heard:
    """Stands in for a module's forward: what calls it past the module is led to the module."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.forward = module, module.forward
        self.within = False  # the module itself calls, after its hooks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.within:
            return self.module(*args, **kwargs)
        self.within = False
        return self.forward(*args, **kwargs)


def is_heard(model: nn.Module) -> bool:
    """Tell whether ``heard`` is open for a model."""
    return isinstance(model.__dict__.get("forward"), _Heard)


@contextmanager
def heard(model: nn.Module) -> Iterator[None]:
    """Let forwards that are called by themselves meet the hooks of their modules."""
    own = [(module, module.__dict__.get("forward")) for module in model.modules()]

    def enter(module: nn.Module, args: Any) -> None:
        module.__dict__["forward"].within = True

    with hooked() as handles:
        try:
            for module, _ in own:
                module.__dict__["forward"] = _Heard(module)
                handles.append(module.register_forward_pre_hook(enter, prepend=True))
            yield
        finally:
            for module, forward in own:
                del module.__dict__["forward"]
                if forward is not None:
                    module.__dict__["forward"] = forward
