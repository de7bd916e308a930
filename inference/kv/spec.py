"""A policy by its name and options, as text (`streaming_llm:sinks=4,recent=60`) or as a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from inference.errors import KVInputError
from inference.kv.base import KVPolicy
from inference.kv.table import KV_POLICIES
from inference.suggest import nearest


def parse(text: str) -> KVPolicy:
    """The policy `NAME` or `NAME:OPTION=VALUE,OPTION=VALUE`; raises KVInputError."""
    name, colon, rest = text.partition(":")
    options: dict[str, str] = {}
    for part in rest.split(",") if colon else ():
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if not (option and equals and value):
            raise KVInputError(
                f"KV policy {text!r}: {part!r} is not OPTION=VALUE; "
                f"write {name.strip() or 'NAME'}:OPTION=VALUE,OPTION=VALUE"
            )
        if option in options:
            raise KVInputError(
                f"KV policy {text!r} gives option {option!r} twice; keep one", option
            )
        options[option] = value
    return _policy(name.strip(), options, strict=False)


def build(options: Mapping[str, Any]) -> KVPolicy:
    """The policy of a mapping `{use: NAME, OPTION: VALUE}`, values typed; raises KVInputError."""
    rest = dict(options)
    name = rest.pop("use", None)
    if not isinstance(name, str):
        known = ", ".join(sorted(KV_POLICIES))
        raise KVInputError(
            f"a KV policy needs its name under 'use' (found: {name!r}); use one of {known}", "use"
        )
    return _policy(name, rest, strict=True)


def name_of(policy: KVPolicy) -> str:
    """The name of a policy in the table, or that of its class if the table lacks it."""
    names = (name for name, row in KV_POLICIES.items() if row is type(policy))
    return next(names, type(policy).__name__)


def spell(policy: KVPolicy) -> str:
    """A policy with all of its options as `parse` reads it."""
    options = ",".join(f"{name}={value}" for name, value in policy.model_dump(mode="json").items())
    return f"{name_of(policy)}:{options}" if options else name_of(policy)


def _policy(name: str, options: Mapping[str, Any], *, strict: bool) -> KVPolicy:
    row = KV_POLICIES.get(name)
    if row is None:
        raise KVInputError(f"unknown KV policy {name!r}; {nearest(name, KV_POLICIES)}", "use")
    for option in options:
        if option not in row.model_fields:
            hint = nearest(option, row.model_fields)
            message = f"KV policy {name!r} has no option {option!r}; {hint}"
            raise KVInputError(message, option, unknown=True)
    try:
        return row.model_validate(options, strict=strict)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = str(first["loc"][0]) if first["loc"] else None
        rule = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        place = f"option {at}={first['input']!r}" if at else "these options"
        raise KVInputError(f"KV policy {name!r}: {place} {rule}", at) from None
