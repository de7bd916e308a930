"""Methods by name and options: as text (`NAME:OPTION=VALUE,OPTION=VALUE`) or as a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from inference.errors import MethodInputError
from inference.suggest import nearest

M = TypeVar("M", bound=BaseModel)


class Methods(Generic[M]):
    """The methods of a table, each a model whose fields are its options.

    `noun` is what errors call one of them, `error` the class that is raised.
    """

    def __init__(
        self, noun: str, table: Mapping[str, type[M]], error: type[MethodInputError]
    ) -> None:
        self._noun = noun
        self._table = table
        self._error = error

    def parse(self, text: str) -> M:
        """The method `NAME` or `NAME:OPTION=VALUE,OPTION=VALUE`."""
        name, colon, rest = text.partition(":")
        options: dict[str, str] = {}
        for part in rest.split(",") if colon else ():
            option, equals, value = (piece.strip() for piece in part.partition("="))
            if not (option and equals and value):
                raise self._error(
                    f"{self._noun} {text!r}: {part!r} is not OPTION=VALUE; "
                    f"write {name.strip() or 'NAME'}:OPTION=VALUE,OPTION=VALUE"
                )
            if option in options:
                raise self._error(
                    f"{self._noun} {text!r} gives option {option!r} twice; keep one", option
                )
            options[option] = value
        return self._make(name.strip(), options, strict=False)

    def build(self, options: Mapping[str, Any]) -> M:
        """The method of a mapping `{use: NAME, OPTION: VALUE}`, values typed."""
        rest = dict(options)
        name = rest.pop("use", None)
        if not isinstance(name, str):
            known = ", ".join(sorted(self._table))
            raise self._error(
                f"a {self._noun} needs its name under 'use' (found: {name!r}); use one of {known}",
                "use",
            )
        return self._make(name, rest, strict=True)

    def of(self, given: object, key: str) -> M | None:
        """The method of either form, None for None; `key` is where it was given."""
        if given is None:
            return None
        if isinstance(given, str):
            return self.parse(given)
        if isinstance(given, dict):
            return self.build(given)
        raise self._error(
            f"{key} must be a mapping {{use: NAME, OPTION: VALUE}} or a text (found: {given!r})"
        )

    def name_of(self, method: M) -> str:
        """The name of a method in the table, or that of its class if the table lacks it."""
        names = (name for name, row in self._table.items() if row is type(method))
        return next(names, type(method).__name__)

    def spell(self, method: M) -> str:
        """A method with all of its options as `parse` reads it."""
        given = method.model_dump(mode="json", exclude_none=True)
        options = ",".join(f"{name}={value}" for name, value in given.items())
        return f"{self.name_of(method)}:{options}" if options else self.name_of(method)

    def _make(self, name: str, options: Mapping[str, Any], *, strict: bool) -> M:
        row = self._table.get(name)
        if row is None:
            raise self._error(f"unknown {self._noun} {name!r}; {nearest(name, self._table)}", "use")
        for option in options:
            if option not in row.model_fields:
                hint = nearest(option, row.model_fields)
                message = f"{self._noun} {name!r} has no option {option!r}; {hint}"
                raise self._error(message, option, unknown=True)
        try:
            return row.model_validate(options, strict=strict)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            at = str(first["loc"][0]) if first["loc"] else None
            rule = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
            place = f"option {at}={first['input']!r}" if at else "these options"
            raise self._error(f"{self._noun} {name!r}: {place} {rule}", at) from None
