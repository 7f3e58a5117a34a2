# SPDX-License-Identifier: GPL-2.0-only
"""As much of JSON Schema (2020-12) as our own schema uses: says where a value breaks it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
ANNOTATIONS = frozenset({"$schema", "$id", "$defs", "title", "description"})
KEYWORDS = ANNOTATIONS | {
    "$ref", "type", "const", "enum", "minimum", "maximum", "pattern", "minLength", "minItems", "items",
    "properties", "required", "additionalProperties",
}  # fmt: skip


def breaches(value: Any, schema: dict[str, Any], root: dict[str, Any], where: str = "") -> Iterator[str]:
    """A sentence for each place at which ``value`` is not what ``schema`` says."""
    if not schema.keys() <= KEYWORDS:
        raise AssertionError(f"the validator doesn't know {schema.keys() - KEYWORDS}")
    if "$ref" in schema:
        yield from breaches(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, where)
    wanted = schema.get("type")
    if wanted is not None:
        right = isinstance(value, TYPES[wanted])
        if not right or (isinstance(value, bool) and wanted != "boolean"):
            yield f"{where} is no {wanted}"
            return
    if "const" in schema and value != schema["const"]:
        yield f"{where} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} is {value!r}, which is not listed"
    if value < schema.get("minimum", value) if isinstance(value, (int, float)) else False:
        yield f"{where} is too small"
    if value > schema.get("maximum", value) if isinstance(value, (int, float)) else False:
        yield f"{where} is too large"
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{where} does not match"
        if len(value) < schema.get("minLength", 0):
            yield f"{where} is too short"
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{where} has too few items"
        for number, item in enumerate(value):
            yield from breaches(item, schema.get("items", {}), root, f"{where}[{number}]")
    if isinstance(value, dict):
        yield from _members(value, schema, root, where)


def _members(
    value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], where: str
) -> Iterator[str]:
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{where}.{name} is missing"
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name, member in value.items():
        if name in known:
            yield from breaches(member, known[name], root, f"{where}.{name}")
        elif others is False:
            yield f"{where}.{name} is not foreseen"
        elif others is not True:
            yield from breaches(member, others, root, f"{where}.{name}")
