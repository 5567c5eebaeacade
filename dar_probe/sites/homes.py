"""Which call of which block a module runs in."""

from collections import Counter

from torch import nn

Home = tuple[nn.Module, int]  # a block and which of its calls


class Homes:
    """Follows the modules of one forward as they begin and end.

    A block may be a list of modules, which nobody calls: it runs as long as its members, or theirs,
    run one after another, each of them once.

    Args:
        blocks: the modules that count as blocks.
    """

    def __init__(self, blocks: set[nn.Module]) -> None:
        self._blocks = blocks
        lists = [block for block in blocks if uncalled(block)]
        self._members = {part: one for one in lists for part in one.modules() if part is not one}
        self._count: Counter[nn.Module] = Counter()
        self._open: list[tuple[nn.Module, Home]] = []  # with the module that opened it
        self._ran: set[nn.Module] = set()  # members of the list that runs, as far as they ran

    @property
    def now(self) -> Home | None:
        """The block that runs now."""
        return self._open[-1][1] if self._open else None

    def enter(self, module: nn.Module) -> bool:
        """Meet a module as it begins; tell whether a call of a block begins with it."""
        block = module if module in self._blocks else None
        if block is None and not self._open:
            block = self._members.get(module)
        if block is None:
            return False
        begins = block is module or module in self._ran or not self._ran & self._of(block)
        if begins:
            self._count[block] += 1
            self._ran = set()
        self._ran.add(module)
        self._open.append((module, (block, self._count[block] - 1)))
        return begins

    def leave(self, module: nn.Module) -> Home | None:
        """Meet a module as it ends; return the block that ends with it, for now."""
        if self._open and self._open[-1][0] is module:
            return self._open.pop()[1]
        return None

    def _of(self, block: nn.Module) -> set[nn.Module]:
        return {part for part, one in self._members.items() if one is block}


def uncalled(block: nn.Module) -> bool:
    """Tell whether a block is a list of modules, which runs nothing itself."""
    return type(block) is nn.ModuleList
