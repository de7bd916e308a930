"""Asking a person: the run rests until somebody answers."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator

from workflows.answers import schema_problem
from workflows.nodes.base import Node, NodeContext, State


class Interrupt(Node):
    """Shows `ask` and waits for an answer, one of `choices` or valid under `schema` if given."""

    ask: Any
    choices: list[Any] | None = Field(default=None, min_length=1)
    answer_schema: dict[str, Any] | None = Field(default=None, alias="schema")

    writes: ClassVar[dict[str, str]] = {"answer": "what was answered"}

    @field_validator("answer_schema")
    @classmethod
    def _a_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        problem = None if schema is None else schema_problem(schema)
        if problem is not None:
            raise ValueError(f"this is no JSON Schema: {problem}")
        return schema

    async def run(self, state: State, context: NodeContext) -> dict[str, Any]:
        """The answer, once there is one."""
        shown = {"ask": self.ask, "choices": self.choices, "schema": self.answer_schema}
        answer = context.ask({name: value for name, value in shown.items() if value is not None})
        context.note(ask=self.ask, answer=answer)
        return {"answer": answer}
