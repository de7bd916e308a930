"""DRAG and IterDRAG over a real index: what is sent, what is counted, what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.drag import PREFIXES
from inference import Capability, Request
from inference.engine import NativeConfig
from inference.native.engine import NativeEngine
from retrieval.index import build_index
from tests.inference.tiny import checkpoint
from tests.workflows.conftest import Run
from tests.workflows.replay import ReplayEngine
from workflows.events import Event, ModelCalled
from workflows.loading import load_workflow
from workflows.runtime import RunStatus

QUESTION = "Where was the founder of the Orrin Mill born?"
DOCUMENTS = {
    "mill": "The Orrin Mill is a water mill. It was founded by Petra Lund in 1803.",
    "lund": "Petra Lund was a miller and diarist. She was born in Vessmark.",
    "vessmark": "Vessmark is a village of four hundred people on a lake.",
    "barn": "The Orrin barn stands beside the mill and holds a museum of ploughs.",
}
LINE = re.compile(r"(Follow up|Intermediate answer|So the final answer is): \S.*", re.DOTALL)
LIBRARY = Path(__file__).parents[2] / "workflows" / "library"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    docs, out = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("built") / "index"
    for name, text in DOCUMENTS.items():
        (docs / f"{name}.md").write_text(f"# {name.title()}\n\n{text}\n", encoding="utf-8")
    build_index(docs, out)
    return out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random model that talks without end, and reads 2048 tokens."""
    folder = checkpoint(tmp_path_factory.mktemp("tiny"), context=2048, endless=True)
    engine = NativeEngine.from_config(
        NativeConfig(model=str(folder), dtype="float32", device="cpu")
    )
    yield engine
    engine.close()


class Listening:
    """Passes requests on to an engine and remembers prompts."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.requests = engine, list[Request]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, requests: list[Request]) -> Any:
        self.requests += requests
        return self.engine.generate(requests)

    def stream(self, request: Request) -> Any:
        self.requests.append(request)
        return self.engine.stream(request)


def speaking(*turns: str) -> ReplayEngine:
    return ReplayEngine(turns, capabilities=ReplayEngine([]).capabilities | set(Capability))


def test_the_prefixes_are_those_of_the_grammars() -> None:
    spec = load_workflow("iter_drag").spec
    allowed: set[str] = set()
    for name in ("turn", "intermediate", "final"):
        grammar = spec.nodes[name].grammar
        assert grammar is not None and grammar.regex is not None
        head = grammar.regex.split(": ")[0].strip("()")
        allowed |= {f"{prefix}:" for prefix in head.split("|")}
    assert allowed == set(PREFIXES.values())


def test_drag_reads_once_with_the_best_document_last(run: Run, index: Path) -> None:
    engine = speaking(" Vessmark\nQuestion: next")
    inputs = {"question": QUESTION, "k": 3, "demonstrations": 1}
    result = run("drag", inputs, engine=engine, index=index)
    assert result.status is RunStatus.COMPLETED, result.error
    out = result.outputs
    (request,) = engine.requests
    test = str(request.prompt).split("\n\n")[-1].split("\n")
    assert test[-2:] == [f"Question: {QUESTION}", "Answer:"] and len(test) == 6
    titles = [passage["title"] for passage in out["citations"]]
    assert [line.split(":")[0] for line in test[1:4]] == titles[::-1]
    assert (out["answer"], out["calls"]) == ("Vessmark", 1)
    assert out["effective_context_length"] == engine.count_tokens(request)


@pytest.mark.parametrize("name", ["drag", "iter_drag"])
def test_as_a_chat_message_it_says_the_same(run: Run, index: Path, name: str) -> None:
    plain, chat = (speaking("So the final answer is: x\n") for _ in range(2))
    run(name, {"question": QUESTION}, engine=plain, index=index)
    result = run(name, {"question": QUESTION, "chat": True}, engine=chat, index=index)
    (message,) = chat.requests[0].messages or []
    assert (message.role, message.content) == ("user", plain.requests[0].prompt)
    assert result.outputs["effective_context_length"] == chat.count_tokens(chat.requests[0])


def test_without_documents_nothing_is_searched(run: Run, index: Path) -> None:
    for name, says in (("drag", "x"), ("iter_drag", "So the final answer is: x")):
        result = run(name, {"question": QUESTION, "k": 0}, engine=speaking(says), index=index)
        assert result.status is RunStatus.COMPLETED, result.error
        assert result.outputs["citations"] == [] and result.usage["retrievals"] == 0


def test_iter_drag_searches_for_each_follow_up(run: Run, index: Path) -> None:
    engine = speaking(
        "Follow up: Who founded the Orrin Mill?\n",
        "Intermediate answer: Petra Lund\n",
        "Follow up: Where was Petra Lund born?\n",
        "Intermediate answer: Vessmark\n",
        "So the final answer is: Vessmark\n",
    )
    inputs = {"question": QUESTION, "k": 1, "demonstrations": 1}
    result = run("iter_drag", inputs, engine=engine, index=index)
    assert result.status is RunStatus.COMPLETED, result.error
    out = result.outputs
    assert (out["answer"], out["iterations"], out["calls"]) == ("Vessmark", 2, 5)
    assert [p["title"] for p in out["citations"]] == ["Mill", "Lund"]
    last = str(engine.requests[-1].prompt)
    assert last.split("\n\n")[-1].split("\n")[-6:] == [
        "Answer:",
        *("Follow up: Who founded the Orrin Mill?", "Intermediate answer: Petra Lund"),
        *("Follow up: Where was Petra Lund born?", "Intermediate answer: Vessmark", ""),
    ]
    counts = [engine.count_tokens(request) for request in engine.requests]
    assert out["effective_context_length"] == sum(counts) == result.usage["prompt_tokens"]
    again = run(
        "iter_drag",
        {**inputs, "pool": [out["demonstration"]]},
        engine=speaking("So the final answer is: x\n"),
        index=index,
    )
    assert again.status is RunStatus.COMPLETED, "a run is a demonstration as it stands"


def test_after_n_iterations_only_the_final_answer_is_allowed(run: Run, index: Path) -> None:
    turns = ["Follow up: And?\n", "Intermediate answer: So.\n"] * 2
    engine = speaking(*turns, "So the final answer is: x\n")
    result = run(
        "iter_drag",
        {"question": QUESTION, "k": 1, "iterations": 2, "demonstrations": 0},
        engine=engine,
        index=index,
    )
    assert (result.outputs["iterations"], result.outputs["calls"]) == (2, 5)
    allowed = [str(request.grammar) for request in engine.requests]
    assert ["Follow up" in each for each in allowed] == [True, False, True, False, False]
    assert ["Intermediate" in each for each in allowed] == [False, True, False, True, False]
    assert "So the final answer is" in allowed[-1]


@pytest.mark.parametrize("seed", range(6))
def test_a_random_model_writes_no_fourth_kind_of_line(
    run: Run, index: Path, tiny: NativeEngine, seed: int
) -> None:
    text = (LIBRARY / "iter_drag.yaml").read_text(encoding="utf-8")
    warm = text.replace("    grammar:", "    sampling: {temperature: 2.0}\n    grammar:")
    listening, calls = Listening(tiny), list[Event]()
    inputs = {"question": QUESTION, "k": 1, "demonstrations": 0, "iterations": 2, "max_tokens": 40}
    engine: Any = listening
    result = run(warm, inputs, engine=engine, index=index, seed=seed, sinks=[calls.append])
    assert result.status is RunStatus.COMPLETED, result.error
    out = result.outputs
    lines = [s["notes"] for s in result.steps if "kind" in s["notes"]]
    assert lines[-1]["kind"] == "final" and out["answer"] == lines[-1]["text"] != ""
    assert [line["kind"] for line in lines[:-1]] == ["follow_up", "intermediate"] * out[
        "iterations"
    ]
    assert out["iterations"] <= 2 and out["calls"] == len(lines) == len(listening.requests)
    logged = [event.usage.prompt_tokens for event in calls if isinstance(event, ModelCalled)]
    counted = [tiny.count_tokens(request) for request in listening.requests]
    assert logged == counted == [line["input_tokens"] for line in lines]
    assert out["effective_context_length"] == sum(counted) == result.usage["prompt_tokens"]
    for request in listening.requests[1:]:
        said = str(request.prompt).split("\nAnswer:\n")[-1].split("\n")[:-1]
        assert all(LINE.fullmatch(each) for each in said)


@pytest.mark.parametrize("name", ["drag", "iter_drag"])
def test_a_theta_beyond_the_window_is_refused(
    run: Run, index: Path, tiny: NativeEngine, name: str
) -> None:
    engine: Any = tiny
    inputs = {"question": QUESTION, "k": 4, "demonstrations": 8, "max_tokens": 32}
    result = run(name, inputs, engine=engine, index=index)
    assert result.status is RunStatus.FAILED and result.error is not None
    assert result.error["code"] == "beyond_window"
    for part in ("k=4", "m=8", f"n={1 if name == 'drag' else 5}", "a context of 2048"):
        assert part in result.error["message"]
    assert result.usage["completion_tokens"] == 0


def test_the_cache_gives_no_discount(run: Run, index: Path, tiny: NativeEngine) -> None:
    engine: Any = tiny
    inputs = {"question": QUESTION, "k": 2, "demonstrations": 0, "max_tokens": 4}
    first, second = (run("drag", inputs, engine=engine, index=index) for _ in range(2))
    assert second.usage["cached_tokens"] > 0
    length = first.outputs["effective_context_length"]
    assert second.outputs["effective_context_length"] == length == second.usage["prompt_tokens"]


@pytest.mark.default_model
def test_the_default_model_answers_both_ways(run: Callable[..., Any], index: Path) -> None:
    engine: Any = NativeEngine.from_config(NativeConfig())
    try:
        for name in ("drag", "iter_drag"):
            inputs = {"question": QUESTION, "k": 2, "demonstrations": 1, "max_tokens": 32}
            given = inputs if name == "drag" else {**inputs, "iterations": 1}
            result = run(name, given, engine=engine, index=index)
            assert result.status is RunStatus.COMPLETED, result.error
            assert result.outputs["answer"]
            assert result.outputs["effective_context_length"] == result.usage["prompt_tokens"]
    finally:
        engine.close()
