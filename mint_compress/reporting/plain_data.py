"""Records as plain data, ready for JSON, and back: every value is checked against the type of its field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from numbers import Integral, Real
from types import NoneType
from typing import Any, TypeGuard, TypeVar, get_args, get_origin, get_type_hints

from mint_compress.errors import MintError, shown

Record = TypeVar("Record")


def plain(value: Any) -> Any:
    """Dicts, lists, strings, numbers and None; a number that is not finite is None."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


def nulls(kind: type) -> dict[str, Any]:
    """The keys of a record, with those of the records in it, and None for every value."""
    hints = get_type_hints(kind)
    return {name: nulls(hint) if _is_record(hint) else None for name, hint in hints.items()}


def read_record(kind: type[Record], data: Any, path: str = "") -> Record:
    """Read what :func:`plain` gave of a report, or of a record in it.

    Parameters
    ----------
    kind
        A dataclass.
    data
        What JSON holds. A key that is missing, or null, is its field's default, or None.
    path
        Where in the report it is, for messages.

    Raises
    ------
    MintError
        A key that ``kind`` does not have, or a value that its field cannot have.
    """
    if not isinstance(data, Mapping):
        raise _damaged(path, data)
    hints = get_type_hints(kind)
    if unknown := [key for key in data if key not in hints]:
        raise MintError(
            f"The report has a key {shown(_below(path, unknown[0]))!r} that this version does not know. "
            "Update mint-compress."
        )
    found = {}
    for field in fields(kind):  # type: ignore[arg-type]
        value = data.get(field.name)
        default = field.default is not MISSING or field.default_factory is not MISSING
        if value is not None or not default:
            found[field.name] = _read(hints[field.name], value, _below(path, field.name))
    return kind(**found)


def _read(hint: Any, data: Any, path: str) -> Any:
    if hint is Any:
        return data
    kinds = get_args(hint)
    if NoneType in kinds:
        absent = _is_null(data) if _is_record(kinds[0]) else data is None
        return None if absent else _read(kinds[0], data, path)
    if _is_record(hint):
        return read_record(hint, data, path)
    if get_origin(hint) is tuple and isinstance(data, list):
        return tuple(_read(kinds[0], one, f"{path}[{i}]") for i, one in enumerate(data))
    if get_origin(hint) is Mapping and isinstance(data, Mapping):
        return {key: _read(kinds[1], one, _below(path, key)) for key, one in data.items()}
    scalars = (int, float) if hint is float else hint
    # True and False are whole numbers to Python, and nowhere else
    if isinstance(hint, type) and isinstance(data, scalars) and isinstance(data, bool) == (hint is bool):
        return data
    raise _damaged(path, data)


def _is_record(hint: Any) -> TypeGuard[type]:
    return isinstance(hint, type) and is_dataclass(hint)


def _is_null(data: Any) -> bool:
    """Whether nothing was measured: the keys of a record may be there all the same, see :func:`nulls`."""
    return data is None or (isinstance(data, Mapping) and all(map(_is_null, data.values())))


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _damaged(path: str, data: Any) -> MintError:
    said = "missing" if data is None else shown(repr(data))
    return MintError(f"This is not a report, or a damaged one: {path or 'the whole'} is {said}.")
