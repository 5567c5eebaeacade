"""Takes the wrappers off a module, and refuses what hides its inside."""

from typing import Any

import torch
from torch import nn

from dar_probe.errors import ProbeError, blamed
from dar_probe.files.text import quote
from dar_probe.sites.autograd_entry import nothing_overwritten, with_grad
from dar_probe.sites.hooks import hooked

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
FSDP1 = "FullyShardedDataParallel"  # by name: its import takes longer than a small audit
INNER = ("_orig_mod", "_checkpoint_wrapped_module")  # torch's names for what it wrapped


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside torch.compile, DataParallel and DistributedDataParallel.

    Wrappers may be stacked in any order. Modules of ``fully_shard`` and of tensor parallelism have
    no wrapper: they stay as they are, and all their processes run in step. Submodules that are
    compiled or checkpointed stay as they are: held ``untouched`` they run eagerly, and their hooks
    fire.

    Raises:
        ProbeError: parameters are flattened by FullyShardedDataParallel, or a submodule has a
            parallel wrapper of its own.
    """
    while True:
        if "_orig_mod" in module._modules:
            module = module.get_submodule("_orig_mod")
        elif isinstance(module, PARALLEL):
            module = module.module
        else:
            break
    for name, part in module.named_modules():
        if isinstance(part, PARALLEL):
            raise ProbeError(
                f"the submodule {plain_name(name)!r} is wrapped in {type(part).__name__}, whose "
                "forward concerns other devices or processes",
                hint="put the wrapper's .module in its place",
            )
        if FSDP1 in {kind.__name__ for kind in type(part).__mro__}:
            raise ProbeError(
                f"the parameters of the module are sharded over processes by {FSDP1}, which "
                "flattens them and hides the modules that they belong to",
                hint="shard it with torch.distributed.fsdp.fully_shard instead, or load its full "
                "state dict into a plain copy of the model",
            )
    return module


def check_forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run one forward and make sure that autograd can see it; the module must be ``untouched``.

    Raises:
        ProbeError: the forward fails, or runs without gradients.
    """
    recorded = [True]  # whether autograd did, module by module

    def enter(part: nn.Module, inputs: tuple[Any, ...]) -> None:
        recorded.append(torch.is_grad_enabled())

    with hooked() as handles, blamed(does_not_run), nothing_overwritten():
        handles.extend(part.register_forward_pre_hook(enter) for part in module.modules())
        module(*map(with_grad, args[:1]), *args[1:], **kwargs)
    # Frozen encoders may well run without gradients, but not what comes last.
    if not recorded[-1]:
        raise ProbeError(
            "the module's forward runs without gradients (torch.no_grad or inference_mode)",
            hint="the probe needs gradients of the states: take the decorator off the forward",
        )


def does_not_run(why: str) -> ProbeError:
    """Return the error of a model whose forward raises on inputs that we made for it."""
    return ProbeError(
        f"the model does not run on its inputs: {quote(why)}",
        hint="its settings may not fit it; --debug shows where it fails",
    )


def plain_name(name: str) -> str:
    """Leave out of a module's name what wrappers put into it: "0._orig_mod.norm" -> "0.norm"."""
    for inner in INNER:
        name = name.replace(f"{inner}.", "").removesuffix(f".{inner}")
    return name
