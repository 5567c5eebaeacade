"""Addresses of the few names of other projects that our pages link to, as intersphinx wants them.

A build must not ask the network, and whole inventories are megabytes.
"""

import zlib
from pathlib import Path

# project -> its pages, and the names that are used here with their kind and their page.
PAGES = {
    "python": ("https://docs.python.org/3", [
        ("pathlib.Path", "py:class", "library/pathlib.html#pathlib.Path"),
        ("str", "py:class", "library/stdtypes.html#str"),
        ("int", "py:class", "library/functions.html#int"),
        ("float", "py:class", "library/functions.html#float"),
        ("bool", "py:class", "library/functions.html#bool"),
        ("dict", "py:class", "library/stdtypes.html#dict"),
        ("list", "py:class", "library/stdtypes.html#list"),
        ("tuple", "py:class", "library/stdtypes.html#tuple"),
        ("ValueError", "py:exception", "library/exceptions.html#ValueError"),
    ]),
    "torch": ("https://docs.pytorch.org/docs/stable", [
        ("torch.Tensor", "py:class", "tensors.html#torch.Tensor"),
        ("torch.device", "py:class", "tensor_attributes.html#torch.device"),
        ("torch.nn.Module", "py:class", "generated/torch.nn.Module.html#torch.nn.Module"),
        ("torch.load", "py:function", "generated/torch.load.html#torch.load"),
    ]),
    "xarray": ("https://docs.xarray.dev/en/stable", [
        ("xarray.Dataset", "py:class", "generated/xarray.Dataset.html#xarray.Dataset"),
        ("xarray.DataArray", "py:class", "generated/xarray.DataArray.html#xarray.DataArray"),
    ]),
    "pandas": ("https://pandas.pydata.org/docs", [
        ("pandas.DataFrame", "py:class", "reference/api/pandas.DataFrame.html#pandas.DataFrame"),
    ]),
    "numpy": ("https://numpy.org/doc/stable", [
        ("numpy.ndarray", "py:class", "reference/generated/numpy.ndarray.html#numpy.ndarray"),
    ]),
    "nnsight": ("https://nnsight.net", []),
}  # fmt: skip


def mapping(folder: Path) -> dict[str, tuple[str, str]]:
    """Write one inventory for each project into a folder; return what intersphinx is told."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for project, (home, names) in PAGES.items():
        lines = [f"{name} {kind} 1 {page} -" for name, kind, page in names]
        head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: stable\n"
        head += "# The remainder of this file is compressed using zlib.\n"
        path = folder / f"{project}.inv"
        path.write_bytes(head.encode() + zlib.compress("\n".join([*lines, ""]).encode()))
        found[project] = (home, str(path))
    return found
