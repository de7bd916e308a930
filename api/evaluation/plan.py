"""What an evaluation consists of, checked before anything runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from api.evaluation.contenders import Contender, read_contenders
from api.evaluation.errors import EvaluationInputError
from api.evaluation.suites import Question, Suite, open_suite
from retrieval.build import Progress
from workflows.loading import Workflow
from workflows.resources import Overrides, ResourcePool, Resources, retrieves

DEFAULT = ("auto_rag", "naive_rag:k=@count")


@dataclass(frozen=True, slots=True)
class Order:
    """What a caller asks for; every path in it holds from any folder once it is planned."""

    suite: str
    workflows: tuple[str, ...] = DEFAULT
    docs: str | None = None
    engine: str | None = None
    model: str | None = None
    limit: int | None = None
    seed: int = 0
    at_once: int = 1

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Order:
        """The order of a manifest."""
        return cls(**{**plain, "workflows": tuple(plain["workflows"])})

    def command(self, out: Path) -> str:
        """The command line that goes on with this order in the folder `out`."""
        words = ["ragwright", "eval", self.suite]
        for name in self.workflows:
            words += ["--workflow", name]
        for option in ("docs", "engine", "model", "limit"):
            if (value := getattr(self, option)) is not None:
                words += [f"--{option}", str(value)]
        words += ["--seed", str(self.seed), "--at-once", str(self.at_once)]
        return shlex.join([*words, "--out", str(out), "--resume"])


@dataclass(frozen=True, slots=True)
class Plan:
    """An order with its questions, workflows and index; nothing is loaded yet."""

    order: Order
    suite: Suite
    questions: tuple[Question, ...]
    contenders: tuple[Contender, ...]
    index: Path | None

    @property
    def rows(self) -> int:
        """How many runs it takes."""
        return len(self.questions) * len(self.contenders)

    def resources(self, contender: Contender, pool: ResourcePool) -> Resources:
        """The resources of a workflow over the shared pool."""
        overrides = Overrides(self.order.engine, self.order.model)
        index = self.index if retrieves(contender.workflow) else None
        return Resources(contender.workflow.spec, pool, index=index, overrides=overrides)


def make_plan(order: Order, progress: Progress | None = None) -> Plan:
    """Check an order and index what its workflows search.

    Raises WorkflowInputError, SuiteInputError and their kin; nothing has run then.
    """
    contenders = read_contenders(order.workflows)
    suite = open_suite(order.suite, None if order.docs is None else Path(order.docs))
    searching = [one.label for one in contenders if retrieves(one.workflow)]
    if searching and suite.docs is None:
        raise EvaluationInputError(
            f"workflow {searching[0]!r} searches documents and {suite.name} brings none; give "
            "--docs PATH"
        )
    model = order.model
    planned = Order(
        **{
            **asdict(order),
            "suite": suite.name,
            "workflows": tuple(one.spec for one in contenders),
            "docs": None if order.docs is None else str(suite.docs),
            "model": str(Path(model).absolute()) if model and Path(model).is_dir() else model,
        }
    )
    index = suite.index(progress) if searching else None
    plan = Plan(planned, suite, suite.chosen(order.limit), tuple(contenders), index)
    for contender in contenders:
        plan.resources(contender, ResourcePool())
    return plan


def workflows_of(workflow: Workflow) -> list[Workflow]:
    """A workflow and all that it calls."""
    return [workflow, *(one for child in workflow.children.values() for one in workflows_of(child))]
