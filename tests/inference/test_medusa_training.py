"""Medusa's recipe: prompts, answers with their states, and heads that learn what they stand for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import inference.training.answers as answers
from inference import InferenceInputError
from inference.native.model import Model
from inference.speculative.medusa import Medusa
from inference.speculative.medusa_heads import CARD, MedusaHeads
from inference.training import medusa
from inference.training.answers import Answer, answer, digest, read
from inference.training.loop import Plan, train
from inference.training.medusa import Blocks, MedusaOptions, Target, medusa_loss, train_medusa
from inference.training.scores import baselines, ranks
from inference.training.seeds import Passage, Seed, read_passages, seeds
from tests.house.source import ROOT
from tests.inference.tiny import checkpoint

WORDS, SLOTS = 12, 4


def slotted(count: int, length: int = 24) -> list[Answer]:
    """Random tokens, and states that hold one-hot the token drawn from them and the next three."""
    draw = torch.Generator().manual_seed(2)
    found = []
    for at in range(count):
        ids = torch.randint(0, WORDS, (length + SLOTS,), generator=draw)
        states = [
            torch.nn.functional.one_hot(ids[slot : slot + length], WORDS) for slot in range(SLOTS)
        ]
        found.append(Answer(f"prompt {at}", ids[:length], torch.cat(states, 1).half() * 4))
    return found


def reading_the_first_slot() -> Target:
    output = torch.zeros(WORDS, WORDS * SLOTS)
    output[:, :WORDS] = torch.eye(WORDS)
    return Target("slots", "digest", {}, torch.arange(WORDS), output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_head_k_learns_the_token_two_plus_k_behind(dtype: torch.dtype) -> None:
    """The model's own head reads slot 0; a shift that is off by one would leave every head there.

    Tokens are drawn at random, so that only the right slot tells them.
    """
    found, on = slotted(40), reading_the_first_slot()
    learned, held = found[:32], found[32:]
    blocks = Blocks(3, WORDS * SLOTS)
    plan = Plan(60, 8, lr=2e-2, warmup=6)
    loss = medusa_loss(blocks, on, dtype)
    losses = train(blocks, learned, loss, plan, data=digest(learned)).losses
    assert losses[-1] < losses[0] / 4
    heads = blocks.requires_grad_(False).heads(on)
    for one in held:
        for head, state in enumerate(heads.states(one.hidden.float())):
            truth = one.ids[1 + head :]
            right = (state @ on.output.T)[: len(truth)].argmax(-1) == truth
            assert right.float().mean() > 0.9
    scored, (unigram, bigram) = ranks(heads, on.output, held), baselines(learned, held, 3)
    assert scored.counts == unigram.counts == bigram.counts
    for head in range(3):
        assert scored.within()[head][0] > 0.9
        assert bigram.within()[head][0] < 0.4
    # Ends of texts are short paths; elsewhere mostly all three first guesses are right.
    assert scored.paths[0, 0, 0] > 0.7 * scored.counts[0]
    assert sum(scored.paths.values()) == scored.counts[0]


@pytest.mark.parametrize("chain", [True, False], ids=["chain", "parallel"])
def test_only_a_chain_learns_from_the_tokens(chain: bool) -> None:
    """Each token follows from the two before, and the states say nothing."""
    draw = torch.Generator().manual_seed(6)
    follows = torch.randint(WORDS, (WORDS, WORDS), generator=draw)
    found, width = [], WORDS * SLOTS
    for at in range(80):
        ids = [at % WORDS, at // WORDS]
        while len(ids) < 30:
            # A word at random now and then: some rules lead into a circle.
            new = int(torch.randint(WORDS, (), generator=draw))
            ids.append(new if len(ids) % 6 == 0 else int(follows[ids[-2], ids[-1]]))
        noise = torch.randn(30, width, generator=draw).half() * 0.1
        found.append(Answer(f"prompt {at}", torch.tensor(ids), noise))
    on = reading_the_first_slot()
    on = replace(on, embedding=torch.randn(WORDS, width, generator=draw) * 0.01)
    blocks = Blocks(2, width, chain, again=1)
    plan = Plan(150, 8, lr=2e-2, warmup=6)
    train(blocks, found[:64], medusa_loss(blocks, on), plan, data=digest(found))
    heads = blocks.requires_grad_(False).heads(on)
    assert heads.depth == 2 + chain
    # Guess 0 sees one token only; those behind it see it and the next.
    scored = ranks(heads, on.output, found[64:], on.embedding).within()
    assert all((row[0] > 0.6) == chain for row in scored[1:])


@pytest.mark.parametrize("soft", [None, 0.5])
def test_weights_of_the_loss_and_its_terms(soft: float | None) -> None:
    """Against the definition, token by token; an id the heads do not know is left out."""
    (one,) = slotted(1, 6)
    whole = reading_the_first_slot()
    known = torch.tensor(sorted(set(range(WORDS)) - {int(one.ids[3])}))
    on = Target("slots", "digest", {}, known, whole.output[known])
    blocks = Blocks(2, WORDS * SLOTS)
    loss, terms = medusa_loss(blocks, on, soft=soft)([one])
    ids = one.ids.tolist()
    wanted, count = 0.0, 0
    for head in range(2):
        for row in range(len(ids) - 1 - head):
            token = ids[row + 1 + head]
            if token not in known:
                continue
            chances = torch.log_softmax(one.hidden[row].float() @ on.output.T, 0)
            goal = torch.zeros(len(known))
            goal[known.tolist().index(token)] = 1
            if soft is not None:
                said = one.hidden[row + 1 + head].float() @ on.output.T
                goal = torch.softmax(said / soft, 0)
            wanted -= 0.8**head * float((goal * chances).sum())
            count += head == 0
    assert terms == count
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("soft", ["0", "-1", "nan"])
def test_a_heat_that_cannot_be_is_refused_before_anything_is_answered(
    soft: str, tmp_path: Path
) -> None:
    with pytest.raises(InferenceInputError, match="must be > 0"):
        medusa.main(["--out", str(tmp_path / "o"), "--work", str(tmp_path / "w"), "--soft", soft])
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint(tmp_path_factory.mktemp("model"), endless=True))


PROMPTS = [Seed("kind", f"Tell me about the river and number {n}.") for n in range(30)]


@pytest.fixture(scope="module")
def kept(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    answer(PROMPTS, model, "float32", 20, folder)
    return folder


def test_each_state_is_what_its_token_was_drawn_from(model: str, kept: Path) -> None:
    matrix = load_file(Path(model) / "model.safetensors")["lm_head.weight"].float()
    found = read(kept, len(PROMPTS))
    assert [one.prompt for one in found] == [one.text for one in PROMPTS]
    for one in found[::2]:  # the greedy ones
        logits = one.hidden.float() @ matrix.T
        close = logits.max(1).values - logits.gather(1, one.ids[:, None]).squeeze(1)
        assert float(close.max()) < 0.2  # states are float16


def test_a_killed_run_goes_on(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "SHARD", 4)
    answer(PROMPTS[:10], model, "float32", 6, tmp_path)
    first = digest(read(tmp_path, 10))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}
    lost = sorted(kept)[1]
    lost.unlink()
    answer(PROMPTS[:10], model, "float32", 6, tmp_path)
    assert digest(read(tmp_path, 10)) == first
    changed = {p for p in tmp_path.glob("shard-*") if p.stat().st_mtime_ns != kept[p]}
    assert changed == {lost}
    with pytest.raises(InferenceInputError, match="other prompts"):
        answer(PROMPTS[1:10], model, "float32", 6, tmp_path)
    with pytest.raises(InferenceInputError, match="were made with"):
        answer(PROMPTS[:10], model, "float32", 7, tmp_path)


def test_the_recipe_makes_heads_that_fit(model: str, kept: Path, tmp_path: Path) -> None:
    found = read(kept, len(PROMPTS))
    assert {one.part for one in found} == {"train", "calibration", "held out"}
    plan = Plan(30, 4, lr=3e-3, warmup=3, checkpoint_every=10)
    out = tmp_path / "heads"
    options = MedusaOptions(heads=2, tokens=200, nodes=6, again=1)
    card = train_medusa(
        model, found, plan, out, options, scratch=tmp_path / "work", facts={"prompts": 30}
    )
    assert not (tmp_path / "work").exists()
    assert sum(card.losses[-5:]) < sum(card.losses[:5])
    assert json.loads((out / CARD).read_text(encoding="utf-8"))["scores"] == card.scores
    right = card.scores["right_within"]
    assert len(right["heads"]) == len(right["bigram"]) == 3
    heads = MedusaHeads.load(out)
    assert heads.tokens is not None
    assert len(heads.tokens) == 200
    assert len(heads.choices) == 6
    Medusa(heads=str(out)).open(Model.load(Path(model), model, "float32", "cpu"))


def test_answers_of_another_model_are_refused(kept: Path, tmp_path: Path) -> None:
    wide = str(checkpoint(tmp_path / "wide", "qwen3", head_dim=16))
    found = [Answer(one.prompt, one.ids, one.hidden[:, :32]) for one in read(kept, len(PROMPTS))]
    with pytest.raises(InferenceInputError, match="have 32 numbers"):
        train_medusa(
            wide,
            found,
            Plan(1),
            tmp_path / "out",
            MedusaOptions(1, 50, 2),
            scratch=tmp_path / "work",
            facts={},
        )


def test_the_command_line_runs_the_recipe(model: str, tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    medusa.main(
        f"--out {out} --work {work} --model {model} --prompts 40 --answer-tokens 6 --steps 2 "
        "--batch 2 --heads 1 --tokens 64".split()
    )
    assert json.loads((out / CARD).read_text(encoding="utf-8"))["options"]["prompts"] == 40
    assert (work / "answers").is_dir()


# Prompts.


def test_prompts_are_many_distinct_and_none_of_the_questions() -> None:
    passages = read_passages(ROOT / "data" / "corpus")
    found = seeds(passages)
    texts = {one.text for one in found}
    assert len(texts) == len(found) >= 1500
    assert len({one.kind for one in found}) >= 10
    assert not any("{" in text.replace("{'", "") and "}" in text for text in texts)
    asked = (ROOT / "data" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    for question in (json.loads(line)["question"] for line in asked):
        assert not any(question in text for text in texts)
    assert seeds(passages) == found
    assert seeds(passages, seed=1) != found


def test_prompts_without_passages(tmp_path: Path) -> None:
    assert "passages" not in {one.kind for one in seeds()}
    assert "passages" in {one.kind for one in seeds([Passage("A", "a b"), Passage("B", "c d")])}
    (tmp_path / "one.md").write_text("# Title\nText\n", encoding="utf-8")
    with pytest.raises(InferenceInputError, match="holds 1 "):
        read_passages(tmp_path)
