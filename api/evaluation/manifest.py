"""What a run of an evaluation is made of, so that it can go on, and be done again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from api.evaluation.errors import EvaluationInputError
from api.evaluation.plan import Order, Plan, workflows_of
from api.evaluation.suites import digest_of
from inference.adapters import shipped
from inference.engine import NativeConfig, VLLMConfig
from inference.models import resolve
from inference.models.manifest import read_manifest, sha256
from retrieval.manifest import NAME as INDEX_MANIFEST
from workflows.resources import ResourcePool

FORMAT = "ragwright-eval/1"
NAME = "manifest.json"
VERSIONED = (
    *("ragwright", "numpy", "torch", "transformers", "tokenizers"),
    *("langgraph", "faiss-cpu", "bm25s", "xgrammar"),
)
MODEL_FILES = (".safetensors", ".json", ".jinja", ".model")
"""Suffixes of the files of a model that its digest covers: weights, shape, tokenizer, template."""
SHOWN = 5


def manifest_of(plan: Plan) -> dict[str, Any]:
    """Digests and versions of everything that a result depends on, as plain JSON.

    A server's weights cannot be seen from here: their digest is null.
    """
    index = plan.index
    return {
        "format": FORMAT,
        "order": {**asdict(plan.order), "workflows": list(plan.order.workflows)},
        "suite": {
            "name": plan.suite.name,
            "sha256": digest_of(plan.questions),
            "questions": [one.id for one in plan.questions],
        },
        "index": None if index is None else sha256(index / INDEX_MANIFEST),
        "workflows": {one.label: _texts(one.workflow.texts()) for one in plan.contenders},
        "engines": _engines(plan),
        "adapters": dict(_adapters()),
        "versions": {"python": platform.python_version(), **dict(_versions())},
        "machine": platform.machine(),
    }


def read_order(file: Path) -> tuple[Order, dict[str, Any]]:
    """The order of a manifest, and the manifest; raises EvaluationInputError."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise EvaluationInputError(
                f"{file}: format {found['format']!r}, this program reads {FORMAT!r}"
            )
        return Order.of(found["order"]), found
    except OSError as error:
        raise EvaluationInputError(
            f"{file}: {error.strerror}; give the {NAME} of an evaluation"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise EvaluationInputError(f"{file}: no manifest of an evaluation; give another") from None


def require_same(kept: Mapping[str, Any], now: Mapping[str, Any], place: Path) -> None:
    """Raise EvaluationInputError naming what differs between two manifests."""
    before, after = dict(_flat(kept)), dict(_flat(now))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if names:
        told = [f"{name} was {before.get(name)!r}, is {after.get(name)!r}" for name in names]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise EvaluationInputError(
            f"{place}: not the same evaluation: {'; '.join(told[:SHOWN])}{more}; restore what "
            "differs, or begin another with another --out"
        )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield from _flat(one, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _texts(texts: Mapping[str, str]) -> dict[str, str]:
    return {key: hashlib.sha256(text.encode()).hexdigest() for key, text in texts.items()}


def _engines(plan: Plan) -> dict[str, Any]:
    """Every engine of the workflows and of those they call, by workflow and resource."""
    found: dict[str, Any] = {}
    weights: dict[str, str] = {}
    for contender in plan.contenders:
        resources = plan.resources(contender, ResourcePool())
        for workflow in workflows_of(contender.workflow):
            own = resources.for_child(workflow.spec)
            for name, config in own.engines.items():
                facts = config.model_dump(mode="json")
                digest = None
                if isinstance(config, NativeConfig | VLLMConfig):
                    if config.model not in weights:
                        weights[config.model] = model_digest(resolve(config.model))
                    digest = weights[config.model]
                place = f"{contender.label}/{workflow.spec.name}/{name}"
                found[place] = {"use": own.engine_name(name), "weights": digest, "options": facts}
                if isinstance(config, NativeConfig):
                    found[place]["adapters"] = {
                        key: model_digest(Path(folder)) for key, folder in config.adapters.items()
                    }
    return found


def model_digest(folder: Path) -> str:
    """Hash over names and contents of the files of a model or an adapter."""
    try:
        known = {name: facts["sha256"] for name, facts in read_manifest(folder)["files"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        known = {
            file.relative_to(folder).as_posix(): sha256(file)
            for file in folder.rglob("*")
            if file.is_file()
        }
    lines = [f"{known[name]} {name}\n" for name in sorted(known) if name.endswith(MODEL_FILES)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _adapters() -> Iterator[tuple[str, str]]:
    """What comes along for a model: workflows may take it where it fits."""
    for file in sorted(shipped.SHIPPED.glob("*/*.safetensors")):
        yield file.relative_to(shipped.SHIPPED).as_posix(), sha256(file)


def _versions() -> Iterator[tuple[str, str]]:
    for name in VERSIONED:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed"
