"""RAPID: drafts from a retrieved excerpt for questions about long documents."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from inference import SamplingParams
from inference.engine import NativeConfig
from inference.errors import DrafterInputError
from inference.models import load_tokenizer, resolve
from inference.native.engine import NativeEngine
from inference.speculative import parse
from tests.bench.contest import PLAIN, Contest, Native, once, say
from tests.bench.figures import Figure
from tests.bench.kept import Kept
from tests.bench.questions import SEED, Questions, about, token_f1

LENGTHS = (512, 1024, 2048, 4096, 8192)
"""Tokens of prompt and answer together."""
EXCERPT = 512
"""Most tokens of an excerpt, which is at most half of the document."""
FRAME = 100
"""Tokens kept free for what stands around a document."""
SELF = "rapid"
MODES = {
    "eta_0": SELF,
    "tilted_exact": "rapid:mode=tilted-exact,eta=10",
    "paper": "rapid:mode=paper,eta=10",
}
QUALITY = 2048
"""Tokens of the documents that the quality of the modes is measured on."""
ANSWER = 24
QUESTIONS = 8
"""Questions a round."""
TEMPERATURE = 0.1
"""That of LongBench v2 in the paper's appendix C."""
GPU_LENGTHS = (8192, 32768, 65536)
SHAPE: Mapping[str, int | float] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
}
"""Llama 3.1 8B but for the vocabulary, which is the default model's."""
RANDOM = "random-weight 8B-shaped"


def sweep(
    row: str,
    engine: NativeEngine,
    data: Questions,
    length: int,
    n: int,
    tokens: int,
    kept: Kept,
) -> list[Figure]:
    """Self-speculation over `length` tokens of context against plain decoding, greedy.

    It is not paused where it loses: what is asked is from where on it wins.
    """
    try:
        drafter = parse(SELF)
    except DrafterInputError as error:
        return _unmeasured(row, str(error))
    room = min(length, engine.context_length) - tokens - FRAME
    if room < FRAME:
        most = room + tokens - FRAME
        return _unmeasured(row, f"answers of {tokens} tokens leave no room; at most {most} do")
    questions = data.long(n, room, min(EXCERPT, room // 2), lambda text: _size(engine, text))
    contest = Contest(engine, Native(engine), [Native(engine, drafter, SELF).steady()])
    contest.row, contest.kept = row, kept
    contest.play([[about(question, quote=True)] for question in questions], tokens)
    return contest.figures(row)


def _unmeasured(row: str, why: str) -> list[Figure]:
    say(f"{row}: not measured: {why}")
    return [Figure(f"{row} {SELF} decoding over plain", None, "tokens/s", PLAIN)]


def wins_from(figures: Sequence[Figure]) -> list[Figure]:
    """The shortest context from which on decoding is faster at all lengths that were measured."""
    ratios = {
        length: figure.ratio
        for length in LENGTHS
        for figure in figures
        if figure.name == f"rapid_{length} {SELF} decoding over plain" and figure.ratio is not None
    }
    if not ratios:
        return []
    won: int | None = None
    for length in reversed(ratios):
        if ratios[length] <= 1:
            break
        won = length
    return [Figure("rapid_wins_from", won, "tokens", PLAIN, n=len(ratios))]


def quality(engine: NativeEngine, data: Questions, n: int, kept: Kept) -> list[Figure]:
    """Token F1 with the full context, with the excerpt alone, and with each mode of RAPID.

    Same seeds for all. Means, with half of their 95 % interval (bootstrap) as the spread.
    """
    room = min(QUALITY, engine.context_length) - ANSWER - FRAME
    size = min(EXCERPT, room // 2)
    questions = data.long(QUESTIONS * n, room, size, lambda text: _size(engine, text))
    sampling = SamplingParams(temperature=TEMPERATURE, seed=SEED)
    plain = Native(engine, sampling=sampling)
    full = [about(question) for question in questions]
    excerpts = [about(question, full=False) for question in questions]
    scores: dict[str, list[float]] = {}
    for name, one, asks in [
        ("full_context", plain, full),
        ("excerpt_only", plain, excerpts),
        *((name, _mode(engine, name, sampling), full) for name in MODES),
    ]:
        if one is None:
            scores[name] = []
            continue
        texts = [
            once(kept, ("rapid_quality", at, name), one, [ask], ANSWER).texts[0]
            for at, ask in enumerate(asks)
        ]
        pairs = zip(texts, questions, strict=True)
        scores[name] = [token_f1(text, question.answer) for text, question in pairs]
    return [_scored(name, found, scores["full_context"]) for name, found in scores.items()]


def _mode(engine: NativeEngine, name: str, sampling: SamplingParams) -> Native | None:
    try:
        return Native(engine, parse(MODES[name]), name, sampling)
    except DrafterInputError as error:
        say(f"rapid_quality {name}: not measured: {error}")
        return None


def _scored(name: str, found: Sequence[float], full: Sequence[float]) -> Figure:
    label = f"rapid_quality {name}"
    if not found:
        return Figure(label, None, "token F1")
    chance = random.Random(SEED)
    drawn = sorted(statistics.mean(chance.choices(found, k=len(found))) for _ in range(1000))
    spread = (drawn[974] - drawn[25]) / 2
    mean, whole = statistics.mean(found), statistics.mean(full)
    if found is full:
        return Figure(label, mean, "token F1", spread=spread, n=len(found))
    ratio = mean / whole if whole else None
    return Figure(label, mean, "token F1", "full context", whole, ratio, spread, len(found))


def random_weights(data: Questions, n: int, tokens: int, kept: Kept) -> list[Figure]:
    """The sweep over longer contexts on a GPU, of a model with random weights: for timing only."""
    rows = {length: f"rapid_gpu_{length} {RANDOM}" for length in GPU_LENGTHS}
    if not torch.cuda.is_available():
        say("rapid_gpu: not measured: torch sees no CUDA device")
        return [
            Figure(f"{row} {SELF} decoding over plain", None, "tokens/s", PLAIN)
            for row in rows.values()
        ]
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        write_random(Path(folder), SHAPE)
        config = NativeConfig(
            model=folder, dtype="bfloat16", device="cuda", prefix_cache_bytes=0, step_tokens=4096
        )
        engine = config.open()
        assert isinstance(engine, NativeEngine)
        try:
            for length, row in rows.items():
                figures += sweep(row, engine, data, length, n, tokens, kept)
        finally:
            engine.close()
    return figures


def write_random(folder: Path, shape: Mapping[str, int | float]) -> None:
    """A Llama of a shape with normal weights (deviation 0.02), the default model's tokenizer.

    One file a layer, so that no more than a layer is held in memory.
    """
    from transformers import AutoTokenizer, LlamaConfig

    vocabulary = load_tokenizer("default").get_vocab_size()
    config = LlamaConfig(
        vocab_size=vocabulary,
        dtype="bfloat16",
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        **shape,
    )
    place = "cuda" if torch.cuda.is_available() else "cpu"
    chance = torch.Generator(place).manual_seed(SEED)

    def tensors(sizes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        return {
            name: torch.ones(size, dtype=torch.bfloat16)
            if len(size) == 1
            else torch.empty(size, dtype=torch.bfloat16, device=place)
            .normal_(0.0, 0.02, generator=chance)
            .cpu()
            for name, size in sizes.items()
        }

    weights: dict[str, str] = {}

    def save(name: str, sizes: Mapping[str, tuple[int, ...]]) -> None:
        save_file(tensors(sizes), folder / name, metadata={"format": "pt"})
        weights.update(dict.fromkeys(sizes, name))

    width = config.hidden_size
    table = (vocabulary, width)
    save("table.safetensors", {"model.embed_tokens.weight": table, "lm_head.weight": table})
    save("norm.safetensors", {"model.norm.weight": (width,)})
    for at in range(config.num_hidden_layers):
        prefix = f"model.layers.{at}."
        save(f"{at}.safetensors", {prefix + name: size for name, size in _layer(config).items()})
    index = {"metadata": {}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve("default")).save_pretrained(folder)


def _layer(config: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's tensors."""
    width, inner = config.hidden_size, config.intermediate_size
    head = width // config.num_attention_heads
    narrow = head * config.num_key_value_heads
    return {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (narrow, width),
        "self_attn.v_proj.weight": (narrow, width),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }


def _size(engine: NativeEngine, text: str) -> int:
    return len(engine.encode_text(text))
