"""A pickle's recipe: what it would build, call and declare, known without doing any of it.

PyTorch's weights-only unpickler does what a pickle says as far as an allow-list goes. What is on that
list can be called with any arguments: ``bytearray(10**11)``, a layer of 10**9 inputs, a tensor larger
than its memory. So every step is followed here first, with stand-ins for the objects.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import warnings
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO, NamedTuple

# what else the layers of torchvision and timm keep as attributes, looked at one by one: an enumeration of
# layouts, and activations, which call nothing that they are given
ENUMERATIONS = ("timm.layers.format.Format",)
ACTIVATIONS = (
    *("torch.nn.functional.relu", "torch.nn.functional.silu", "torch._C._nn.gelu"),
    "timm.layers.activations.gelu",
)
PARTIAL = "functools.partial"

# training scripts leave these beside the weights; they are read as empty objects, never built
INERT = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)

# how a pickle makes tensors; each begins with (storage, offset, size, stride), or holds no memory
REBUILDING = frozenset(
    f"torch._utils._rebuild_{kind}"
    for kind in (
        *("tensor", "tensor_v2", "tensor_v3", "qtensor", "parameter", "parameter_with_state"),
        *("sparse_tensor", "meta_tensor_no_storage"),
    )
)
# PyTorch's own list is longer: bytearray(10**11) and torch.Tensor(10**6, 10**6) are on it
CALLED = REBUILDING | {
    *("torch._tensor._rebuild_from_type_v2", "torch.serialization._get_layout", "torch.Size"),
    *("torch.device", "collections.OrderedDict", "builtins.set", "builtins.complex", "_codecs.encode"),
    *INERT,
}
TENSOR_TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
ELEMENT_BYTES = {
    **{"ComplexDouble": 16, "ComplexFloat": 8, "Double": 8, "Long": 8, "Float": 4, "Int": 4},
    **{"Half": 2, "BFloat16": 2, "Short": 2},
}
CONSTANTS = {
    *("NONE", "NEWTRUE", "NEWFALSE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "BININT", "BININT1"),
    *("BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"),
}

# bytes of steps, each taken in Python, here and by PyTorch; a whole ResNet-152 has 188,217
MOST_STEPS = 4 * 2**20


class _Name(str):
    """What a pickle names: a class or a function."""


class _Storage(NamedTuple):
    elements: int


class _Tuple(tuple[Any, ...]):
    """A tuple that knows how many objects it holds, a shared one counted as often as it occurs."""

    weight = 0


_FINISHED = object()
"""Stands for a tensor or an enumerated value, which no step may change."""


class CallsError(pickle.UnpicklingError):
    """The pickle would call what the message names."""


class LayerPartial(partial):  # type: ignore[type-arg]
    """``functools.partial`` of a layer class with numbers and words: all that a file may make of one."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 4 or not self._is_plain(*state):
            raise pickle.UnpicklingError("a partial of something else than a layer")
        super().__setstate__(state)  # type: ignore[misc]

    def _is_plain(self, func: Any, args: Any, keywords: Any, attributes: Any) -> bool:
        if func is not self.func or attributes or not isinstance(args, tuple):
            return False
        if keywords is not None and (type(keywords) is not dict or not all(type(k) is str for k in keywords)):
            return False
        values = (*args, *(keywords or {}).values())
        return all(isinstance(v, bool | int | float | str | None) for v in values)

    def __reduce__(self) -> Any:
        # so that it can be read without this package
        return partial, (self.func,), (self.func, self.args, self.keywords, None)


class Recipe:
    """A pickle followed step by step with stand-ins for all objects: nothing is built, nothing called.

    It knows the steps that PyTorch's weights-only unpickler knows, and moves its stacks as that does.
    Classes and functions may lie anywhere in the data; what counts are the places from which they are
    called. A layer class may make an object that is empty, to be filled from a dict.
    """

    def __init__(self, allowed: set[str]) -> None:
        self.layers = allowed - {*INERT, *ACTIVATIONS, *ENUMERATIONS, PARTIAL}
        self.allowed = allowed
        self.storages: dict[str, int] = {}
        """Key -> bytes that the pickle expects."""
        self.stack: list[Any] = []
        self.waiting: list[list[Any]] = []
        self.memo: dict[Any, Any] = {}

    @staticmethod
    def require(condition: bool) -> None:
        """Go on only when ``condition`` holds."""
        if not condition:
            raise pickle.UnpicklingError("not what torch.save writes")

    def follow(self, stream: BinaryIO) -> None:
        """Take all steps of the pickle that ``stream`` stands at, to its end.

        Raises
        ------
        pickle.UnpicklingError
            It is not what torch.save writes; a :class:`CallsError` when it would call something.
        """
        self.stack, self.waiting, self.memo = [], [], {}
        with warnings.catch_warnings():
            # pickletools decodes what it then refuses, and Python warns of its escapes
            warnings.simplefilter("ignore")
            for step, argument, position in _steps(stream):
                self.require(position < MOST_STEPS)
                self._take(step, argument)

    def _take(self, step: str, argument: Any) -> None:
        if step in CONSTANTS:
            self.stack.append(argument)
        elif step in ("BINPUT", "LONG_BINPUT"):
            self.require(bool(self.stack))
            self.memo[argument] = self.stack[-1]
        elif step in ("BINGET", "LONG_BINGET"):
            self.require(argument in self.memo)
            self.stack.append(self.memo[argument])
        elif step == "GLOBAL":
            self.stack.append(_named(argument))
        elif step not in ("PROTO", "STOP"):
            self._move(step)

    def _move(self, step: str) -> None:
        if step == "MARK":
            self.waiting.append(self.stack)
            self.stack = []
        elif step in ("TUPLE", "APPENDS", "SETITEMS"):
            self.require(bool(self.waiting))
            items, self.stack = self.stack, self.waiting.pop()
            if step == "TUPLE":
                self._tie(items)
        elif step in ("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            count = 0 if step == "EMPTY_TUPLE" else int(step[-1])
            self._tie(self._last(count))
        elif step in ("APPEND", "SETITEM"):
            self._last(1 if step == "APPEND" else 2)
        elif step == "BUILD":
            self._last(1)
            self.require(bool(self.stack) and self.stack[-1] is not _FINISHED)
        elif step == "BINPERSID":
            self.stack.append(self._storage(*self._last(1)))
        else:
            self.require(step in ("REDUCE", "NEWOBJ"))
            called, arguments = self._last(2)
            self.require(isinstance(arguments, tuple))
            if not isinstance(called, _Name):
                raise CallsError("what is no function")
            self.stack.append((self._call if step == "REDUCE" else self._make)(called, arguments))

    def _tie(self, items: Sequence[Any]) -> None:
        made = _Tuple(items)
        made.weight = 1 + sum(i.weight if isinstance(i, _Tuple) else 1 for i in items)
        # 60 tuples, each twice in the next, would be hashed for years as the key of a dict
        self.require(made.weight < MOST_STEPS)
        self.stack.append(made)

    def _last(self, count: int) -> tuple[Any, ...]:
        self.require(len(self.stack) >= count)
        return tuple(self.stack.pop() for _ in range(count))[::-1]

    def _make(self, made: _Name, arguments: tuple[Any, ...]) -> None:
        """An empty object; anything else is a call in disguise."""
        if made not in {*self.layers, *INERT, "collections.OrderedDict"} or arguments:
            raise CallsError(made)

    def _call(self, called: _Name, arguments: tuple[Any, ...]) -> Any:
        if called == PARTIAL or called in ENUMERATIONS:
            self.require(len(arguments) == 1)
            given = arguments[0]
            named = isinstance(given, _Name)
            if called not in self.allowed or (called == PARTIAL) != (named and given in self.layers):
                raise CallsError(called)
            return None if called == PARTIAL else _FINISHED
        if called not in CALLED:
            raise CallsError(called)
        if called == "torch._tensor._rebuild_from_type_v2":
            self.require(len(arguments) == 4 and isinstance(arguments[2], tuple))
            called, kind, arguments, _ = arguments
            if not isinstance(called, _Name) or called not in REBUILDING or kind not in TENSOR_TYPES:
                raise CallsError(called if isinstance(called, _Name) else "what is no function")
        if called == "_codecs.encode":
            self.require(arguments[1:] in (("latin1",), ("latin-1",)))
        if called == "torch.Size":
            self.require(len(arguments) == 1)
            return arguments[0]
        if called not in REBUILDING:
            return None
        if arguments and isinstance(arguments[0], _Storage):
            self.require(len(arguments) >= 4)
            self._measure(arguments[0], *arguments[1:4])
        return _FINISHED

    def _storage(self, reference: Any) -> _Storage:
        self.require(isinstance(reference, tuple) and len(reference) >= 5)
        what, kind, key, _, elements = reference[:5]
        if what == "module":
            raise CallsError("the source code of a module")
        self.require(what == "storage" and isinstance(kind, _Name) and isinstance(elements, int))
        self.require(elements >= 0 and isinstance(key, str))
        each = ELEMENT_BYTES.get(kind.rpartition(".")[2].removesuffix("Storage"), 1)
        self.storages[key] = max(elements * each, self.storages.get(key, 0))
        return _Storage(elements)

    def _measure(self, storage: _Storage, offset: Any, size: Any, stride: Any) -> None:
        """Refuse a tensor that reaches beyond its storage: PyTorch would make the storage larger."""
        self.require(isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride))
        self.require(all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)))
        reach = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        self.require(0 in size or reach <= storage.elements)


def _steps(stream: BinaryIO) -> Iterator[tuple[str, Any, int]]:
    """Name, argument and place of each step; only the standard library's reader is watched in here."""
    try:
        for opcode, argument, position in pickletools.genops(stream):
            yield opcode.name, argument, position or 0
    except (ValueError, struct.error, OverflowError, MemoryError, OSError) as error:
        raise pickle.UnpicklingError(str(error)) from None


def _named(argument: str) -> _Name:
    # pickles of protocol 2 carry Python 2's names of the standard library
    module, _, name = argument.partition(" ")
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return _Name(f"{module}.{name}")
