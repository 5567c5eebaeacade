"""Every setting of a training run, from code, flags or a TOML file."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from dar_probe.diffusion.flow import FLOW_PREDICTIONS, PATHS, Flow
from dar_probe.diffusion.objectives import flow
from dar_probe.errors import UsageError
from dar_probe.files.text import did_you_mean
from dar_probe.models.sit import SiTConfig
from dar_probe.runtime.dtype_names import SPELLINGS
from dar_probe.training.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainSettings):
    """One training run: ``TrainSettings`` that are checked, with what follows from them."""

    def __post_init__(self) -> None:
        for name in ("depth", "width", "patch", "chunk_size", "steps", "batch_size"):
            _require(getattr(self, name) >= 1, name, "at least 1", self)
        for name in ("accumulate", "validate_every", "checkpoint_every", "validation_samples"):
            _require(getattr(self, name) >= 1, name, "at least 1", self)
        for name in ("probe_samples", "probe_levels"):
            _require(getattr(self, name) >= 1, name, "at least 1", self)
        _require(self.probe_every >= 0, "probe_every", "at least 0", self)
        for name in ("heads", "warmup", "weight_decay", "clip", "seed"):
            _require(getattr(self, name) >= 0, name, "at least 0", self)
        _require(self.seed < 2**63, "seed", "below 2^63", self)
        _require(self.lr > 0, "lr", "above 0", self)
        _require(0 < self.routing_lr < math.inf, "routing_lr", "above 0 and finite", self)
        _require(0 <= self.ema < 1, "ema", "in [0, 1)", self)
        _require(0 <= self.label_dropout < 1, "label_dropout", "in [0, 1)", self)
        _require(self.autocast in ("none", "bf16"), "autocast", "none or bf16", self)
        _require(self.objective in ("sit", "repa"), "objective", "sit or repa", self)
        _require(self.path in PATHS, "path", _one_of(PATHS), self)
        _require(self.prediction in FLOW_PREDICTIONS, "prediction", _one_of(FLOW_PREDICTIONS), self)
        samplings = ("uniform", "logit-normal")
        _require(self.time_sampling in samplings, "time_sampling", _one_of(samplings), self)
        deep = 0 <= self.repa_depth <= self.depth
        _require(deep, "repa_depth", "between 0 and the depth", self)
        _require(0 < self.repa_weight < math.inf, "repa_weight", "above 0 and finite", self)
        _require(self.repa_width >= 1, "repa_width", "at least 1", self)
        _require(math.isfinite(self.time_mean), "time_mean", "finite", self)
        _require(0 < self.time_std < math.inf, "time_std", "above 0 and finite", self)

    def flow(self) -> Flow:
        """Return the objective."""
        return flow(self.objective, self.path, self.prediction)

    def model(
        self,
        *,
        in_channels: int,
        input_size: int,
        num_classes: int,
        projectors: tuple[int, ...] = (),
    ) -> SiTConfig:
        """Return the model's config for data of this shape."""
        return SiTConfig(
            depth=self.depth,
            width=self.width,
            heads=self.heads or max(1, self.width // 32),
            patch=self.patch,
            in_channels=in_channels,
            input_size=input_size,
            num_classes=num_classes,
            null_class=self.label_dropout > 0,
            learn_sigma=self.learn_sigma,
            qk_norm=self.qk_norm,
            projectors=projectors,
            projector_width=self.repa_width if projectors else SiTConfig.projector_width,
            **self.routing_settings(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain data."""
        return asdict(self)


def from_dict(settings: dict[str, Any]) -> TrainConfig:
    """Build a config from plain data.

    Raises:
        UsageError: an unknown name or a value of the wrong type.
    """
    types = {f.name: f.type for f in fields(TrainConfig)}
    for name, value in settings.items():
        if name not in types:
            raise UsageError(f"unknown training setting {name!r}", hint=did_you_mean(name, types))
        expected: Any = types[name]
        if expected is float and isinstance(value, int) and not isinstance(value, bool):
            settings = {**settings, name: float(value)}
        elif type(value) is not expected and not isinstance(value, get_args(expected) or ()):
            raise UsageError(
                f"training setting {name!r} is {value!r}, expected {expected.__name__}"
            )
    if settings.get("autocast") in SPELLINGS["bfloat16"] + ("bfloat16",):
        settings = {**settings, "autocast": "bf16"}
    return TrainConfig(**settings)


def _one_of(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


def _require(holds: bool, name: str, what: str, config: TrainConfig) -> None:
    if not holds:
        raise UsageError(f"{name} is {getattr(config, name)!r}; it must be {what}")
