"""The first look at an untrusted file: what it is, and whether torch may see it.

Nothing here imports torch, so a refusal is quick and costs no memory. The wall against code in a
pickle is torch's own ``weights_only`` loader; this file keeps away from it what it was not built
for: other formats, bombs, archives that two readers understand differently, and pickles that
would crash or exhaust the process before any rule of torch is asked.
"""

import codecs
import itertools
import os
import pickletools
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

from dar_probe.errors import CheckpointError
from dar_probe.files.text import quote

Kind = Literal["zip", "npz", "safetensors", "gguf"]

MAX_ENTRIES, MAX_DIRECTORY = 16_384, 2**22  # SiT-XL/2 in training: about 1,500, and 0.1 MB
MAX_PICKLE, MAX_STEPS = 2**20, 150_000  # SiT-XL/2 in training: 0.1 MB, and 37,000
MAX_TUPLE = 1_000  # values in one tuple, nested ones counted as often as they are reached

# Everything that a checkpoint of tensors and plain settings needs, and much less than torch's
# own list, which other packages may widen and which has ways to allocate memory at will.
_DTYPES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool uint16 uint32 uint64 "
    "complex32 complex64 complex128 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
).split()
_STORAGES = "Double Float Half BFloat16 Long Int Short Char Byte Bool".split()
_EIGHT_BITS = "float8_e4m3fn float8_e5m2".split()  # their storages have no type of their own
# Classes of settings that people keep beside weights; their modules can be imported anywhere.
_IMPORTED = re.compile(
    r"(argparse|builtins|pathlib|datetime|numpy(\._?core\.multiarray|\.core\.multiarray|\.dtypes)?|"
    r"omegaconf(\.[a-z]+)*|collections|enum|types|typing|decimal|fractions|uuid)\.\w+"
)
_TORCHS_OWN = {"_codecs.encode", "builtins.bytearray", "builtins.complex"}  # its loader has them
MOST_NAMED = 12  # classes of one file that a hint names
# Names under which trainers keep weights; a hint that left an average out would be a wrong one.
_WEIGHTS = re.compile(r"(\w+_)?(ema\d?|model|net|module|generator|student|state_dict)(_\w+)?")
_META = "torch._utils._rebuild_meta_tensor_no_storage"
_UNTYPED = "torch.storage.UntypedStorage"
_CALLS = ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ")
ALLOWED_GLOBALS = frozenset(
    ["argparse.Namespace", "collections.OrderedDict", "torch.Size", "torch.device"]
    + ["collections.Counter", "__builtin__.set", "builtins.set"]
    + ["torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor_v2"]
    + ["torch._utils._rebuild_tensor_v3", _UNTYPED]
    + [f"torch.{name}" for name in (*_DTYPES, *_EIGHT_BITS)]
    + [f"torch.{name}Storage" for name in _STORAGES]
)

# Libraries whose packed weights are tensors of their own classes.
_PACKERS = {"torchao", "bitsandbytes", "optimum", "quanto", "modelopt", "hqq"}
_DEQUANTISE = (
    "save plain weights: torch.save({k: v if type(v) is torch.Tensor else v.dequantize() "
    "for k, v in model.state_dict().items()}, 'plain.pt')"
)

_UNPACK = "unpack it first"
_CONVERT = "torch.save(torch.load(OLD, map_location='cpu', weights_only=True), NEW) converts it"
_MAPS = frozenset(bytes([first]) for first in range(0x81, 0x90))
# Python that makes a file which is read of a pytree, see ``checkpoints.jax_model``.
SAVE_JAX = (
    "import jax, numpy; numpy.savez('model.npz', "
    "**{jax.tree_util.keystr(k, simple=True, separator='/'): numpy.asarray(v, 'float32') "
    "for k, v in jax.tree_util.tree_leaves_with_path(params)})"
)
_SIGNATURES = (
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "in torch's format of before 1.6", _CONVERT),
    (b"version https://git-lfs", "a git-lfs pointer, not the checkpoint", "run: git lfs pull"),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"PK\x05\x06", "an empty zip archive", "download or save the checkpoint again"),
    (b"\x93NUMPY", "a NumPy array, not a checkpoint", "latents go to --data latents:PATH"),
    (b"\x89HDF", "a netCDF or HDF5 file, not a checkpoint", "dar-probe report opens analyses"),
)
# RuntimeError: an encrypted entry, or a feature that Python's zipfile lacks.
_DAMAGE = (OSError, EOFError, ValueError, OverflowError, RuntimeError, struct.error)
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, *_DAMAGE)


def check(file: BufferedReader, path: Path) -> Kind:
    """Say which of the supported formats an open file has, and leave it rewound.

    A zip archive of torch has also passed every check that can be made without it.

    Raises:
        CheckpointError: the file is anything else, or a zip that torch must not see.
    """
    kind = _kind(file.read(512), quote(path))
    if kind == "zip":
        kind = _preflight(file, os.fstat(file.fileno()).st_size, quote(path))
    file.seek(0)
    return kind


@contextmanager
def open_file(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file; what fails while it is read is the file's fault too.

    Raises:
        CheckpointError: there is none, or it cannot be opened or read.
    """
    shown = quote(path)
    try:
        _check_regular(_mode(path), shown)  # before anything of a device is touched
        # A pipe that took the file's place since then would block for ever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            _check_regular(os.fstat(file.fileno()).st_mode, shown)
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {shown}", hint="check the path") from None
    except OSError as error:
        if error.strerror is None:  # a parser's own
            raise
        raise CheckpointError(
            f"{shown} cannot be opened: {error.strerror}",
            hint="check the path and its permissions",
        ) from error


def _mode(path: Path) -> int:
    try:
        return os.stat(path).st_mode
    except ValueError:  # a NUL in it, or half of a surrogate pair
        raise CheckpointError(
            f"{quote(path)} cannot be opened: it is no name of a file", hint="check the path"
        ) from None


def _check_regular(mode: int, shown: str) -> None:
    if stat.S_ISDIR(mode):
        raise CheckpointError(
            f"{shown} is a folder, not a file",
            hint="give a file inside it, or a folder of diffusers",
        )
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{shown} is not a regular file", hint="copy it to a file first")


def verify_checksums(file: BufferedReader, path: Path) -> None:
    """Compare all of a zip that passed ``check`` with its CRCs, which torch does not; rewind it.

    Raises:
        CheckpointError: naming the first entry that is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except _ZIP_ERRORS as error:
        raise _broken(quote(path), error) from error
    if damaged is not None:
        raise CheckpointError(
            f"{quote(path)} is damaged: the checksum of {quote(damaged)} does not match",
            hint="download or save it again, with torch's default checksums",
        )
    file.seek(0)


def _kind(head: bytes, shown: str) -> Kind:
    """Name the format from the first bytes, or refuse with a sentence of its own."""
    if head.startswith(b"GGUF"):  # as a length of a safetensors header, over a gigabyte
        return "gguf"
    # Before the signatures: the header's length may look like any of them.
    if head[8:9] == b"{" and not _is_text(head[:8]):
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    what, hint = _foreign(head)
    raise CheckpointError(f"{shown} is {what}", hint=hint)


def _foreign(head: bytes) -> tuple[str, str]:
    """Say what a file that is no checkpoint is, and what to do about it."""
    for signature, what, hint in _SIGNATURES:
        if head.startswith(signature):
            return what, hint
    if not head:
        return "empty", "download or save it again"
    if head[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html", b"<?xml", b"<head"):
        return "a web page, not a checkpoint", "log in there first, or use the direct link"
    if head[:1] in _MAPS and head[1:2] and (size := head[1] - 0xA0) in range(1, 32):
        name = head[2 : 2 + size]  # of the first entry of a map, as Flax writes trees
        if len(name) == size and name.isascii() and name.decode().isprintable():
            read = "flax.serialization.msgpack_restore(open(FILE, 'rb').read())"
            hint = f"import flax; params = {read}; {SAVE_JAX}"
            return "a msgpack file, as Flax writes parameters", hint
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a bare pickle, which is never opened", "save the state dict with torch.save"
    what = "a text file" if _is_text(head) else "neither torch's zip format, safetensors nor GGUF"
    return f"{what}, not a checkpoint", "give a .pt, .safetensors or .gguf file"


def _is_text(data: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data)  # may end inside a character
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\t\n\r" for char in text)


def _preflight(file: BufferedReader, size: int, shown: str) -> Kind:
    """Refuse a zip that neither torch.save nor NumPy wrote, before torch reads any of it."""
    check_directory(file, size, shown)
    try:
        entries = zipfile.ZipFile(file).infolist()
    except _ZIP_ERRORS as error:
        raise _broken(shown, error) from error
    names = [entry.filename for entry in entries]
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    pickle = _check_entries(entries, size, shown)
    try:
        pickled = zipfile.ZipFile(file).read(pickle)
    except _ZIP_ERRORS as error:
        raise _broken(shown, error) from error
    _check_pickle(pickled, shown)
    return "zip"


def check_directory(file: BufferedReader, size: int, shown: str) -> None:
    """Require that there is one central directory, where every reader looks for it.

    Readers differ in how they search for it, and an archive with two of them shows each reader
    another content. Layout: APPNOTE.TXT 4.3.14 to 4.3.16.

    Raises:
        CheckpointError: there is none, there are two, or it lists too many entries.
    """
    file.seek(max(0, size - 98))
    tail = file.read(98).rjust(98, b"\0")
    end64, locator, end = tail[:56], tail[56:76], tail[76:]
    if not end.startswith(b"PK\x05\x06") or end[20:] != b"\0\0":
        raise CheckpointError(
            f"{shown} is a zip archive that was cut short, or has something after its end",
            hint="download or save it again",
        )
    entries, length, start = struct.unpack("<HII", end[10:20])
    position = size - 22
    if locator.startswith(b"PK\x06\x07"):
        position = size - 98
        entries, length, start = struct.unpack("<QQQ", end64[32:])
        if not end64.startswith(b"PK\x06\x06") or locator[8:16] != struct.pack("<Q", position):
            raise _broken(shown, "its end record is not where it says")
    if start + length != position:
        raise _broken(shown, "its directory is not where it says")
    if entries > MAX_ENTRIES or length > MAX_DIRECTORY:
        raise _broken(shown, f"its directory lists {entries} entries in {length} bytes")


def _check_entries(entries: Sequence[zipfile.ZipInfo], size: int, shown: str) -> str:
    """Return the name of the one pickle among entries that torch.save could have written."""
    names = [entry.filename for entry in entries]
    root = names[0].partition("/")[0] if names else ""
    if f"{root}/constants.pkl" in names:
        raise CheckpointError(
            f"{shown} is a TorchScript archive, not a checkpoint",
            hint="save the module's state_dict() with torch.save",
        )
    if f"{root}/data.pkl" not in names:
        raise CheckpointError(
            f"{shown} is a zip archive that torch.save did not write",
            hint="give a .pt or .safetensors file",
        )
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise _broken(shown, f"its entry {quote(name)} is compressed, torch.save never does")
        # torch finds entries without regard to case.
        if name.lower() in seen or not name.startswith(f"{root}/"):
            raise _broken(shown, f"its entry {quote(name)} is there twice or in a second root")
        seen.add(name.lower())
        if name == f"{root}/data.pkl" and entry.file_size > MAX_PICKLE:
            raise _broken(shown, f"its pickle has {entry.file_size} bytes, over {MAX_PICKLE}")
    total = sum(entry.file_size for entry in entries)
    if total > size:
        raise _broken(shown, f"its entries claim {total} bytes, the file has {size}")
    return f"{root}/data.pkl"


def _check_pickle(pickled: bytes, shown: str) -> None:
    """Walk a pickle without running it: only known globals, and no large tuples.

    A tuple that is a key is hashed by recursion in C, shared parts again and again: 1 MB of nested
    ones ends the process, and 100 bytes keep it busy for ever.
    """
    stack: list[int] = []  # for every object on the pickle's stack, how many values it holds
    # Below 0: a class that may name the type of a storage, and must not be called, as it would take
    # as many bytes as it is told.
    marked: list[list[int]] = []
    memo: dict[Any, int] = {}
    arg: Any
    try:
        for step, (op, arg, _) in enumerate(pickletools.genops(pickled)):
            name = op.name
            if step == MAX_STEPS:
                raise CheckpointError(
                    f"{shown} is refused: its pickle has over {MAX_STEPS} steps",
                    hint="save the weights alone: torch.save(ema.state_dict(), FILE)",
                )
            if name == "GLOBAL" and (what := arg.replace(" ", ".", 1)) not in ALLOWED_GLOBALS:
                _refuse_packed(pickled, shown)
                raise _asks_for(what, pickled, shown)
            if name == "PROTO" and arg != 2:
                raise CheckpointError(
                    f"{shown} is pickled with protocol {arg}, which torch does not read safely",
                    hint="save it again with torch.save's own default, protocol 2",
                )
            if name == "MARK":
                marked.append(stack)
                stack = []
                continue
            if name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[arg] = stack[-1]
                continue
            taken: list[int] = []
            count = len(op.stack_before)
            if pickletools.markobject in op.stack_before:
                taken, stack = stack, marked.pop()
                count = op.stack_before.index(pickletools.markobject)
            taken += [stack.pop() for _ in range(count)]
            if name in _CALLS and min(taken, default=0) < 0:
                raise _broken(shown, "its pickle calls a storage")
            held = memo[arg] if name in ("GET", "BINGET", "LONG_BINGET") else 1
            if name == "GLOBAL" and arg.replace(" ", ".", 1) == _UNTYPED:
                held = -1
            if name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
                held = 1 + sum(map(abs, taken))
            if held > MAX_TUPLE:
                raise _broken(shown, f"its pickle has a tuple of over {MAX_TUPLE} values")
            stack += [held] * len(op.stack_after)
    except CheckpointError:
        raise
    except (ValueError, IndexError, KeyError, Warning) as error:  # Warning: a bad escape
        raise _broken(shown, "its pickle cannot be read") from error


def _asks_for(what: str, pickled: bytes, shown: str) -> CheckpointError:
    """Say that a file holds objects of classes, and how its weights are had without those."""
    if what == _META:
        return CheckpointError(
            f"{shown} holds names and shapes alone: its tensors were on the device meta",
            hint="save the model after its weights were loaded",
        )
    hint = "save the weights alone: torch.save(ema.state_dict(), FILE)"
    steps = list(itertools.islice(pickletools.genops(pickled), MAX_STEPS))
    names = [str(arg).replace(" ", ".", 1) for op, arg, _ in steps if op.name == "GLOBAL"]
    if any(name.rpartition(".")[2] in ("DTensor", "ShardedTensor") for name in names):
        return CheckpointError(
            f"{shown} holds weights that are spread over processes (DTensor, ShardedTensor)",
            hint="gather them before they are saved: torch.distributed.checkpoint.state_dict."
            "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))",
        )
    plain = dict.fromkeys(name.replace("__builtin__.", "builtins.") for name in names)
    ours = (ALLOWED_GLOBALS | _TORCHS_OWN) - {"argparse.Namespace"}  # torch's list lacks that
    asked = [name for name in plain if name not in ours]
    if len(asked) <= MOST_NAMED and all(_IMPORTED.fullmatch(name) for name in asked):
        modules = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in asked))
        # NumPy 2 calls what is in numpy.core otherwise: torch must be told the file's own name.
        asked = [f"({n}, '{n}')" if n.startswith("numpy.core.") else n for n in asked]
        if "numpy.dtype" in asked:  # each type of numbers has a class of its own
            asked.append("*map(type, map(numpy.dtype, '?bBhHiIlLqQefd'))")
        words = dict.fromkeys(str(arg) for op, arg, _ in steps if op.name == "BINUNICODE")
        kept = [word for word in words if len(word) < 30 and _WEIGHTS.fullmatch(word)][:MOST_NAMED]
        hint += (
            f"; or, if you trust its classes: import torch, {modules}; "
            f"torch.serialization.add_safe_globals([{', '.join(asked)}]); "
            "c = torch.load(FILE, map_location='cpu'); "
            f"torch.save({{k: c[k] for k in c if k in {kept or ['model', 'ema']}}}, NEW)"
        )
    return CheckpointError(
        f"{shown} is refused: it asks for {quote(what)}, and only tensors, plain containers and "
        "argparse.Namespace are read",
        hint=hint,
    )


def _refuse_packed(pickled: bytes, shown: str) -> None:
    """Refuse a pickle that asks for the classes of a library of packed weights.

    Raises:
        CheckpointError: it does.
    """
    for op, arg, _ in itertools.islice(pickletools.genops(pickled), MAX_STEPS):
        library = str(arg).partition(".")[0].partition(" ")[0] if op.name == "GLOBAL" else ""
        if library in _PACKERS:
            raise CheckpointError(
                f"{shown} holds weights quantised by {library}, whose classes are not run",
                hint=_DEQUANTISE,
            )


def _broken(shown: str, reason: object) -> CheckpointError:
    why = reason if isinstance(reason, str) else quote(reason)
    return CheckpointError(
        f"{shown} is damaged or was tampered with: {why}", hint="download or save it again"
    )
