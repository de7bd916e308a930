"""Answers to what `interrupt` nodes ask: read, and checked before a run goes on with them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from workflows.errors import WorkflowInputError

Ask = Mapping[str, Any]
"""What a run waits for: `id`, `node`, `ask`, and `choices` or `schema` of the answer."""


class BadAnswer(WorkflowInputError):
    """An answer that the question does not allow; the run waits on, untouched."""

    code = "bad_answer"


def check_answers(
    asks: Sequence[Ask], answers: Mapping[str, Any], *, earlier: Collection[str] = ()
) -> dict[str, Any]:
    """The answers to what is asked, by id; raises BadAnswer for the first that cannot be taken.

    Answers to what was asked `earlier`, and answered then, are left out.
    """
    waiting = {ask["id"]: ask for ask in asks}
    taken: dict[str, Any] = {}
    for name, answer in answers.items():
        if name in waiting:
            _check(waiting[name], answer)
            taken[name] = answer
        elif name not in earlier:
            ids = ", ".join(waiting) or "nothing"
            raise BadAnswer(f"nothing waits under the id {name!r}; waiting: {ids}")
    return taken


def read_answers(asks: Sequence[Ask], texts: Sequence[str]) -> dict[str, Any]:
    """Texts `[ID=]ANSWER` as answers by id; the id may be left out where one thing is asked.

    An answer is JSON where it can be read as such, unless the text itself is one of the choices.
    """
    waiting = {ask["id"]: ask for ask in asks}
    answers: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in waiting:
            if len(waiting) != 1:
                ids = ", ".join(waiting) or "nothing"
                raise BadAnswer(f"answer {text!r} must have the form ID=ANSWER; waiting: {ids}")
            [name], value = waiting, text
        if name in answers:
            raise BadAnswer(f"{name!r} is answered twice; give one answer")
        answers[name] = _read(waiting[name], value)
    return answers


def schema_problem(schema: Any) -> str | None:
    """What is wrong with a JSON Schema (2020-12), None if nothing is."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        return str(error.message)
    return None


def _read(ask: Ask, text: str) -> Any:
    if text in (ask.get("choices") or ()):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _check(ask: Ask, answer: Any) -> None:
    choices, schema = ask.get("choices"), ask.get("schema")
    # 1 == True to Python, not to JSON
    if choices is not None and not any(_same(answer, choice) for choice in choices):
        listed = ", ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        raise BadAnswer(
            f"the answer {answer!r:.200} to node {ask['node']!r} must be one of {listed}"
        )
    if schema is not None and (problem := _violation(schema, answer)) is not None:
        raise BadAnswer(f"the answer to node {ask['node']!r} does not fit: {problem}")


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _violation(schema: Mapping[str, Any], answer: Any) -> str | None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    # An empty registry: a `$ref` never leads to another host.
    validator = Draft202012Validator(schema, registry=Registry())
    try:
        error = best_match(validator.iter_errors(answer))
    except Unresolvable as unresolved:
        return f"its schema refers to {unresolved.ref!r}, which is not in it"
    if error is None:
        return None
    return f"{error.json_path}: {error.message}"
