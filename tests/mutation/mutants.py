"""Small changes of one source file, each a bug that somebody could write by mistake."""

import ast
import random
import re
from collections import Counter
from dataclasses import dataclass

COMPARED = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
}  # fmt: skip
COMPUTED = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"), ast.Mod: ("%", "*"), ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"),
}  # fmt: skip
CALLED = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "amin": "amax",
    "amax": "amin", "argmin": "argmax", "argmax": "argmin", "mean": "sum", "sum": "mean",
    "nanmean": "nansum", "nansum": "nanmean", "any": "all", "all": "any", "floor": "ceil",
    "ceil": "floor", "zeros": "ones", "ones": "zeros", "zeros_like": "ones_like",
    "ones_like": "zeros_like",
}  # fmt: skip
DROPPED = {"abs", "sqrt", "square", "reversed", "sorted", "exp", "log"}
# Settings of these names guard against our own slips and change no value.
SILENT = {"strict", "frozen", "kw_only", "slots", "stacklevel", "encoding", "repr"}


@dataclass(frozen=True)
class Mutant:
    """One change of one file: ``text[start:stop]`` becomes ``new``.

    Attributes:
        file: the path from the root, with slashes.
        line: where the change stands, counted from 1.
        function: the qualified name around it, "" at the top of the file.
        code: the line, or the whole statement of several lines, without indentation.
        change: what is changed, in words.
        nth: 0, or 1, 2 ... where the same change fits the same code several times.
    """

    file: str
    line: int
    function: str
    code: str
    change: str
    nth: int
    start: int
    stop: int
    new: str

    @property
    def key(self) -> str:
        """What it is called from run to run; no line, so that edits elsewhere keep it."""
        return " | ".join([self.file, self.function, self.code, self.change, str(self.nth)])

    def applied(self, text: str) -> str:
        """Return the changed file."""
        data = text.encode()
        return (data[: self.start] + self.new.encode() + data[self.stop :]).decode()


def mutants(file: str, text: str) -> list[Mutant]:
    """Return every mutant of a file, in the order of its text."""
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    for change in sorted(_Walk(text).changes, key=lambda c: (c.start, c.stop, c.what)):
        code = " ".join(text.splitlines()[change.line - 1].split())
        named = f"{change.function} | {code} | {change.what}"
        mutant = Mutant(
            file, change.line, change.function, code, change.what, seen[named],
            change.start, change.stop, change.new,
        )  # fmt: skip
        seen[named] += 1
        found.append(mutant)
    return found


def sample(every: dict[str, list[Mutant]], count: int, seed: int) -> list[Mutant]:
    """Return about ``count`` mutants of many files: some of each, more of the longer ones.

    A larger ``count`` of the same seed adds to the sample and changes nothing in it.
    """
    files = {file: found for file, found in every.items() if found}
    total = sum(len(found) ** 0.5 for found in files.values())
    chosen = []
    for file, found in files.items():
        shuffled = found.copy()
        random.Random(f"{seed} {file}").shuffle(shuffled)
        share = max(2, round(count * len(found) ** 0.5 / total)) if count else len(found)
        chosen += sorted(shuffled[:share], key=lambda mutant: mutant.start)
    return chosen


@dataclass(frozen=True)
class _Change:
    line: int
    function: str
    start: int
    stop: int
    new: str
    what: str


class _Walk(ast.NodeVisitor):
    """Collects the changes of a file, leaving annotations, decorators and sentences alone."""

    def __init__(self, text: str) -> None:
        self._data = text.encode()
        self._begins = [0]
        for line in self._data.splitlines(keepends=True):
            self._begins.append(self._begins[-1] + len(line))
        self._names: list[str] = []
        self.changes: list[_Change] = []
        self.visit(ast.parse(text))

    def _at(self, node: ast.AST, *, end: bool = False) -> int:
        if end:
            return self._begins[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        return self._begins[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]

    def _text(self, node: ast.AST) -> str:
        return self._data[self._at(node) : self._at(node, end=True)].decode()

    def _change(self, start: int, stop: int, new: str, what: str) -> None:
        line = self._data[:start].count(b"\n") + 1
        self.changes.append(_Change(line, ".".join(self._names), start, stop, new, what))

    def _instead(self, node: ast.AST, new: str, what: str) -> None:
        self._change(self._at(node), self._at(node, end=True), new, what)

    def _between(self, left: ast.AST, right: ast.AST, old: str, new: str) -> None:
        """Change the operator between two operands."""
        start, stop = self._at(left, end=True), self._at(right)
        gap = self._data[start:stop].decode()
        words = r"\b" + r"\s+".join(map(re.escape, old.split())) + r"\b"
        match = re.search(words if old[0].isalpha() else re.escape(old), gap)
        if match:
            self._change(
                start + match.start(), start + match.end(), new, f"{old} becomes {new}"
            )  # fmt: skip

    # What is left alone.

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._names.append(node.name)
        self._visit_all([*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body])
        self._names.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._names.append(node.name)
        self._visit_all(node.body)
        self._names.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._visit_all([*node.targets, node.value])

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave the values within a sentence alone: they have no place in the file before 3.12."""

    def visit_Raise(self, node: ast.Raise) -> None:
        """Leave alone what an error says."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """Leave alone what guards against ourselves."""

    def visit_Import(self, node: ast.Import) -> None:
        pass

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        pass

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg not in SILENT:
            self.visit(node.value)

    def _visit_all(self, nodes: list[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    # What is changed.

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, op, right in zip(operands, node.ops, operands[1:], strict=False):
            self._between(left, right, *COMPARED[type(op)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        types = isinstance(node.op, ast.BitOr) and any(
            isinstance(side, ast.Name | ast.Attribute) and self._text(side).split(".")[-1].istitle()
            or self._text(side) in ("None", "tuple", "list", "dict", "int", "float", "str", "bool")
            for side in (node.left, node.right)
        )  # fmt: skip
        text = any(
            isinstance(side, ast.JoinedStr)
            or (isinstance(side, ast.Constant) and isinstance(side.value, str))
            for side in (node.left, node.right)
        )
        if type(node.op) in COMPUTED and not types and not text:
            self._between(node.left, node.right, *COMPUTED[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in COMPUTED:
            old, new = COMPUTED[type(node.op)]
            self._between(node.target, node.value, f"{old}=", f"{new}=")
        self.visit(node.value)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between(left, right, old, new)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub | ast.Invert):
            sign = {ast.Not: "not", ast.USub: "-", ast.Invert: "~"}[type(node.op)]
            start = self._at(node)
            self._change(start, start + len(sign), "", f"{sign} is dropped")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._instead(node, str(not value), f"{value} becomes {not value}")
        elif isinstance(value, int):
            self._instead(node, str(value + 1), f"{value} becomes {value + 1}")
        elif isinstance(value, float):
            new = repr(value * 2 if value else 1.0)
            self._instead(node, new, f"{value} becomes {new}")

    def visit_If(self, node: ast.If) -> None:
        if not node.orelse and isinstance(node.body[-1], ast.Raise | ast.Return | ast.Continue):
            self._instead(node.test, f"False and ({self._text(node.test)})", "the guard is dropped")
        elif not isinstance(node.test, ast.Compare | ast.UnaryOp):
            self._instead(node.test, f"not ({self._text(node.test)})", "the condition is reversed")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        if not isinstance(node.test, ast.Compare | ast.UnaryOp):
            self._instead(node.test, f"(not ({self._text(node.test)}))", "the branches are swapped")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return  # a docstring
        if isinstance(node.value, ast.Call):
            self._instead(node, "pass", "the call is dropped")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = self._name(node.func)
        if name in CALLED:
            stop = self._at(node.func, end=True)
            new = CALLED[name]
            if not (isinstance(node.func, ast.Name) and new == "mean"):  # no such function
                self._change(stop - len(name), stop, new, f"{name} becomes {new}")
        if name in DROPPED:
            whose = getattr(node.func, "value", None)
            if node.args:
                self._instead(node, f"({self._text(node.args[0])})", f"{name} is dropped")
            elif whose is not None:
                self._instead(node, self._text(whose), f"{name} is dropped")
        self.generic_visit(node)

    def _name(self, func: ast.expr) -> str:
        return getattr(func, "attr", "") or getattr(func, "id", "")

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if bound is not None and not isinstance(bound, ast.Constant | ast.UnaryOp):
                self._instead(bound, f"({self._text(bound)}) + 1", "the slice moves by one")
        self.generic_visit(node)
