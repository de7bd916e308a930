"""Traces that the method's own parser reads as meant, recipes, and adapters that know their model.

What agents and nodes do at inference is the independent implementation of the format here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from agents import auto_rag as method
from agents import reader as reading
from agents.prompts import load_prompts
from inference import InferenceInputError, Message
from inference.adapters import shipped as shelf
from inference.adapters.folder import WEIGHTS
from inference.engine import NativeConfig
from inference.errors import AdapterInputError
from inference.models import resolve
from inference.native.engine import NativeEngine
from inference.training.auto_rag import (
    PROSE,
    dialogues,
    encode,
    evaluation,
    main,
    overlapping,
    prose_of,
)
from inference.training.examples import IGNORED, digest
from inference.training.hops import build
from inference.training.seeds import Passage
from inference.training.stories import written
from inference.training.traces import Dialogue, Manner, titled
from tests.house.source import ROOT
from tests.inference.tiny import checkpoint, tokenizer

SAMPLE = ROOT / "data" / "questions.jsonl"
HOTPOT = ROOT.parent / "shared" / "data" / "hotpotqa" / "questions.jsonl"
PROMPTS = ROOT / "agents" / "prompts"
MANNER = {field.name for field in fields(Manner)}


@cache
def prose() -> tuple[Passage, ...]:
    return tuple(prose_of(ROOT / "data" / "corpus", evaluation([SAMPLE])[1]))


@cache
def told(recipe: str = "auto_rag") -> tuple[Dialogue, ...]:
    """What the recipes train on by default."""
    return tuple(dialogues(recipe, load_prompts(recipe), 440, 0, prose()))


def turns(one: Dialogue) -> list[method.Turn]:
    return [method.parse_turn(m.content) for m in one.messages if m.role == "assistant"]


def documents(one: Dialogue) -> list[str]:
    return [m.content for m in one.messages[2:] if m.role == "user"]


def test_a_trace_opens_as_the_method_does() -> None:
    for one in told():
        assert list(one.messages[:2]) == method.opening(one.question, 0)


def test_every_turn_but_the_last_searches_and_the_last_answers() -> None:
    for one in told():
        *searches, answer = turns(one)
        assert {turn.action for turn in searches} == {method.Action.RETRIEVE}
        assert answer.action is method.Action.ANSWER
        assert all(turn.reasoning for turn in (*searches, answer))
        queries = [turn.text.casefold() for turn in searches]
        assert len(set(queries)) == len(queries) == one.hops + one.misses - one.joined


def test_documents_are_numbered_and_each_turn_names_the_last() -> None:
    for one in told():
        shown = documents(one)
        assert [int(re.match(r"Retrieved Document (\d+): ", d)[1]) for d in shown] == list(  # type: ignore[index]
            range(1, len(shown) + 1)
        )
        for number, turn in enumerate(turns(one)):
            named = re.findall(r"Document (\d+)", turn.reasoning)
            assert named == ([str(number)] if number else [])


def test_the_answer_stands_in_the_last_document_and_in_no_question() -> None:
    for one in told():
        answer = turns(one)[-1].text
        if one.story.conclusion:  # of two things that the question names, or whether they agree
            assert answer in {"yes", "no"} or method.supports(one.question, answer)
            assert one.story.conclusion in turns(one)[-1].reasoning
            continue
        assert method.supports(documents(one)[-1], answer)
        assert not method.supports(one.question, answer)


def test_what_steps_need_was_shown_before_the_answer() -> None:
    for one in told():
        shown = " ".join(documents(one))
        for step in one.story.steps:
            assert method.supports(shown, step.tail)


def test_the_first_query_is_the_question() -> None:
    assert all(turns(one)[0].text == one.question for one in told())


def test_what_is_extracted_follows_the_titles_that_the_document_shows() -> None:
    for one in told():
        near = [p for step in one.story.steps for p in (step.gold, *step.alike, *step.near)]
        title = "|".join(re.escape(p.title) for p in sorted(near, key=lambda p: -len(p.title)))
        listing = re.compile(
            rf"Document \d+ (?:holds|has passages on|is about) ((?:{title})(?:; (?:{title}))*)\. "
        )
        for document, turn in zip(documents(one), turns(one)[1:], strict=True):
            listed = listing.match(turn.reasoning)
            if listed is None:
                assert one.ending == "parametric" and turn == turns(one)[-1]
                continue
            lines = document.partition(": ")[2].split("\n")
            titles = re.findall(rf"(?:{title})(?=; |$)", listed[1])
            assert "; ".join(titles) == listed[1]
            assert all(any(line.startswith(f"{t}: ") for t in titles) for line in lines)
            said = turn.reasoning[listed.end() :]
            assert said.startswith(("None of them ", *(f"{title} " for title in titles)))


def test_an_extracted_name_stands_in_the_document_just_read() -> None:
    """The next query may use names only that question or documents have given."""
    for one in told():
        if one.hops == 1:
            continue
        for document, turn in zip(documents(one), turns(one)[1:], strict=True):
            named = re.search(
                r"(?:was|were|is) (?:\w+ by )?((?:[A-Z]\w+ ){1,2}[A-Z]\w+)", turn.reasoning
            )
            if named and "says that" in turn.reasoning and named[1] in turn.reasoning:
                seen = " ".join([one.question, *documents(one)])
                assert named[1].split()[0] in seen, (document, turn)


def test_no_passage_is_shown_twice() -> None:
    for one in told():
        texts = [text for document in documents(one) for text in document.split(". ")]
        facts = [text for text in texts if re.search(r"\b(17|18|19)\d\d\b", text)]
        assert len(facts) == len(set(facts))


def test_shares_of_rounds_without_use_and_of_parametric_endings() -> None:
    ordinary = [one for one in told() if one.ending == "retrieval"]
    assert 0.4 < sum(one.misses for one in ordinary) / sum(one.hops for one in ordinary) < 0.6
    recalled = [one for one in told() if one.ending == "parametric"]
    assert 0.2 < len(recalled) / len(told()) < 0.3
    assert all(one.misses >= 2 for one in recalled)
    assert {one.hops for one in told()} == {1, 2, 3}
    assert sum(one.joined for one in told()) > 20


@pytest.mark.parametrize("hard", [False, True])
def test_who_is_lost_anywhere_has_read_of_something_else(hard: bool) -> None:
    manner = Manner(parametric=1.0, lost="any", hard=hard)
    found = dialogues("auto_rag", load_prompts("auto_rag"), 120, 0, prose(), manner=manner)
    steps = set()
    for one in found:
        assert one.ending == "parametric" and one.misses >= 2
        shown = documents(one)
        golds = [step.gold.text for step in one.story.steps]
        recalled = [at for at, text in enumerate(shown) if text.partition(": ")[2] in golds]
        assert recalled and recalled[-1] == len(shown) - 1
        known = len(golds) - len(recalled)
        steps.add((known, len(golds)))
        subject = re.sub(r" \d+$", "", one.story.steps[known].gold.title)
        others = {titled(passage) for passage in one.story.steps[known].far}
        for text in shown[recalled[0] - 2 : recalled[0]]:
            lines = text.partition(": ")[2].split("\n")
            assert set(lines) <= others and subject not in text
    assert {(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)} <= steps


def test_who_is_lost_over_a_base_only_finds_in_prose_all_but_the_last_fact() -> None:
    manner = Manner(parametric=1.0, lost="base", parametric_prose=0.5)
    found = dialogues("auto_rag", load_prompts("auto_rag"), 200, 0, prose(), manner=manner)
    questions = {story["question"] for story in written()}
    recalled: dict[bool, list[int]] = {True: [], False: []}
    for one in found:
        golds = {step.gold.text for step in one.story.steps}
        shown = [text.partition(": ")[2] for text in documents(one)]
        told_as = recalled[one.question in questions]
        told_as.append(sum(t in golds for t in shown) if one.ending == "parametric" else 0)
    assert set(recalled[True]) == {0, 1} and set(recalled[False]) == {1, 2, 3}
    assert 0.3 < recalled[True].count(0) / len(recalled[True]) < 0.7


def test_a_step_over_prose_is_missed_as_often_as_is_said() -> None:
    manner = Manner(parametric=0.0, missed_prose=0.2)
    for share, low, high in ((1, 0.1, 0.3), (0, 0.4, 0.6)):
        found = dialogues("auto_rag", load_prompts("auto_rag"), 200, 0, share=share, manner=manner)
        assert low < sum(one.misses for one in found) / sum(one.hops for one in found) < high


def test_most_of_what_is_shown_in_vain_are_hard_negatives() -> None:
    manner = Manner(parametric=1.0, lost="any", hard=True)
    told = dialogues("auto_rag", load_prompts("auto_rag"), 60, 0, prose(), share=0, manner=manner)
    hard = {titled(passage) for one in told for step in one.story.steps for passage in step.alike}
    shown = [
        line
        for one in told
        for text in documents(one)[: one.misses]
        for line in text.partition(": ")[2].split("\n")
    ]
    assert 0.6 < sum(line in hard for line in shown) / len(shown) < 1


def test_the_shipped_adapters_recipe_still_tells_what_they_learned() -> None:
    """Their cards name the digest of the examples."""
    words = AutoTokenizer.from_pretrained(resolve("default"), local_files_only=True)
    for recipe in ("auto_rag", "reader"):
        folder = shelf.SHIPPED / f"{recipe.replace('_', '-')}-default"
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        options, size, seed = card["options"], card["examples"], card["plan"]["seed"]
        stories = {"more": options.get("more_stories"), "share": options.get("prose", PROSE)}
        manner = Manner(**{name: options[name] for name in MANNER & options.keys()})
        found = dialogues(
            recipe, load_prompts(recipe), size, seed, prose(), **stories, manner=manner
        )
        assert digest(encode(one.messages, words) for one in found) == card["data"]


def test_a_passage_from_memory_looks_like_the_methods_own() -> None:
    recalled = [one for one in told() if one.ending == "parametric"]
    last = documents(recalled[0])[-1]
    number, _, passage = last.removeprefix("Retrieved Document ").partition(": ")
    assert last == method.parametric_turn(int(number), passage).content


@given(st.text("# Ab1.", max_size=8), st.text("# Ab1.\n", max_size=12))
def test_passages_are_titled_as_the_nodes_title_them(title: str, text: str) -> None:
    given = {"title": title, "text": text}
    assert titled(Passage(title, text)) == method.titled(given)


def test_the_reader_reads_in_its_own_format_and_cites_its_passage() -> None:
    for one in told("reader")[:200]:
        passages = [
            {"title": title, "text": text}
            for title, text in re.findall(
                r"^\[\d+\] (.*?): (.*)$", one.messages[1].content, re.MULTILINE
            )
        ]
        assert list(one.messages[:2]) == reading.reading_prompt(one.question, passages)
        answer, number = reading.cited(one.messages[-1].content, len(passages))
        assert number is not None
        cited = passages[number - 1]
        if one.story.conclusion:
            assert cited["text"] in {step.gold.text for step in one.story.steps}
        else:
            assert method.supports(cited["text"], answer)


@pytest.mark.parametrize("file", [SAMPLE, HOTPOT], ids=["sample", "hotpotqa"])
@pytest.mark.parametrize("recipe", ["auto_rag", "reader"])
def test_nothing_that_is_evaluated_on_is_trained_on(recipe: str, file: Path) -> None:
    if not file.exists():
        pytest.skip(f"{file} is not here")
    asked, supporting = evaluation([file])
    assert asked and supporting
    assert overlapping((one.question for one in told(recipe)), asked) == []
    assert overlapping((story["question"] for story in written(more=True)), asked) == []
    texts = " ".join(m.content for one in told(recipe) for m in one.messages)
    for name in supporting:
        path = file.parent / "corpus" / name
        if path.suffix == ".md":
            body = path.read_text(encoding="utf-8").partition("\n")[2].strip()
            assert body[:80] not in texts


@pytest.mark.parametrize("split", ["dev", "test"])
def test_no_entity_of_another_split_is_trained_on(split: Any) -> None:
    texts = " ".join(m.content for one in told() for m in one.messages)
    held = [name for seed in (0, 1) for name in build(seed, split).kinds]
    assert [name for name in held if f" {name} " in texts] == []


def test_an_evaluation_question_in_the_training_data_is_found() -> None:
    asked = ["In which year was the shipyard founded that built the ship of the Lorne Expedition?"]
    assert overlapping(["Tell me: " + asked[0].lower()], asked)
    assert overlapping(["In which year was the mill founded?"], asked) == []
    assert overlapping(["Who?"], ["who"]) == ["Who?"]


def test_the_same_seed_tells_the_same() -> None:
    prompts = load_prompts("auto_rag")
    assert dialogues("auto_rag", prompts, 30, 4) == dialogues("auto_rag", prompts, 30, 4)
    assert dialogues("auto_rag", prompts, 30, 4) != dialogues("auto_rag", prompts, 30, 5)


def test_loss_lies_on_what_the_assistant_writes() -> None:
    words = tokenizer()
    for one in told()[:20]:
        example = encode(one.messages, words)
        runs = groupby(example.labels, key=lambda label: label != IGNORED)
        learned = [words.decode(list(labels)) for kept, labels in runs if kept]
        said = [m.content + "<|end|>" for m in one.messages if m.role == "assistant"]
        assert learned == said
        assert words.decode(example.ids) == "".join(
            f"<|{m.role}|>{m.content}<|end|>" for m in one.messages
        )


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    template = "{% for m in messages %}<|user|>{{ messages|length }}{{ m['content'] }}{% endfor %}"
    said = [Message("user", "a"), Message("assistant", "b")]
    with pytest.raises(InferenceInputError, match="rewrites earlier turns"):
        encode([*said, *said], tokenizer(template))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and what the recipe makes of it."""
    home = tmp_path_factory.mktemp("trained")
    checkpoint(home / "model", context=4096)
    for recipe, name in (("auto_rag", "auto-rag-default"), ("reader", "reader-default")):
        given = ["--prompts", str(PROMPTS / f"{recipe}.yaml"), "--out", str(home / name)]
        given += ["--model", str(home / "model"), "--dtype", "float32", "--never", str(SAMPLE)]
        main([recipe, *given, "--examples", "8", "--rank", "2", "--lr", "0.01"])
    return home


@pytest.fixture
def shipping(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shelf, "SHIPPED", trained)
    return trained


@pytest.fixture
def engine(trained: Path) -> Iterator[NativeEngine]:
    opened = NativeEngine.from_config(
        NativeConfig(model=str(trained / "model"), dtype="float32", device="cpu")
    )
    yield opened
    opened.close()


def test_the_recipe_leaves_an_adapter_in_half_precision_with_its_card(trained: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(trained / "auto-rag-default" / WEIGHTS)
    assert {str(one.dtype) for one in tensors.values()} == {"torch.bfloat16"}
    card = json.loads((trained / "auto-rag-default" / "card.json").read_text())
    assert card["recipe"] == "auto_rag" and card["plan"]["seed"] == 0
    assert len(card["losses"]) == 2 and card["options"]["evaluation_questions_kept_out"] == 30


def test_an_engine_takes_the_adapter_of_its_model_only(
    shipping: Path, engine: NativeEngine, tmp_path: Path
) -> None:
    assert engine.equip("auto-rag-default") and engine.equip("auto-rag-default")
    assert engine.adapters.names() == ["auto-rag-default"]
    assert not engine.equip("no-such-adapter")
    other = checkpoint(tmp_path / "other", seed=1)
    config = NativeConfig(model=str(other), dtype="float32")
    with closing(NativeEngine.from_config(config)) as stranger:
        assert not stranger.equip("auto-rag-default")
        assert stranger.adapters.names() == []


def test_an_adapter_that_its_card_does_not_name_is_refused(
    shipping: Path, engine: NativeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "auto-rag-default"
    folder.mkdir()
    for path in (shipping / "auto-rag-default").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1] + b"x")
    monkeypatch.setattr(shelf, "SHIPPED", tmp_path)
    with pytest.raises(AdapterInputError, match="not the file that its card names"):
        engine.equip("auto-rag-default")


@settings(max_examples=30)
@given(st.text(max_size=20), st.integers(0, 12))
def test_a_citation_is_read_off_the_end(answer: str, number: int) -> None:
    text, found = reading.cited(f"{answer} [{number}]", 9)
    assert text == answer.strip()
    assert found == (number if 1 <= number <= 9 else None)
