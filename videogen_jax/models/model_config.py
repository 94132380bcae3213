"""config.json of published models: read, and the type of each field checked, in one place."""

import json
import math
import types
import typing
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from videogen_jax.models.weights import WeightsError

LARGEST = 2**31  # above any size of a network
MAY_BE_ZERO = ("eos_token_id",)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      WeightsError: the file holds none.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not a model's JSON ({error}): download it again.") from None
    if not isinstance(given, dict):
        raise WeightsError(f"{path} is not a model's JSON (it is no object): download it again.")
    return given


def pick_fields(
    path: Path,
    given: Mapping[str, Any],
    kind: Any,
    class_name: str,
    fixed: Mapping[str, Any],
    ignored: Container[str],
) -> dict[str, Any]:
    """The fields of diffusers' config.json that a NamedTuple has.

    Args:
      path: of the file, for the error.
      given: its content.
      kind: the NamedTuple.
      class_name: the only `_class_name` that is supported.
      fixed: fields whose value cannot be another one.
      ignored: fields that do not matter.
    Raises:
      WeightsError: it is of another class, or has fields or values that are not supported.
    """
    found = {}
    for name, value in given.items():
        if name in kind._fields:
            found[name] = value
        elif name in fixed:
            if value != fixed[name]:
                raise WeightsError(f"{path}: {name} {value!r}: only {fixed[name]!r} is supported.")
        elif name == "_class_name":
            if value != class_name:
                raise WeightsError(
                    f"{path} is the config of {value}: give the folder of an {class_name}."
                )
        elif not (name in ignored or name.startswith("_")):
            raise WeightsError(f"{path}: {name} is not supported: use weights without it.")
    return found


def make_config(path: Path, kind: Any, fields: dict[str, Any]) -> Any:
    """Makes a NamedTuple of the fields that it has, each of the type of its annotation.

    Args:
      path: of the file, for the error.
      kind: NamedTuple with annotations like int, float | None or tuple[int, ...].
      fields: JSON values; others are passed over, missing ones take their defaults.
    Raises:
      WeightsError: a field has another type, or a size is not positive.
    """
    wanted = typing.get_type_hints(kind)
    found = {}
    for name, value in fields.items():
        if name not in wanted:
            continue
        least = 0 if name in MAY_BE_ZERO else 1
        if not _is_a(value, wanted[name], least):
            raise WeightsError(
                f"{path}: {name} is {_show(value)}, which should be {_describe(wanted[name])}: download it again."
            )
        found[name] = tuple(value) if isinstance(value, list) else value
    return kind(**found)


def _is_a(value: Any, wanted: Any, least: int) -> bool:
    if isinstance(wanted, types.UnionType):
        return any(_is_a(value, kind, least) for kind in typing.get_args(wanted))
    if typing.get_origin(wanted) is tuple:
        kind = typing.get_args(wanted)[0]
        entries = value if isinstance(value, list | tuple) else ()
        return bool(entries) and all(_is_a(entry, kind, least) for entry in entries)
    if wanted is int:
        return type(value) is int and least <= value < LARGEST
    if wanted is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) < LARGEST and math.isfinite(value)
    return type(value) is wanted  # str, bool, NoneType


def _describe(wanted: Any) -> str:
    if isinstance(wanted, types.UnionType):
        return " or ".join(map(_describe, typing.get_args(wanted)))
    if typing.get_origin(wanted) is tuple:
        return f"a list, each entry {_describe(typing.get_args(wanted)[0])}"
    words = {int: "a positive whole number", float: "a finite number", str: "a text"}
    return words.get(wanted, "true or false" if wanted is bool else "null")


def _show(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
