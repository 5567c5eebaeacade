"""What a user asks of a checkpoint: how it is read, and how samples are drawn from it.

Needs no torch, so that the command line can make these before anything heavy is imported.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """One checkpoint, and what its file may not tell.

    Attributes:
        path: a .pt, .safetensors, .gguf or .npz file, a folder of diffusers, or the id of one on
            the Hugging Face Hub, see ``dar_probe.checkpoints.hub``.
        weights: "auto" prefers the averaged weights; "ema" or "model" insists.
        family: name of the family where the names of the weights mislead, or
            "package.module:FAMILY"; None: recognised.
        objective: of its training, e.g. "sit", "repa", "dit" or "ddpm:cosine:v"; None: as the
            file tells, or the usual one of its family.
        heads: number of attention heads; None: as the file tells.
        device: where the model runs: "auto", "cpu", "cuda", ...
        dtype: of its weights: "float32", "float64", "bfloat16" or "float16", or another
            spelling of these such as "bf16", see ``dar_probe.runtime.dtype_names``.
        text: a .safetensors or .npz file of text or other conditions; None: drawn, or no text.
        name: what figures and tables call it; None: see ``dar_probe.checkpoints.naming``.
        adapter: a LoRA adapter that is merged into it, a folder or a .safetensors file.
        shard: share its parameters out over the processes of the job, see ``models.fsdp``.
        offload: where the weights of blocks stay until their block runs: "disk", in the files of
            a folder of diffusers, or "cpu", in host memory while the model runs on a GPU; None:
            all of them are beside the model.
    """

    path: str | Path
    weights: str = "auto"
    family: str | None = None
    objective: str | None = None
    heads: int | None = None
    device: str = "auto"
    dtype: str = "float32"
    text: str | Path | None = None
    name: str | None = None
    adapter: str | Path | None = None
    shard: bool = False
    offload: str | None = None


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How samples are drawn from a checkpoint.

    Attributes:
        solver: "euler", "heun", "sde" or "dopri5", see ``dar_probe.diffusion.samplers.Sampler``.
        steps: from noise to data.
        guidance: strength of classifier-free guidance; 1 is the conditional model alone.
        batch_size: samples that are drawn together.
        vae: a local folder of diffusers' AutoencoderKL, which makes images of latents.
    """

    solver: str = "euler"
    steps: int = 50
    guidance: float = 1.0
    batch_size: int = 256
    vae: str | Path | None = None
