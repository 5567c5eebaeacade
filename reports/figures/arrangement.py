"""How the panels of a figure stand, on paper and on a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dar_probe.errors import UsageError

Width = Literal["one", "two"]

WIDTHS = {"one": 3.25, "two": 6.75}  # inches: a column of ICML or CVPR, and the text width


@dataclass(frozen=True, kw_only=True)
class Paper:
    """How panels stand in print.

    Attributes:
        width: "one" column or "two".
        height: inches, without legend, heading and notes.
        across: panels side by side.
        downwards: whether panels fill columns instead of rows.
        rows, columns: relative heights and widths, empty for equal ones.
        shared: whether only the outer panels have labels at their ticks.
    """

    width: Width = "two"
    height: float
    across: int = 1
    downwards: bool = False
    rows: Sequence[float] = ()
    columns: Sequence[float] = ()
    shared: bool = False

    def __post_init__(self) -> None:
        """Refuse another width."""
        inches(self.width)


@dataclass(frozen=True, kw_only=True)
class Screen:
    """How panels stand on a page.

    Attributes:
        columns: panels side by side where there is room; a narrow figure has one column.
        row: height of a panel, pixels.
        room: the width in pixels below which a figure is narrow.
        gap: space between two columns, share of the width.
        names_across: whether the x axis holds names, which a narrow figure leaves out.
        names_shared: whether panels side by side share the names on the y axis of the first.
        ticks: how many labels an axis of names has at most; None leaves that to the drawer.
    """

    columns: int = 1
    row: int = 270
    room: int = 0
    gap: float = 0.0
    names_across: bool = False
    names_shared: bool = False
    ticks: int | None = None


def inches(width: Width) -> float:
    """Return the width of a figure of one or of two columns.

    Raises:
        UsageError: another width.
    """
    if width not in WIDTHS:
        raise UsageError(f"there is no width {width!r}", hint=f"one of {', '.join(WIDTHS)}")
    return WIDTHS[width]
