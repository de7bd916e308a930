"""The grammar of a generating node: one kind, compilable as far as can be told without a model."""

from __future__ import annotations

from inference.errors import GrammarInputError
from inference.grammar.schema import Refusal
from workflows.checks.draft import Draft
from workflows.schema import NodeSpec
from workflows.source import Path


def check_grammar(draft: Draft, place: Path, node: NodeSpec) -> None:
    """Exactly one kind, a text that can be held to, and no stop strings beside it."""
    if node.grammar is None:
        return
    at = (*place, "grammar")
    given = [name for name, value in node.grammar.kinds.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(given) or "nothing"
        message = f"grammar must hold exactly one of schema, regex, ebnf (found: {found})"
        draft.add(at, "bad_grammar", message, key=True)
        return
    try:
        node.grammar.build()
    except Refusal as refusal:
        path = (*at, "schema", *refusal.path)
        draft.add(path, "bad_grammar", refusal.message, key=path in draft.tree.keys)
    except GrammarInputError as error:
        draft.add((*at, given[0]), "bad_grammar", str(error))
    sampled = node.sampling.stop if node.sampling is not None else None
    for section, stop in (("sampling", sampled), ("with", node.options.get("stop"))):
        if stop and isinstance(stop, list):
            message = "stop strings could cut an answer before its grammar is complete; remove them"
            draft.add((*place, section, "stop"), "stop_beside_grammar", message, key=True)
