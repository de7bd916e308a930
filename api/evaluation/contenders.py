"""Workflows that are compared, `NAME[:INPUT=VALUE,...]`, and references to what the first did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.evaluation.errors import EvaluationInputError
from api.evaluation.scores import distinct
from workflows.errors import WorkflowInputError
from workflows.loading import Workflow, load_workflow, parse_input, shipped_workflows
from workflows.resources import retrieves, uses_graph

HIT = ("id", "document_id", "title", "source", "start", "end", "text", "score")
"""What a passage is described by, as in a node's hits; what a method noted on it is left out."""


def count(citations: Sequence[Mapping[str, Any]]) -> int:
    """How many passages were read, at least 1."""
    return max(1, len(distinct(citations)))


def passages(citations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The passages that were read, in the order in which they were."""
    return [{key: one[key] for key in HIT if key in one} for one in distinct(citations)]


REFERENCES: dict[str, tuple[str, Callable[[Sequence[Mapping[str, Any]]], Any]]] = {
    "@count": ("integer", count),
    "@passages": ("list", passages),
}
"""Reference -> type of the inputs that take it, and what it makes of the first one's citations."""

_SAMPLE = [dict.fromkeys(HIT, "x")]


@dataclass(frozen=True, slots=True)
class Contender:
    """A workflow with the inputs it is run with; `label` is what it is called in results."""

    label: str
    spec: str
    workflow: Workflow
    inputs: Mapping[str, Any]
    references: Mapping[str, str]

    @property
    def reads(self) -> bool:
        """True if it reads passages, searched for or given; others have no recall."""
        return retrieves(self.workflow) or "@passages" in self.references.values()

    def inputs_for(
        self, question: str, citations: Sequence[Mapping[str, Any]] | None
    ) -> dict[str, Any]:
        """Its inputs for a question, of which the first one read `citations`.

        Raises EvaluationInputError where it refers to them and there are none to refer to.
        """
        found = {"question": question, **self.inputs}
        for name, reference in self.references.items():
            if citations is None:
                raise EvaluationInputError(
                    f"{self.label}: {reference} refers to what the first workflow read, and its "
                    "run of this question tells nothing of it"
                )
            found[name] = REFERENCES[reference][1](citations)
        return self.workflow.check_inputs(found)


def read_contenders(specs: Sequence[str]) -> list[Contender]:
    """Load and check all workflows; raises WorkflowInputError before anything runs."""
    found: list[Contender] = []
    for spec in specs:
        contender = _read(spec, first=found[0] if found else None)
        if contender.label in {one.label for one in found}:
            raise EvaluationInputError(
                f"workflow {spec!r} is named twice as {contender.label!r}; leave one out"
            )
        found.append(contender)
    if not found:
        raise EvaluationInputError("no workflow is named; give --workflow NAME")
    return found


def _read(spec: str, first: Contender | None) -> Contender:
    name, _, rest = spec.partition(":")
    workflow = load_workflow(name)
    specs = workflow.spec.inputs
    known = f"its inputs are {', '.join(specs) or 'none'}"
    if uses_graph(workflow):
        raise EvaluationInputError(f"workflow {name!r} searches a graph; suites have none")
    if "question" not in specs:
        raise EvaluationInputError(f"workflow {name!r} takes no 'question'; {known}")
    inputs: dict[str, Any] = {}
    references: dict[str, str] = {}
    for part in rest.split(",") if rest else ():
        key, equals, text = part.partition("=")
        place = f"workflow {name!r}, input {key!r}"
        if not key or not equals:
            raise EvaluationInputError(f"workflow {name!r}: {part!r} is not INPUT=VALUE; {known}")
        if key not in specs:
            raise EvaluationInputError(f"workflow {name!r} has no input {key!r}; {known}")
        if key == "question":
            raise EvaluationInputError(f"{place}: the suite gives the questions; leave it out")
        if key in inputs or key in references:
            raise EvaluationInputError(f"{place} is given twice; keep one")
        if text.startswith("@"):
            references[key] = _reference(place, text, specs[key].type, first)
            continue
        try:
            inputs[key] = parse_input(specs[key], text)
        except WorkflowInputError as error:
            raise EvaluationInputError(f"{place}: {error}") from None
    shipped = name in shipped_workflows()
    lasting = name if shipped else str(Path(name).absolute())
    label = ":".join(filter(None, [name if shipped else Path(name).stem, rest]))
    contender = Contender(
        label, f"{lasting}:{rest}" if rest else lasting, workflow, inputs, references
    )
    contender.inputs_for("?", _SAMPLE)
    return contender


def _reference(place: str, text: str, kind: str, first: Contender | None) -> str:
    if text not in REFERENCES:
        raise EvaluationInputError(f"{place}: {text!r} is none of {', '.join(REFERENCES)}")
    if kind != REFERENCES[text][0]:
        raise EvaluationInputError(
            f"{place}: {text} is of type {REFERENCES[text][0]}, and the input of type {kind}"
        )
    if first is None:
        raise EvaluationInputError(
            f"{place}: {text} refers to the first workflow, and this is it; name another before it"
        )
    if not first.reads or "citations" not in first.workflow.spec.outputs:
        raise EvaluationInputError(
            f"{place}: {text} refers to what {first.label!r} read, which tells no citations; name "
            "a workflow first that reads"
        )
    return text
