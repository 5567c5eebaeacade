"""What a training run can be told, and every default; imports no torch.

``train --help`` shows the defaults from here.
"""

from dataclasses import dataclass

from dar_probe.routing.schemes import RoutingOptions


@dataclass(frozen=True, kw_only=True)
class TrainSettings(RoutingOptions):
    """One training run, with the ``RoutingOptions`` of its model.

    Attributes:
        routing_lr: factor of the learning rate for the parameters of the routing.
        depth, width, heads, patch: sizes; heads 0 means width / 32, at least 1.
        learn_sigma: the head has twice the channels, for a variance that the loss does not use.
        qk_norm: queries and keys are normalised.
        data: digits, images:DIR or latents:PATH; a seventh of the rows is held out.
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
