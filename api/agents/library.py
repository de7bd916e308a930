"""One class per shipped workflow: what it takes, what it gives, and where it comes from."""

from __future__ import annotations

from typing import Any

from api.agents.agent import Agent
from api.agents.verbs import given, verbs


class AutoRAG(Agent):
    """Auto-RAG: the model decides in a dialogue what to search for and when to answer.

    Source: Tian Yu, Shaolei Zhang, Yang Feng, "Auto-RAG: Autonomous Retrieval-Augmented Generation
    for Large Language Models", arXiv 2411.19443. Passages that were read are never shown again;
    when retrieval is used up, the model recalls from memory, and last it is asked the bare
    question. Deviations from the paper: `repeat_guard`, `passages_with_question`,
    `demonstrations`.

    Needs documents (`docs` or `retriever`) and an engine that can chat. Outputs: `answer`,
    `citations` (every passage read), `ending` (phase in which it ended), `grounded` (whether a
    passage read contains the answer), `rounds`, `parametric_rounds`, `malformed_turns` (counts),
    `queries`.

    `help(Agent)` tells what the constructor takes, and which errors there are.
    """

    workflow = "auto_rag"

    @staticmethod
    @given
    def inputs(
        question: str,
        *,
        max_rounds: int = 5,
        max_parametric_rounds: int = 5,
        passages_per_round: int = 3,
        passages_with_question: int = 1,
        turn_tokens: int = 200,
        parametric_turn_tokens: int = 150,
        recall_tokens: int = 200,
        closing_tokens: int = 100,
        repeat_guard: bool = True,
        trained: bool = True,
        demonstrations: int = 2,
    ) -> None:
        """Inputs of Auto-RAG.

        - `question`: what to answer.
        - `max_rounds`: retrieval rounds, 1 to 50 (T of the paper).
        - `max_parametric_rounds`: rounds of recall from memory, 0 to 50 (T_PK of the paper).
        - `passages_per_round`: unseen passages read per round, 1 to 50 (m of the paper).
        - `passages_with_question`: how many of those are searched for with question and refined
          query together, 0 to 50 (0 in the paper).
        - `turn_tokens`, `parametric_turn_tokens`: most tokens of a turn in the two phases.
        - `recall_tokens`: most tokens of a passage from memory.
        - `closing_tokens`: most tokens of the closing answer.
        - `repeat_guard`: a repeated query forces the phase of memory.
        - `trained`: take turns with the shipped adapter where it was trained on the model.
        - `demonstrations`: example dialogues, 0 to 2, shown only where no adapter is used.
        """

    run, stream, arun, astream = verbs(inputs)


class NaiveRAG(Agent):
    """Retrieve once, read, answer: the baseline that agentic methods are compared with.

    Source: retrieve-then-read in the manner of Lewis et al., "Retrieval-Augmented Generation for
    Knowledge-Intensive NLP Tasks", arXiv 2005.11401; at most a small adapter of the reader is
    trained, and the retriever is not.

    Needs documents (`docs` or `retriever`) and an engine that can chat. Outputs: `answer`,
    `citations` (the passages read).

    `help(Agent)` tells what the constructor takes, and which errors there are.
    """

    workflow = "naive_rag"

    @staticmethod
    @given
    def inputs(question: str, *, k: int = 3, max_tokens: int = 64, trained: bool = True) -> None:
        """Inputs of retrieve-then-read.

        - `question`: what to answer; it is the query too.
        - `k`: passages read, 1 to 50.
        - `max_tokens`: most tokens of the answer.
        - `trained`: read with the shipped adapter where it was trained on the model.
        """

    run, stream, arun, astream = verbs(inputs)


class Reader(Agent):
    """Answer from passages that are given: what another method read, read once.

    Source: the reading half of retrieve-then-read (Lewis et al., arXiv 2005.11401). Over the
    passages that Auto-RAG collected it is the ablation of arXiv 2411.19443 without the turns of
    reasoning; at most a small adapter of the reader is trained.

    Needs an engine that can chat, and takes no documents. Outputs: `answer`, `citations` (the
    passages read).

    `help(Agent)` tells what the constructor takes, and which errors there are.
    """

    workflow = "reader"

    @staticmethod
    @given
    def inputs(
        question: str,
        *,
        passages: list[dict[str, Any]],
        max_tokens: int = 64,
        trained: bool = True,
    ) -> None:
        """Inputs of reading what is given.

        - `question`: what to answer.
        - `passages`: what to read, in this order: objects with the texts `title` and `text`, such
          as `outputs["citations"]` of another run; what else they hold is handed through. One
          that names no source is cited as its own, with a score of 0.
        - `max_tokens`: most tokens of the answer.
        - `trained`: read with the shipped adapter where it was trained on the model.
        """

    run, stream, arun, astream = verbs(inputs)


class ClosedBook(Agent):
    """Answer from the model's memory alone: the baseline without documents.

    Source: closed-book question answering as in Roberts, Raffel, Shazeer, "How Much Knowledge Can
    You Pack Into the Parameters of a Language Model?", arXiv 2002.08910, without fine-tuning.

    Needs an engine that can chat, and takes no documents. Outputs: `answer`, `citations` (always
    empty).

    `help(Agent)` tells what the constructor takes, and which errors there are.
    """

    workflow = "closed_book"

    @staticmethod
    @given
    def inputs(question: str, *, max_tokens: int = 64) -> None:
        """Inputs of a closed-book answer.

        - `question`: what to answer.
        - `max_tokens`: most tokens of the answer.
        """

    run, stream, arun, astream = verbs(inputs)


class ATLAS(Agent):
    """ATLAS: answer, and search where the model shows while it writes that it does not know.

    Source: Srinivas et al., arXiv 2504.01281, its trigger (MLAG) and its query (LRP); the paper
    prints both in forms that cannot run, and `agents.atlas` names the repairs.

    Needs the native engine, whose attention it watches, and documents. Thresholds belong to one
    model: those of the default model come along, `ragwright models calibrate NAME --atlas DOCS`
    makes others. Outputs: `answer`, `citations` (the passages that were searched for, none where
    nothing was).

    `help(Agent)` tells what the constructor takes, and which errors there are.
    """

    workflow = "atlas"

    @staticmethod
    @given
    def inputs(question: str, *, max_tokens: int = 96) -> None:
        """Inputs of an answer with a trigger.

        - `question`: what to answer.
        - `max_tokens`: most tokens of the answer.
        """

    run, stream, arun, astream = verbs(inputs)


class RAPID(Agent):
    """RAPID: answer from a long document, drafted on what was retrieved from it.

    Source: Chen et al., "Long-Context Inference with Retrieval-Augmented Speculative Decoding",
    arXiv 2502.20330. The model reads the document, as much of it as fits, and checks the tokens
    that a drafter proposes, which reads the most similar passages only. As shipped the answer is
    that of plain decoding; the modes that shift it towards the drafter are an option in the
    workflow file.

    Needs documents (`docs` or `retriever`, with cosines as scores) and the native engine. Outputs:
    `answer`, `citations` (the passages the drafter read; all that were read, where it read none),
    `decoding` ("rapid" or "plain"), `fallback` (why there was nothing to draft from, or None).

    `help(Agent)` tells what the constructor takes, and which errors there are.
    """

    workflow = "rapid"

    @staticmethod
    @given
    def inputs(
        question: str,
        *,
        plain: bool = False,
        passages: int = 64,
        context_tokens: int = 7000,
        draft_tokens: int = 512,
        shorten: int = 24,
        threshold: float = 0.3,
        gate: float = 0.0,
        max_tokens: int = 96,
    ) -> None:
        """Inputs of RAPID.

        - `question`: what to answer; it is the query too.
        - `plain`: decode without a drafter, to compare with.
        - `passages`: most passages read of the documents, 1 to 1000.
        - `context_tokens`: most tokens that the model reads.
        - `draft_tokens`: tokens that its drafter reads (4096 in the paper).
        - `shorten`: the drafter reads this part of the context where that is more.
        - `threshold`: least similarity of what the drafter reads, 0 to 1.
        - `gate`: plain decoding where no passage is this similar, 0 to 1.
        - `max_tokens`: most tokens of the answer.
        """

    run, stream, arun, astream = verbs(inputs)


class DRAG(Agent):
    """DRAG: one call over retrieved documents behind demonstrations that hold documents too.

    Source: Yue et al., "Inference Scaling for Long-Context Retrieval Augmented Generation", arXiv
    2410.04343, section 3.2. The best document stands last, next to the question. No weights are
    trained. A prompt beyond the model's context is refused (`beyond_window`), never cut.

    Needs documents (`docs` or `retriever`). Outputs: `answer`, `citations` (best first),
    `effective_context_length` (input tokens of all calls, cached ones in full), `calls`.

    `help(Agent)` tells what the constructor takes, and which errors there are.
    """

    workflow = "drag"

    @staticmethod
    @given
    def inputs(
        question: str,
        *,
        k: int = 5,
        demonstrations: int = 2,
        pool: list[dict[str, Any]] | None = None,
        chat: bool = False,
        max_tokens: int = 64,
    ) -> None:
        """Inputs of DRAG.

        - `question`: what to answer; it is the query too.
        - `k`: documents in the test part and in each demonstration, 0 to 1000.
        - `demonstrations`: how many are shown, 0 to 256 (m of the paper); eight are shipped.
        - `pool`: demonstrations in place of the shipped ones, as `ragwright demonstrations` builds.
        - `chat`: send the prompt as a chat message instead of a text to be completed.
        - `max_tokens`: most tokens of the answer.
        """

    run, stream, arun, astream = verbs(inputs)


class IterDRAG(Agent):
    """IterDRAG: follow-up questions with documents of their own until a final answer.

    Source: Yue et al., "Inference Scaling for Long-Context Retrieval Augmented Generation", arXiv
    2410.04343, section 3.3. Every call writes one line under constrained decoding: a follow-up
    question, its intermediate answer, or the final answer, which is forced after `iterations`.

    Needs documents (`docs` or `retriever`) and an engine that keeps to grammars. Outputs: `answer`,
    `citations` (in the order of the document block), `iterations`, `effective_context_length`
    (input tokens of all calls, cached ones in full), `calls`, `demonstration` (the run as `pool`
    takes it).

    `help(Agent)` tells what the constructor takes, and which errors there are.
    """

    workflow = "iter_drag"

    @staticmethod
    @given
    def inputs(
        question: str,
        *,
        k: int = 3,
        demonstrations: int = 2,
        iterations: int = 5,
        pool: list[dict[str, Any]] | None = None,
        chat: bool = False,
        max_tokens: int = 64,
    ) -> None:
        """Inputs of IterDRAG.

        - `question`: what to answer; it is the first query too.
        - `k`: documents per search, in each demonstration too, 0 to 1000.
        - `demonstrations`: how many are shown, 0 to 256 (m of the paper); eight are shipped.
        - `iterations`: follow-up questions before the final answer is forced, 1 to 5.
        - `pool`: demonstrations in place of the shipped ones, as `ragwright demonstrations` builds.
        - `chat`: send the prompt as a chat message instead of a text to be completed.
        - `max_tokens`: most tokens of a line, at least 32.
        """

    run, stream, arun, astream = verbs(inputs)


AGENTS: dict[str, type[Agent]] = {
    "atlas": ATLAS,
    "auto_rag": AutoRAG,
    "closed_book": ClosedBook,
    "drag": DRAG,
    "iter_drag": IterDRAG,
    "naive_rag": NaiveRAG,
    "rapid": RAPID,
    "reader": Reader,
}
"""Shipped workflow -> its class."""
