"""Images to features: the shipped classifier of digits, or a local image model of transformers."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.resources import files
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dar_probe.errors import UsageError, blamed

CLASSIFIER = "classifier.safetensors"
BATCH = 256
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Classifier(nn.Module):
    """A small convolutional classifier of the 8x8 digits: (N, 1, 8, 8) in [-1, 1] to 10 logits."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 10)

    def features(self, x: Tensor) -> Tensor:
        """Return what the last layer sees (N, width): means over the image."""
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.relu(conv(x))
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10)."""
        return self.head(self.features(x))  # type: ignore[no-any-return]


def classifier() -> Classifier:
    """Return the shipped classifier, trained on the digits that are not held out."""
    model = Classifier()
    stored = (files("dar_probe.digits") / CLASSIFIER).read_bytes()
    model.load_state_dict(
        {name: value.float() for name, value in safetensors.torch.load(stored).items()}
    )
    return model.eval().requires_grad_(False)


def extractor(spec: str, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """Return a function of images (N, C, h, w) in [-1, 1] to features (N, F), float32 on the CPU.

    Args:
        spec: "digits", or a folder of transformers with config.json and safetensors, e.g. DINOv2.
        device: where it runs.

    Raises:
        UsageError: no such folder, or it holds no image model that runs.
    """
    call = _digits(device) if spec == "digits" else _local(Path(spec), device)

    @torch.no_grad()
    def extract(images: Tensor) -> Tensor:
        return torch.cat(
            [call(part.to(device)).float().cpu() for part in torch.split(images, BATCH)]
        )

    return extract


def _digits(device: torch.device | str) -> Callable[[Tensor], Tensor]:
    model = classifier().to(device)

    def call(images: Tensor) -> Tensor:
        if images.shape[1:] != (1, 8, 8):
            raise UsageError(
                f"the classifier of digits takes 1x8x8 images, not "
                f"{'x'.join(map(str, images.shape[1:]))}",
                hint="--features takes a folder of transformers, such as DINOv2's",
            )
        return model.features(images)

    return call


class ImageModel:
    """A frozen image model of transformers, from a local folder, and how it takes images.

    Args:
        folder: with config.json and model.safetensors; preprocessor_config.json tells the colours
            it was trained on, without one they are ImageNet's.
        device: where it runs.

    Raises:
        UsageError: there is no such model, or the package is missing.
    """

    def __init__(self, folder: Path, device: torch.device | str) -> None:
        self.folder = folder
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"there is no image model in {str(folder)!r}",
                hint="it takes digits, or a local folder with config.json and model.safetensors, "
                "such as DINOv2's",
            )
        try:
            from transformers import AutoModel
        except ImportError:
            raise UsageError(
                f"the image model in {str(folder)!r} needs transformers",
                hint="pip install transformers",
            ) from None
        with self._blamed():
            model: Any = AutoModel.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, trust_remote_code=False
            )
            self.model = model.eval().requires_grad_(False).to(device)
            self.size, self.channels = model.config.image_size, model.config.num_channels
            self.colours = [
                torch.tensor(numbers, device=device).view(1, -1, 1, 1)
                for numbers in self._colours()
            ]

    def __call__(self, images: Tensor) -> Any:
        """Return what the model makes of images (N, C, H, W) in [-1, 1]."""
        mean, std = self.colours
        with self._blamed():
            pixels = F.interpolate(
                (images + 1) / 2, (self.size, self.size), mode="bicubic", antialias=True
            )
            pixels = pixels.clamp(0, 1).expand(-1, self.channels, -1, -1)
            return self.model(pixel_values=(pixels - mean) / std)

    def _colours(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of the colours that it was trained on."""
        settings = self.folder / "preprocessor_config.json"
        found = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        return found.get("image_mean", IMAGENET[0]), found.get("image_std", IMAGENET[1])

    def _blamed(self) -> AbstractContextManager[None]:
        return blamed(
            lambda why: UsageError(
                f"{str(self.folder)!r} is no image model that takes these images: {why}",
                hint="it needs config.json and model.safetensors, of a class of transformers",
            )
        )


def _local(folder: Path, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    model = ImageModel(folder, device)

    def call(images: Tensor) -> Tensor:
        out = model(images)
        pooled = getattr(out, "pooler_output", None)
        found: Tensor = out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
        return found

    return call
