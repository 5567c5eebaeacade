"""Gives functions that are loaded already the code of a changed file."""

import gc
import sys
from types import CodeType, FunctionType
from typing import Any


def patched(file: str, old: str, new: str) -> bool:
    """Give the functions of a loaded file the code that they have in its new text.

    Returns whether that was possible: nothing but the inside of functions may differ.
    """
    pairs: list[tuple[CodeType, CodeType]] = []
    if not _alike(compile(old, file, "exec"), compile(new, file, "exec"), pairs, inside=False):
        return False
    codes = {before: after for before, after in pairs if before != after}
    functions = _functions(file)
    if codes.keys() - {each.__code__ for each in functions}:
        # Some are hidden in closures of decorators, or belong to functions that are yet to be made.
        functions = [each for each in gc.get_objects() if type(each) is FunctionType]
    found = [
        each for each in functions if each.__code__.co_filename == file and each.__code__ in codes
    ]
    unfit = any(
        each.__code__.co_freevars != codes[each.__code__].co_freevars for each in found
    )  # fmt: skip
    if unfit or not found:
        return False
    for each in found:
        each.__code__ = codes[each.__code__]
    return True


def _functions(file: str) -> list[FunctionType]:
    """Return the functions of a loaded file, as far as its module and its classes show them."""
    seen: dict[int, Any] = {}
    modules = [m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == file]
    left: list[Any] = [value for module in modules for value in vars(module).values()]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, type) and value.__module__ in {m.__name__ for m in modules}:
            left += vars(value).values()
        for name in ("__wrapped__", "__func__", "fget", "fset"):
            left += filter(None, [getattr(value, name, None)])
    return [value for value in seen.values() if type(value) is FunctionType]


def _alike(
    before: CodeType, after: CodeType, pairs: list[tuple[CodeType, CodeType]], *, inside: bool
) -> bool:
    """Pair the functions of two code objects; false where they differ outside of functions."""
    constants = [
        [each for each in code.co_consts if isinstance(each, CodeType)] for code in (before, after)
    ]
    if not inside:
        rest = [
            [repr(each) for each in code.co_consts if not isinstance(each, CodeType)]
            for code in (before, after)
        ]
        if rest[0] != rest[1] or before.co_code != after.co_code:
            return False
        if before.co_names != after.co_names:
            return False
    if [code.co_name for code in constants[0]] != [code.co_name for code in constants[1]]:
        return inside
    for one, other in zip(*constants, strict=True):
        function = bool(one.co_flags & 0x2)  # CO_NEWLOCALS: a function, and not a class's body
        if function:
            pairs.append((one, other))
        if not _alike(one, other, pairs, inside=inside or function):
            return False
    return True
