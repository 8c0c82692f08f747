"""Pickles of NumPy arrays, as the zoos of detectron2 and Mask2Former publish them, read by an interpreter of our own.

``{"model": {name: array}, "__author__": ..., "matching_heuristics": ...}`` in any protocol. `pickletools` splits the
file into its instructions, and the interpreter knows those that build numbers, texts and containers, and calls nothing
but the stand-ins of `maskkit.checkpoints.inert`.
"""

import mmap
import pickletools
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskkit.checkpoints.inert import Array, Kind, Nothing, stand_in
from maskkit.checkpoints.listing import one_line
from maskkit.errors import DataError

MAX_INSTRUCTIONS = 3_000_000
"""Largest number of instructions; a network of a thousand arrays has some thirty thousand."""

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_BYTES = ("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_TEXTS = ("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_VALUES = frozenset((*_NUMBERS, *_BYTES, *_TEXTS))
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT, _GET = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
_NAMES = {"copy_reg": "copyreg", "__builtin__": "builtins"}
"""What Python 2 called modules."""


class _Refused(Exception):
    """A pickle with more than data in it."""


def is_pickle(start: bytes) -> bool:
    """Whether a file that begins like this is a plain pickle of protocol 2 or later."""
    return len(start) > 2 and start[0] == 0x80 and 2 <= start[1] <= 5


def load_arrays(path: Path) -> Any:
    """The content of a pickle: containers, numbers, texts, and `Array` in place of arrays. Runs no code of the file.

    Raises `DataError` for a damaged pickle, and for one that contains anything else.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _run(content)
    except _Refused as error:
        raise DataError(
            f"{path}: not read: it contains more than arrays, and a pickle can run code (it holds {one_line(error)}); "
            "if you trust it, save its arrays with safetensors"
        ) from None
    except (ValueError, LookupError, TypeError, OverflowError, MemoryError, RecursionError, AttributeError) as error:
        reason = one_line(error) or type(error).__name__
        raise DataError(f"{path}: not read: a damaged pickle ({reason}); download or copy it again") from None


def globals_of(content: Any) -> set[str]:
    """Everything that the pickle at the place of the stream ``content`` names, with dots. The stream is after it then.

    Raises ``ValueError`` for a damaged pickle.
    """
    found: set[str] = set()
    texts: list[str] = []
    for opcode, arg, _ in _instructions(content):
        if opcode in ("GLOBAL", "INST"):
            found.add(_named(*arg.split(" ", 1)))
        elif opcode == "STACK_GLOBAL":
            found.add(_named(*texts[-2:]) if len(texts) > 1 else "an unknown name")
        elif isinstance(arg, str):
            texts = [*texts[-1:], arg]
    return found


def _instructions(content: Any) -> Iterator[tuple[str, Any, int | None]]:
    for number, (opcode, arg, place) in enumerate(pickletools.genops(content)):
        if number > MAX_INSTRUCTIONS:
            raise ValueError(f"more than {MAX_INSTRUCTIONS} instructions")
        yield opcode.name, arg, place


def _run(content: Any) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, arg, _ in _instructions(content):
        if opcode in _VALUES:
            stack.append(arg)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            stack.append(_EMPTY[opcode]())
        elif opcode in _PUT:
            memo[int(arg)] = stack[-1]
        elif opcode == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif opcode in _GET:
            stack.append(memo[int(arg)])
        elif opcode in _TUPLES:
            stack[-_TUPLES[opcode] :] = [tuple(stack[-_TUPLES[opcode] :])]
        elif opcode == "MARK":
            marks.append(len(stack))
        elif opcode in ("TUPLE", "LIST", "FROZENSET"):
            items = since_mark()
            stack.append(items if opcode == "LIST" else tuple(items))
        elif opcode == "DICT":
            stack.append(_fill({}, since_mark()))
        elif opcode in ("SETITEM", "SETITEMS"):
            items = since_mark() if opcode == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _fill(stack[-1], items)
        elif opcode in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if opcode == "APPEND" else since_mark()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
            elif not isinstance(stack[-1], Nothing):
                raise ValueError("an element of no list")
        elif opcode in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(_found(*(arg.split(" ", 1) if opcode == "GLOBAL" else (stack.pop(-2), stack.pop()))))
        elif opcode in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            keywords = stack.pop() if opcode == "NEWOBJ_EX" else {}
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, () if keywords else arguments))
        elif opcode == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], Array | Kind | Nothing):
                raise ValueError("a state of something that has none")
            stack[-1].__setstate__(state)
        elif opcode == "POP":
            stack.pop()
        elif opcode == "POP_MARK":
            since_mark()
        elif opcode == "STOP":
            return stack.pop()
        elif opcode not in ("PROTO", "FRAME"):
            raise _Refused(f"the instruction {opcode}")
    raise ValueError("it has no end")


def _fill(target: Any, items: list[Any]) -> Any:
    """``target`` with keys and values that alternate in ``items``."""
    if isinstance(target, Nothing):
        return target
    if not isinstance(target, dict) or len(items) % 2:
        raise ValueError("an item of no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | bytes | int | float | None):
            key = f"a key of type {type(key).__name__}"  # nested ones could take for ever to compare
        target[key] = value
    return target


class _Callable:
    """What a name in the pickle stands for; only `_call` uses it."""

    def __init__(self, function: Any) -> None:
        self.function = function


def _named(module: str, name: str) -> str:
    return f"{_NAMES.get(module, module)}.{name}"


def _found(module: Any, name: Any) -> _Callable:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name that is no text")
    full = _named(module, name)
    function = OrderedDict if full == "collections.OrderedDict" else stand_in(full)
    if function is None:
        raise _Refused(full)
    return _Callable(function)


def _call(function: Any, arguments: Any) -> Any:
    if isinstance(function, Nothing):
        return Nothing()
    if not isinstance(function, _Callable) or not isinstance(arguments, tuple):
        raise ValueError("a call of something that is no function")
    if function.function is OrderedDict:  # old protocols give its items as a list of pairs
        pairs = [part for pair in (arguments[0] if arguments else []) for part in pair]
        return _fill(OrderedDict(), pairs)
    return function.function(*arguments)
