"""dar-probe: how information travels across the depth of a diffusion transformer."""

__version__ = "0.1.0"
