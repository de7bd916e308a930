"""Runs every workflow over every question, through one pool of engines."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from api.evaluation.contenders import Contender
from api.evaluation.plan import Plan
from api.evaluation.results import Results, Row
from api.evaluation.scores import exact_match, f1, supporting_recall
from api.evaluation.suites import Question
from workflows.resources import ResourcePool, Resources
from workflows.runtime import RunOptions, RunResult, RunStatus, execute
from workflows.scope import budget_of

Told = Callable[[Row], None]


async def evaluate(plan: Plan, results: Results, told: Told | None = None) -> None:
    """Run what has no row yet; `told` hears of each row that is added.

    `plan.order.at_once` questions are in work at a time, the workflows of one after the other in
    their order. A run that fails is a row. Cancelled, it leaves the rows that were finished.
    """
    pool = ResourcePool()
    try:
        opened = {one.label: plan.resources(one, pool) for one in plan.contenders}
        for resources in opened.values():
            await resources.open()
        work = _Work(plan, results, opened, told)
        pending = iter(plan.questions)

        async def worker() -> None:
            for question in pending:
                await work.ask(question)

        tasks = [asyncio.create_task(worker()) for _ in range(plan.order.at_once)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    finally:
        pool.close()


class _Work:
    def __init__(
        self,
        plan: Plan,
        results: Results,
        opened: Mapping[str, Resources],
        told: Told | None,
    ) -> None:
        self.plan = plan
        self.results = results
        self.opened = opened
        self.told = told

    async def ask(self, question: Question) -> None:
        """All workflows over one question; what has a row is not run again."""
        first: Row | None = None
        for contender in self.plan.contenders:
            row = self.results.rows.get((contender.label, question.id))
            if row is None:
                row = await self._run(contender, question, first)
                self.results.add(row)
                if self.told is not None:
                    self.told(row)
            first = first or row

    async def _run(self, contender: Contender, question: Question, first: Row | None) -> Row:
        resources = self.opened[contender.label]
        citations = None if first is None or first.error else first.citations
        name = hashlib.sha256(f"{contender.label}\n{question.id}".encode()).hexdigest()[:24]
        try:
            inputs = contender.inputs_for(question.text, citations)
            options = RunOptions(
                name,
                seed=self.plan.order.seed,
                # How a run ends shall not depend on who else runs, nor on the machine.
                budget=replace(budget_of(contender.workflow, inputs), seconds=None),
                stream_text=True,  # in the event loop, where no pool of threads is the limit
                tenant=name if _separates(resources) else "",
            )
            result = await execute(contender.workflow, inputs, resources, options)
        except Exception as error:  # whatever it is, the other questions are not to blame
            code = getattr(error, "code", type(error).__name__)
            return row_of(contender, question, None, {"code": str(code), "message": str(error)})
        if result.status is RunStatus.CANCELLED:
            raise asyncio.CancelledError
        return row_of(contender, question, result, _error(result))


def _separates(resources: Resources) -> bool:
    """True if every engine can keep the cached prefixes of one run from those of another."""
    return all(resources.engine_name(name) == "native" for name in resources.engines)


def _error(result: RunResult) -> dict[str, str] | None:
    if result.status is RunStatus.COMPLETED:
        return None
    waits = {"code": "asked", "message": "the run waits for an answer, and nobody is asked here"}
    return result.error or waits


def row_of(
    contender: Contender,
    question: Question,
    result: RunResult | None,
    error: dict[str, str] | None,
) -> Row:
    """The row of a run, None where it could not begin."""
    outputs: Mapping[str, Any] = result.outputs if result is not None else {}
    answer = outputs.get("answer")
    text = answer if isinstance(answer, str) else None if answer is None else str(answer)
    cited = outputs.get("citations")
    citations = cited if contender.reads and isinstance(cited, list) else None
    tells = contender.reads and "citations" in contender.workflow.spec.outputs
    recall = supporting_recall(question.supporting, citations or []) if tells else None
    right = text if text is not None and error is None else None
    return Row(
        contender.label,
        question.id,
        text,
        exact_match=0.0 if right is None else exact_match(right, question.golds),
        f1=0.0 if right is None else f1(right, question.golds),
        recall=0.0 if recall is not None and error is not None else recall,
        rounds=_number(outputs, ("rounds", "iterations")),
        malformed_turns=_number(outputs, ("malformed_turns",)),
        ending=outputs["ending"] if isinstance(outputs.get("ending"), str) else None,
        usage=None if result is None else dict(result.usage),
        citations=citations,
        error=error,
        queries=_texts(outputs.get("queries")),
    )


def _texts(value: object) -> list[str] | None:
    return [str(one) for one in value] if isinstance(value, list) else None


def _number(outputs: Mapping[str, Any], names: Sequence[str]) -> int | None:
    return next((outputs[name] for name in names if isinstance(outputs.get(name), int)), None)
