"""Grammars to automata over one model's vocabulary, off the hot path and under a time limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
import xgrammar as xg

from inference.errors import GrammarInputError, GrammarTooSlow
from inference.grammar.matcher import Matcher
from inference.grammar.spec import Grammar

SECONDS = 10.0
"""How long a request waits for its grammar."""
CACHE_BYTES = 64 * 2**20
"""Most bytes of compiled grammars kept; the least recently used go first."""
WORKERS = 2
"""Grammars compiled at the same time, those nobody waits for any more included."""
REMEDY = "use fewer properties, alternatives or repetitions"


@dataclass(frozen=True, slots=True)
class Compiled:
    """An automaton, shared by all requests with the same grammar."""

    grammar: Grammar
    automaton: Any
    seconds: float


class Compiler:
    """Compiles for one model; every method may be called from any thread.

    `width` is the number of logits, which may exceed the tokenizer's length; ids beyond it and
    all added tokens (control tokens, above all) are never allowed, save those in `stop_ids` at
    the end of a complete text.
    """

    any_whitespace = False  # models loop in optional whitespace

    def __init__(
        self, tokenizer: Any, width: int, stop_ids: Iterable[int], seconds: float = SECONDS
    ) -> None:
        self.width = width
        self.stop_ids = frozenset(stop_ids)
        self.seconds = seconds
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._compiler: Any = None
        self._running: dict[Grammar, Future[Compiled]] = {}
        self._slow: set[Grammar] = set()

    def matcher(self, grammar: Grammar) -> Matcher:
        """A fresh matcher; raises GrammarInputError, or GrammarTooSlow after `seconds`."""
        compiled = self.compile(grammar)
        return Matcher(compiled.automaton, grammar.kind, self.width, self.stop_ids)

    def compile(self, grammar: Grammar) -> Compiled:
        """The automaton of a grammar, from the cache where it is there."""
        with self._lock:
            if grammar in self._slow:
                raise self._too_slow(grammar)
            work = self._running.get(grammar)
            if work is None:
                if len(self._running) >= WORKERS and self._stuck():
                    raise GrammarTooSlow(
                        f"{WORKERS} grammars that take too long are still being compiled; "
                        f"ask again later, and {REMEDY} in those"
                    )
                work = self._running[grammar] = Future()
                # A daemon: a grammar that never ends must not keep the process from ending.
                threading.Thread(
                    target=self._work, args=(grammar, work), name="grammar", daemon=True
                ).start()
        try:
            return work.result(self.seconds)
        except TimeoutError:
            with self._lock:
                if not work.done():
                    self._slow.add(grammar)
            raise self._too_slow(grammar) from None

    def _stuck(self) -> bool:
        return sum(grammar in self._slow for grammar in self._running) >= WORKERS

    def _too_slow(self, grammar: Grammar) -> GrammarTooSlow:
        return GrammarTooSlow(
            f"the {grammar.kind} grammar {grammar.source[:80]!r} was not compiled within "
            f"{self.seconds:g} s; {REMEDY}"
        )

    def _work(self, grammar: Grammar, work: Future[Compiled]) -> None:
        try:
            result = self._timed(grammar)
        except BaseException as error:  # handed to whoever waits, who raises it
            self._forget(grammar)
            work.set_exception(error)
        else:
            self._forget(grammar)
            work.set_result(result)

    def _forget(self, grammar: Grammar) -> None:
        with self._lock:
            self._running.pop(grammar, None)
            self._slow.discard(grammar)

    def _timed(self, grammar: Grammar) -> Compiled:
        began = time.monotonic()
        try:
            automaton = self._build(grammar)
            Matcher(automaton, grammar.kind, self.width, self.stop_ids).require_start()
        except RuntimeError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = lines[0].partition(".cc:")[2].partition(": ")[2] or lines[0]
            raise GrammarInputError(
                f"the {grammar.kind} grammar {grammar.source[:80]!r} cannot be compiled: "
                f"{reason.rstrip('. ')}; correct it"
            ) from None
        return Compiled(grammar, automaton, time.monotonic() - began)

    def _build(self, grammar: Grammar) -> Any:
        compiler = self._opened()
        if grammar.kind == "json_schema":
            return compiler.compile_json_schema(
                grammar.lowered(),
                any_whitespace=self.any_whitespace,
                separators=None if self.any_whitespace else (",", ":"),
                strict_mode=True,
            )
        if grammar.kind == "regex":
            return compiler.compile_regex(grammar.lowered())
        return compiler.compile_grammar(grammar.lowered())

    def _opened(self) -> Any:
        with self._lock:
            if self._compiler is None:
                info = self._vocabulary()
                self._compiler = xg.GrammarCompiler(
                    info, max_threads=max(1, torch.get_num_threads()), cache_limit_bytes=CACHE_BYTES
                )
            return self._compiler

    def _vocabulary(self) -> Any:
        return vocabulary(self._tokenizer, self.width, self.stop_ids)


def vocabulary(tokenizer: Any, width: int, stop_ids: Iterable[int]) -> Any:
    """What each of `width` ids spells; an id that spells nothing is never allowed."""
    found = xg.TokenizerInfo.from_huggingface(
        tokenizer, vocab_size=width, stop_token_ids=sorted(stop_ids)
    )
    # Left to itself, xgrammar takes an added token such as <|user|> for the text it is written
    # with, and a grammar that allows any text would let the model forge a turn.
    added = tokenizer.added_tokens_decoder
    spelt = [""] * width
    for word, token_id in tokenizer.get_vocab().items():
        if token_id < width and token_id not in added:
            spelt[token_id] = word
    return xg.TokenizerInfo(
        spelt,
        found.vocab_type,
        vocab_size=width,
        stop_token_ids=sorted(stop_ids),
        add_prefix_space=found.add_prefix_space,
    )
