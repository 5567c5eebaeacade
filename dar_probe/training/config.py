"""Every setting of a training run, from code, flags or a TOML file."""

import math
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from dar_probe.diffusion.flow import FLOW_PREDICTIONS, PATHS, Flow
from dar_probe.diffusion.objectives import flow
from dar_probe.errors import UsageError
from dar_probe.models.sit import SiTConfig
from dar_probe.routing.schemes import RoutingOptions


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RoutingOptions):
    """One training run, with the ``RoutingOptions`` of its model.

    Attributes:
        routing_lr: factor of the learning rate for the parameters of the routing.
        depth, width, heads, patch: sizes; heads 0 means width / 32, at least 1.
        learn_sigma, qk_norm: as in ``SiTConfig``.
        data: digits, images:DIR or latents:FILE; a seventh of the rows is held out.
        objective: the clock, "sit" (t = 0 is noise) or "repa" (t = 1 is noise).
        path, prediction: "linear", "gvp" or "vp"; "velocity", "noise" or "score"; see
            ``dar_probe.diffusion.objectives.Flow``.
        time_sampling: of noise levels, "uniform" or "logit-normal" (SD3, arXiv 2403.03206, 3.1).
        time_mean, time_std: of the latter's normal; a mean above 0 prefers noise.
        repa_depth: the block, from 1, after which hidden tokens are aligned with an encoder's
            (REPA, arXiv 2410.06940); 0 is none. See ``dar_probe.training.repa``.
        repa_weight, repa_encoder, repa_width: of that term, "digits" or a local folder of
            transformers, hidden width of its projector.
        init_from: a checkpoint to start from, of any routing; "" starts at random.
        steps, batch_size, lr, warmup, weight_decay, clip: AdamW with a linear warm-up and
            clipping of the gradient norm; clip 0 means none.
        ema: longest decay of the weight average.
        accumulate: parts of a process's share of the batch, one after the other; their gradients
            are added.
        label_dropout: share of labels replaced by the null class.
        autocast: "none" or "bf16".
        compile: train the compiled model.
        seed: of initialisation, batches, noise, times and dropped labels.
        validate_every, checkpoint_every: cadence in steps; both also happen at the end.
        validation_samples: held-out samples in the validation loss.
        probe_every: cadence in steps of the diagnosis, which also happens before the first and
            after the last step; 0 is none.
        probe_samples, probe_levels: held-out samples and noise levels of the diagnosis.
    """

    routing_lr: float = 1.0
    depth: int = 12
    width: int = 128
    heads: int = 0
    patch: int = 2
    learn_sigma: bool = False
    qk_norm: bool = False
    data: str = "digits"
    objective: str = "sit"
    path: str = "linear"
    prediction: str = "velocity"
    time_sampling: str = "uniform"
    time_mean: float = 0.0
    time_std: float = 1.0
    repa_depth: int = 0
    repa_weight: float = 0.5
    repa_encoder: str = "digits"
    repa_width: int = 256
    init_from: str = ""
    steps: int = 2000
    batch_size: int = 128
    accumulate: int = 1
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.9999
    label_dropout: float = 0.1
    autocast: str = "none"
    compile: bool = False
    seed: int = 0
    validate_every: int = 250
    checkpoint_every: int = 500
    validation_samples: int = 128
    probe_every: int = 0
    probe_samples: int = 8
    probe_levels: int = 5

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


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds.

    Raises:
        UsageError: no such file, or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the config file {str(path)!r} cannot be read") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name} is no TOML: {error}") from error


def from_dict(settings: dict[str, Any]) -> TrainConfig:
    """Build a config from plain data.

    Raises:
        UsageError: an unknown name or a value of the wrong type.
    """
    types = {f.name: f.type for f in fields(TrainConfig)}
    for name, value in settings.items():
        if name not in types:
            raise UsageError(
                f"unknown training setting {name!r}", hint=f"known: {', '.join(types)}"
            )
        expected: Any = types[name]
        if expected is float and isinstance(value, int) and not isinstance(value, bool):
            settings = {**settings, name: float(value)}
        elif type(value) is not expected and not isinstance(value, get_args(expected) or ()):
            raise UsageError(
                f"training setting {name!r} is {value!r}, expected {expected.__name__}"
            )
    return TrainConfig(**settings)


def _one_of(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


def _require(holds: bool, name: str, what: str, config: TrainConfig) -> None:
    if not holds:
        raise UsageError(f"{name} is {getattr(config, name)!r}; it must be {what}")
