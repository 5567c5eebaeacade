"""How a diffusers transformer is called: its latents, its time and every condition.

What a parameter of the forward takes follows from its name and from the settings; what names
cannot tell stands in small tables, here and in ``latents.AXES``.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dar_probe.errors import CheckpointError, ProbeError, UsageError, blamed
from dar_probe.files.text import quote
from dar_probe.models.diffusers import conditioning, input_rules
from dar_probe.models.diffusers.input_context import Cells, Maker, Setting
from dar_probe.models.diffusers.latents import Latents, describe
from dar_probe.models.diffusers.model import transformer_class

TOKENS = 16  # of text, where the settings fix no number
_LATENTS = ("hidden_states", "x")
_TIME = ("timestep", "timesteps", "t")
_SKIPPED = {"self", "return_dict"}


@dataclass(frozen=True, kw_only=True)
class Signature:
    """How one model is called.

    Attributes:
        class_name: name of the model's class.
        latents: how it takes a sample.
        tokens: of text in each sample.
        classes: that each sample has one of; 0 where it takes none, or the user gave them.
        assumptions: one sentence for each condition that nobody gave.
    """

    class_name: str
    latents: Latents
    tokens: int
    classes: int
    assumptions: tuple[str, ...]
    _makers: Mapping[str, Maker]
    _positional: tuple[str, ...]
    _returns_dict: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample's latents."""
        return self.latents.shape

    def inputs(
        self, x: Tensor, time: Tensor, ids: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments for samples ``x`` (N, *shape) at model times ``time`` (N,).

        Every condition is a function of the sample's id (N,) alone, the same at every time.

        Raises:
            CheckpointError: the settings allow none.
        """
        if self.latents.extra:
            axis = self.latents.channel_axis
            sizes = list(x.shape)
            sizes[axis] = self.latents.extra
            x = torch.cat([x, x.new_zeros(sizes)], axis)
        batch = Cells(x=x, time=time, ids=ids.cpu())
        with blamed(self._misfit):
            made = {name: maker(batch) for name, maker in self._makers.items()}
        args = tuple(made.pop(name) for name in self._positional)
        return args, made | ({"return_dict": False} if self._returns_dict else {})

    def _misfit(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.class_name} cannot be called by its settings: {quote(why)}",
            hint="they were edited, or are of another version of diffusers",
        )

    def prediction(self, output: Any) -> Tensor:
        """Return what was predicted (N, *shape), without a learned variance.

        The velocity of a flow has the sign that ``clock.choose`` says.

        Raises:
            ProbeError: the output has another shape.
        """
        value = getattr(output, "sample", output)
        if isinstance(value, tuple):
            value = value[0]
        if isinstance(value, list):
            value = torch.stack(value)
        if isinstance(value, Tensor):
            if self.class_name in input_rules.SINGLE_FRAME:
                value = value.squeeze(2)
            if self.latents.axes == "TC":  # some return the text's tokens too, before the image's
                value = value[:, -self.shape[0] :]
            axis = self.latents.channel_axis
            wanted = self.shape[axis - 1]
            if value.ndim == len(self.shape) + 1 and value.shape[axis] == 2 * wanted:
                value = value.narrow(axis, 0, wanted)
            if tuple(value.shape[1:]) == self.shape:
                return -value if self.class_name in input_rules.NEGATED else value
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ProbeError(
            f"{self.class_name} returned {found} for samples of shape {self.shape}",
            hint="dar-probe audit measures it in Python, with a loss of your own",
        )


def plan(
    class_name: str,
    config: dict[str, Any],
    *,
    shape: Sequence[int] | None = None,
    given: Mapping[str, Tensor] | None = None,
    tokens: int | None = None,
    seed: int = 0,
    labelled: bool = False,
) -> Signature:
    """Return how the transformer ``class_name`` with settings ``config`` is called.

    Args:
        class_name: name of the transformer's class.
        config: its settings.
        shape: of one sample; left out, a size that the settings suggest.
        given: conditions by the name of the forward's parameter, one row per sample or one row.
        tokens: of text per sample, where it is drawn at random.
        seed: of everything that is drawn.
        labelled: samples come with their classes.

    Raises:
        UsageError: diffusers is missing, an argument does not fit, or the model needs an input
            that no rule knows.
        CheckpointError: diffusers has no such transformer.
    """
    given = given or {}
    kind = transformer_class(class_name)
    signature = inspect.signature(kind.forward).parameters
    # Old folders lack the settings that came later, which then have their defaults.
    known = inspect.signature(kind.__init__).parameters.values()
    config = {p.name: p.default for p in known if p.default is not p.empty} | config
    latents = describe(class_name, config, signature, shape)
    setting = Setting(
        class_name=class_name,
        config=config,
        latents=latents,
        tokens=_tokens(given, tokens),
        seed=seed,
        given=given,
    )
    taken = set(signature) - _SKIPPED - {*_LATENTS, *_TIME}
    unknown = sorted(set(given) - taken)
    if unknown:
        raise UsageError(
            f"{class_name} takes no {unknown[0]!r} from a file",
            hint=f"conditions are named after {', '.join(sorted(taken))}",
        )
    makers: dict[str, Maker] = {}
    for name, parameter in signature.items():
        if name in _SKIPPED or parameter.kind is parameter.VAR_KEYWORD:
            continue
        maker = _maker(name, setting, required=parameter.default is parameter.empty)
        if maker is not None:
            makers[name] = maker
    takes_classes = "class_labels" in makers and "class_labels" not in given
    leading = next((name for name in signature if name not in _SKIPPED), "")
    return Signature(
        class_name=class_name,
        latents=latents,
        tokens=setting.tokens,
        classes=(input_rules.classes(setting) or 0) if takes_classes else 0,
        assumptions=tuple(_assumptions(setting, makers, labelled)),
        _makers=makers,
        _positional=(leading,) if leading in _LATENTS else (),
        _returns_dict="return_dict" in signature,
    )


def _tokens(given: Mapping[str, Tensor], tokens: int | None) -> int:
    for name in ("encoder_hidden_states", "cap_feats", "text_bth"):
        if name in given and given[name].ndim == 3:
            return given[name].shape[1]
    if tokens is not None and tokens < 1:
        raise UsageError(f"{tokens} tokens of text were asked for; it takes at least 1")
    return tokens or TOKENS


def _maker(name: str, setting: Setting, *, required: bool) -> Maker | None:
    """Return what makes the argument ``name``, None where it is left out."""
    if name in _LATENTS:
        if setting.class_name in input_rules.SINGLE_FRAME:
            return lambda batch: list(batch.x.unsqueeze(2))
        return lambda batch: batch.x
    if name in _TIME:
        return lambda batch: input_rules.model_time(setting, batch)
    rule = input_rules.RULES.get(name)
    maker = rule(setting, required) if rule is not None else None
    if name in setting.given:
        _check(name, setting, maker)
        return _from_file(name, setting)
    if maker is None and required:
        raise UsageError(
            f"{setting.class_name} needs {name!r}, and nothing says what that is",
            hint="give it in a .safetensors file of conditions, or call dar-probe audit in Python",
        )
    return maker


def _check(name: str, setting: Setting, maker: Maker | None) -> None:
    """Hold a user's array to the kind and the width of what would be made without it.

    Raises:
        UsageError: it does not fit.
    """
    if maker is None or name not in input_rules.DRAWN | {"class_labels"}:
        return
    one = torch.zeros(1)
    made = maker(Cells(x=one.new_zeros(1, *setting.latents.shape), time=one, ids=one.long()))
    like = torch.stack(made) if name in input_rules.LISTS else made
    if not isinstance(like, Tensor) or len(like) != 1:  # several layers at once
        return
    found = setting.given[name]
    shape = ("samples", *("any",) * (like.ndim - 2), *like.shape[1:][-1:])
    if found.ndim != like.ndim or like.is_floating_point() and found.shape[-1:] != like.shape[-1:]:
        raise UsageError(
            f"{name!r} has shape {tuple(found.shape)}, {setting.class_name} takes "
            f"({', '.join(map(str, shape))})"
        )
    if found.is_floating_point() != like.is_floating_point() or found.is_complex():
        kind = "real numbers" if like.is_floating_point() else "whole numbers"
        raise UsageError(f"{name!r} must hold {kind}, not {found.dtype}")
    count = input_rules.classes(setting) if name == "class_labels" else None
    if count and not 0 <= int(found.min()) <= int(found.max()) < count:
        raise UsageError(f"{name!r} must lie between 0 and {count - 1}")


def _from_file(name: str, setting: Setting) -> Maker:
    def make(batch: Cells) -> Any:
        values = conditioning.rows(setting.given, name, batch.ids)
        like = batch.x.dtype if values.is_floating_point() else values.dtype
        values = values.to(batch.x.device, like)
        return list(values) if name in input_rules.LISTS else values

    return make


def _assumptions(setting: Setting, makers: Mapping[str, Maker], labelled: bool) -> list[str]:
    """Return one sentence for each thing that was chosen for the user."""
    found = []
    drawn = [name for name in makers if name in input_rules.DRAWN and name not in setting.given]
    if drawn:
        found.append(
            "no text was given: every sample has random normal numbers of its own as "
            f"{', '.join(drawn)} (seed {setting.seed}, the same at every noise level)"
        )
    if "class_labels" in makers and "class_labels" not in setting.given and not labelled:
        found.append("no class labels were given: samples take the classes in turn")
    if "guidance" in makers and "guidance" not in setting.given:
        scale = input_rules.guidance_scale(setting)
        found.append(f"the model takes a guidance scale, which is {scale:g}")
    if setting.latents.extra:
        found.append(
            f"the model takes {setting.latents.extra} more channels as a condition, which are zero"
        )
    if setting.latents.reduced is not None:
        found.append(
            f"samples have shape {setting.latents.shape}, which is smaller than the sample size "
            f"{setting.latents.reduced} in the settings"
        )
    return found
