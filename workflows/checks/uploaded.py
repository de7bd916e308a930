"""A workflow that somebody sent in is data: it names no paths, hosts, variables or programs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

from inference.errors import MethodInputError
from inference.models.catalog import CATALOG
from workflows.checks.draft import Draft
from workflows.errors import WorkflowInputError
from workflows.loading import Workflow, load_from
from workflows.schema import NodeSpec
from workflows.shelves import SHIPPED, SUFFIXES, Bundle

MAIN = "workflow.yaml"
"""Key of the main file of an upload."""

ENGINES = frozenset({"native", "openai"})
"""Engines that start no process; `openai` reaches the server of the operator's choice."""

MAX_FILES = 32
"""Most files of one upload."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")

_REFUSED = {
    "base_url": "names a host",
    "api_key_env": "names an environment variable",
    "adapters": "names folders of this host",
}
"""Options of engines that an upload may not give, and what they do."""

_MODELS = ("model", "tokenizer")


def check_uploaded(
    workflow_text: str,
    files: Mapping[str, str] | None = None,
    *,
    engines: Collection[str] = ENGINES,
    models: Collection[str] = (),
) -> Workflow:
    """The workflow, checked like any other and for what an upload may not name.

    `files` are the texts of its sub-workflows by relative path; it may also call shipped ones.
    `engines` is what it may use, `models` what it may load besides the catalogue. Raises
    InvalidWorkflow with all faults at line and column, WorkflowInputError for bad file names.
    """
    texts = {MAIN: workflow_text, **_named(files or {})}
    known = frozenset({*CATALOG, *models})

    def check(draft: Draft) -> None:
        for name, resource in draft.resources.items():
            if resource is not None and resource.use in draft.tables.engines:
                _check_engine(
                    draft, name, resource.use, resource.options, frozenset(engines), known
                )
            elif resource is not None:
                _check_texts(draft, name, resource.options)

        for name, node in draft.nodes.items():
            if node is not None:
                _check_drafter(draft, name, node)

    return load_from(Bundle(texts, shipped=True), MAIN, check=check)


def _check_drafter(draft: Draft, name: str, node: NodeSpec) -> None:
    """A drafter may not open models or files of this host; what is wrong otherwise was told."""
    try:
        drafter = node.drafts()
    except MethodInputError:
        return
    for option in drafter.opens if drafter is not None else ():
        message = (
            f"option {option!r} of the drafter of node {name!r} names a model or file of this "
            "host, which an uploaded workflow may not; leave it out"
        )
        mapping = isinstance(node.drafter, dict)
        place = ("nodes", name, "drafter", *((option,) if mapping else ()))
        draft.add(place, "not_allowed_in_upload", message, key=mapping)


def _named(files: Mapping[str, str]) -> Mapping[str, str]:
    if len(files) > MAX_FILES:
        raise WorkflowInputError(f"an upload has {len(files)} files; at most {MAX_FILES} are taken")
    for name in files:
        path = PurePosixPath(name)
        plain = all(_NAME.fullmatch(part) for part in path.parts)
        if not plain or str(path) != name or not name.endswith(SUFFIXES):
            raise WorkflowInputError(
                f"the file name {name!r:.200} of an upload must be a relative path that ends in "
                f".yaml, such as parts/ask.yaml; it may not begin with {SHIPPED!r}, '/' or '.'"
            )
        if name == MAIN:
            raise WorkflowInputError(f"the file name {MAIN!r} is that of the main file; rename it")
    return files


def _check_engine(
    draft: Draft,
    name: str,
    use: str,
    options: Mapping[str, Any],
    engines: frozenset[str],
    models: frozenset[str],
) -> None:
    place = ("resources", name)
    if use not in engines:
        listed = ", ".join(sorted(engines)) or "none"
        message = f"an uploaded workflow may not use the engine {use!r}; allowed here: {listed}"
        draft.add((*place, "use"), "engine_not_allowed", message)
    for option, act in _REFUSED.items():
        if options.get(option):
            message = (
                f"option {option!r} of resource {name!r} {act}, which an uploaded workflow may "
                "not; leave it out and let the operator of the service set it"
            )
            draft.add((*place, option), "not_allowed_in_upload", message, key=True)
    for option in _MODELS:
        model = options.get(option)
        # The name of a model on the operator's own server is no name of this host.
        remote = use == "openai" and option == "model"
        if isinstance(model, str) and not remote and model not in models:
            message = (
                f"model {model!r:.100} of resource {name!r} is not one that an upload may load; "
                f"allowed here: {', '.join(sorted(models))}"
            )
            draft.add((*place, option), "model_not_allowed", message)
    rest = {k: v for k, v in options.items() if k not in (*_REFUSED, *_MODELS)}
    _check_texts(draft, name, rest)


def _check_texts(draft: Draft, name: str, options: Mapping[str, Any]) -> None:
    """No option that a table row may come to have can hold a path or a URL."""
    for option, value in options.items():
        if any("/" in text or "\\" in text or text.startswith("~") for text in _texts(value)):
            message = (
                f"option {option!r} of resource {name!r} looks like a path or an address, which "
                "an uploaded workflow may not name; leave it out"
            )
            draft.add(("resources", name, option), "not_allowed_in_upload", message, key=True)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for one in pair for text in _texts(one)]
    return [text for one in value for text in _texts(one)] if isinstance(value, list) else []
