"""Reads JSON files of data sets, and checks the type of each field once, where the file is read.

A table of fields is a mapping from names to types; a type is one of

    str, int, bool        that type; True is no int
    float                 a finite number; whole numbers are converted
    [type]                a list of such values
    {str: type}           a mapping from any names to such values
    {"name": type, ...}   a mapping with at least these fields
    Optional(type)        such a value, null, or a missing field
    a NamedTuple          a mapping with its fields, of their annotated types; those with defaults may be missing
    object                any value

Annotations such as list[int], dict[str, float] and str | None mean the same.
"""

import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

CHECKSUM = "checksum_of_fields"


class FieldError(ValueError):
    """A file is no JSON, or a field of it has the wrong type; the message names the file and the field."""


class Optional(NamedTuple):
    """The type of a field that may be null or missing."""

    type: Any


def read(path: str | Path, fields: Any, way_out: str = "") -> Any:
    """Reads a JSON file.

    Args:
      path: path of the file.
      fields: type of its content, most often a table of fields.
      way_out: what the user can do about a damaged file; ends the message.
    Returns:
      Its content.
    Raises:
      FieldError: it is damaged.
      OSError: it is missing, or may not be read.
    """
    return parse(path, Path(path).read_bytes(), fields, way_out)


def parse(path: str | Path, text: str | bytes, fields: Any, way_out: str = "") -> Any:
    """Parses JSON that was read from a file; arguments and errors as `read`."""
    end = f": {way_out}" if way_out else "."
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError too
        raise FieldError(f"{path} is damaged ({str(error) or 'nested too deeply'}){end}") from error
    if isinstance(content, dict) and content.pop(CHECKSUM, None) not in (None, _digest(content)):
        raise FieldError(f"{path} is damaged (its fields do not match their checksum){end}")
    try:
        return check(content, fields)
    except FieldError as error:
        raise FieldError(f"{path} is damaged ({error}){end}") from None


def dump_checked(content: dict[str, Any]) -> str:
    """Serializes fields with a checksum of them, which `parse` verifies and removes."""
    return json.dumps(content | {CHECKSUM: _digest(content)})


def _digest(content):
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def check(value: Any, kind: Any, name: str = "") -> Any:
    """Checks a value against a type.

    Args:
      value: JSON value.
      kind: its type; see above.
      name: dotted name of the value, for the error message.
    Returns:
      The value; whole numbers as float where that is the type.
    Raises:
      FieldError: names the field, and what it should be.
    """
    kind = _read_annotation(kind)
    if isinstance(kind, Optional):
        return None if value is None else check(value, kind.type, name)
    if kind is object:
        return value
    if hasattr(kind, "_field_defaults"):
        return _check_tuple(value, kind, name)
    if isinstance(kind, list):
        _expect(isinstance(value, list), name, "a list", value)
        return [check(item, kind[0], f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(kind, Mapping):
        _expect(isinstance(value, dict), name, "a mapping", value)
        if str in kind:
            return {key: check(item, kind[str], _join(name, key)) for key, item in value.items()}
        present = [key for key in kind if key in value or not _may_be_absent(kind[key])]
        return value | {key: _check_field(value, key, kind[key], name) for key in present}
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        _expect(number and _is_finite(value), name, "a number", value)
        return float(value)
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _expect(right, name, {str: "text", int: "a whole number", bool: "true or false"}[kind], value)
    return value


def _is_finite(value):
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False


def _read_annotation(kind):
    """Turns an annotation such as list[int] or str | None into the types of this module."""
    parts = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        (kind,) = (part for part in parts if part is not types.NoneType)
        return Optional(kind)
    if typing.get_origin(kind) is list:
        return [parts[0]]
    if typing.get_origin(kind) is dict:
        return {str: parts[1]}
    return object if kind is Any else kind


def _check_tuple(value, kind, name):
    _expect(isinstance(value, dict), name, "a mapping", value)
    for key in value:
        if key not in kind._fields:
            raise FieldError(f"the field {_join(name, key)} is not known to this version")
    present = [key for key in kind._fields if key in value or key not in kind._field_defaults]
    types_of = kind.__annotations__
    return kind(**{key: _check_field(value, key, types_of[key], name) for key in present})


def _may_be_absent(kind):
    return isinstance(kind, Optional | types.UnionType)


def _check_field(value, key, kind, name):
    if key not in value:
        raise FieldError(f"the field {_join(name, key)} is missing")
    return check(value[key], kind, _join(name, key))


def _join(name, key):
    return f"{name}.{key}" if name else key


def _expect(right, name, what, value):
    if not right:
        shown = json.dumps(value)
        shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
        raise FieldError(f"{name or 'its content'} should be {what}, but is {shown}")
