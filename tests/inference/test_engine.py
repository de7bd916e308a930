"""What ends a generation, what a seed fixes, and what is refused before anything is computed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from inference import (
    Capability,
    Chunk,
    Engine,
    FinishReason,
    InferenceError,
    InferenceInputError,
    Message,
    Request,
    SamplingParams,
)
from inference.engine import NativeConfig
from inference.errors import NoChatTemplate, PromptTooLong
from inference.native.answer import Answer
from inference.native.engine import NativeEngine
from inference.native.loop import Core
from inference.native.prompts import encode
from inference.native.task import Job
from tests.inference.conftest import open_engine
from tests.inference.tiny import checkpoint

Tiny = Callable[..., NativeEngine]
SAMPLED = SamplingParams(max_tokens=25, temperature=1.0, top_p=0.95, seed=11)


def test_it_is_an_engine(tiny: Tiny) -> None:
    engine = tiny("llama")
    assert isinstance(engine, Engine)
    assert engine.capabilities == NativeConfig.provides
    assert engine.context_length == 256


def test_a_seed_fixes_the_draws_whatever_runs_beside(tiny: Tiny) -> None:
    engine = tiny("llama", endless=True)
    request = Request(prompt="the river", sampling=SAMPLED, id="mine")
    others = [
        Request(prompt=f"fox {n}", sampling=replace(SAMPLED, seed=n), id=f"o{n}") for n in range(4)
    ]
    (alone,) = engine.generate([request])
    mixed = {o.id: o for o in engine.generate([*others[:2], request, *others[2:]])}
    assert mixed["mine"].token_ids == alone.token_ids
    assert mixed["mine"].notes == {"seed": 11}
    reseeded = replace(request, sampling=replace(SAMPLED, seed=12))
    assert engine.generate([reseeded])[0].token_ids != alone.token_ids


def test_an_unseeded_draw_reports_a_seed_that_repeats_it(tiny: Tiny) -> None:
    engine = tiny("llama", endless=True)
    unseeded = Request(prompt="the river", sampling=replace(SAMPLED, seed=None))
    first, second = (engine.generate([unseeded])[0] for _ in range(2))
    assert first.notes["seed"] != second.notes["seed"]
    again = replace(unseeded, sampling=replace(SAMPLED, seed=first.notes["seed"]))
    assert engine.generate([again])[0].token_ids == first.token_ids
    greedy = Request(prompt="the river", sampling=SamplingParams(max_tokens=2))
    assert "seed" not in engine.generate([greedy])[0].notes


def test_produced_tokens_given_back_as_prompt_continue_the_same_draw(tiny: Tiny) -> None:
    engine = tiny("llama", endless=True)
    whole = engine.generate([Request(prompt="the river", sampling=SAMPLED)])[0]
    prompt = encode(engine._model(), Request(prompt="the river"))
    resumed = Request(
        token_ids=[*prompt, *whole.token_ids[:10]], sampling=replace(SAMPLED, max_tokens=15)
    )
    assert engine.generate([resumed])[0].token_ids == whole.token_ids[10:]


@pytest.mark.parametrize("seed", range(4))
def test_a_stop_string_over_token_boundaries(tiny: Tiny, seed: int) -> None:
    engine = tiny("llama", endless=True, ascii_only=True)
    params = SamplingParams(max_tokens=60, temperature=1.5, top_k=30, seed=seed)
    full = engine.generate([Request(prompt="fox", sampling=params)])[0]
    decode = engine._model().decode
    tried = 0
    for cut in range(5, 55, 3):
        # Half of one token's text and half of the next: no token is the stop string itself.
        left, right = (decode(list(full.token_ids[:n])) for n in (cut - 1, cut + 1))
        stop = right[len(left) :][1:-1]
        if not stop:
            continue
        tried += 1
        request = Request(prompt="fox", sampling=replace(params, stop=("nowhere", stop)))
        (output,) = engine.generate([request])
        assert output.finish_reason is FinishReason.STOP_STRING
        assert output.text == full.text[: full.text.index(stop)]
        assert output.token_ids == full.token_ids[: len(output.token_ids)]
        assert stop in decode(list(output.token_ids))
        assert stop not in decode(list(output.token_ids[:-1]))
    assert tried > 3


def test_an_abort_takes_effect_within_one_step(tiny: Tiny) -> None:
    engine = tiny("llama", endless=True)
    request = Request(prompt="the quick brown fox", sampling=SamplingParams(max_tokens=100))
    model, core, desk = engine._open()
    job = Job(request, encode(model, request))
    emitted: list[Chunk] = []

    def emit(item: Chunk | Exception) -> None:
        assert isinstance(item, Chunk)
        emitted.append(item)
        if len(emitted) == 3:
            job.cancelled.set()
            produced.append(sum(len(c.token_ids) for c in emitted))

    produced: list[int] = []
    answer = Answer(model, job, desk.rows(job), emit, core.runner.store.token_bytes)
    drive(core, answer)
    *seen, last = emitted
    assert last.output is not None
    assert last.output.finish_reason is FinishReason.ABORTED
    assert last.output.stats.forwards == produced[0] == len(last.output.token_ids)
    assert last.output.text == "".join(c.text for c in [*seen, last])
    assert last.output.token_ids == tuple(i for c in [*seen, last] for i in c.token_ids)
    assert core.blocks.used == 0


def drive(core: Core, task: Answer) -> None:
    """Run a task in the step thread and wait for it to leave."""
    left = threading.Event()
    end = task.end

    def counted(reason: FinishReason) -> None:
        end(reason)
        left.set()

    task.end = counted  # type: ignore[method-assign]
    core.add([task])
    assert left.wait(60)


def test_an_abort_before_the_prompt_is_read_costs_nothing(tiny: Tiny) -> None:
    model, core, desk = tiny("llama")._open()
    request = Request(prompt="the quick brown fox", sampling=SamplingParams(max_tokens=100))
    job = Job(request, encode(model, request))
    job.cancelled.set()
    emitted: list[Any] = []
    drive(core, Answer(model, job, desk.rows(job), emitted.append, 1))
    (last,) = emitted
    assert (last.output.finish_reason, last.output.stats.forwards) == (FinishReason.ABORTED, 0)


def test_abort_by_id_from_another_thread(tiny: Tiny) -> None:
    engine = tiny("llama", endless=True, context=100_000)
    params = SamplingParams(max_tokens=90_000)
    requests = [Request(prompt="fox", sampling=params, id=i) for i in ("first", "second")]
    outputs: list[Any] = []
    worker = threading.Thread(target=lambda: outputs.extend(engine.generate(requests)))
    assert not engine.abort("first")
    worker.start()
    while not engine.abort("first"):
        pass
    assert engine.abort("second")
    worker.join(60)
    assert [o.finish_reason for o in outputs] == [FinishReason.ABORTED] * 2
    assert not engine.abort("first")


def test_a_deadline_keeps_the_text_so_far(tiny: Tiny) -> None:
    engine = tiny("llama", endless=True, context=100_000)
    request = Request(prompt="fox", sampling=SamplingParams(max_tokens=90_000), seconds=0.3)
    (output,) = engine.generate([request])
    assert output.finish_reason is FinishReason.DEADLINE
    assert output.token_ids and output.text
    assert len(output.token_ids) < 90_000
    (late,) = engine.generate([replace(request, seconds=1e-9)])
    assert (late.finish_reason, late.token_ids) == (FinishReason.DEADLINE, ())


@pytest.mark.parametrize(("length", "room"), [(1, 31), (30, 2), (31, 1)])
def test_a_prompt_within_the_context_runs_to_its_end(tiny: Tiny, length: int, room: int) -> None:
    engine = tiny("llama", context=32, endless=True)
    request = Request(token_ids=[5] * length, sampling=SamplingParams(max_tokens=100))
    (output,) = engine.generate([request])
    assert (len(output.token_ids), output.finish_reason) == (room, FinishReason.LENGTH)
    assert output.stats.truncated_tokens == 0


@pytest.mark.parametrize("length", [32, 33, 80])
def test_a_prompt_beyond_the_context_is_refused_or_cut(tiny: Tiny, length: int) -> None:
    engine = tiny("llama", context=32, endless=True)
    ids = [4 + n % 300 for n in range(length)]
    request = Request(token_ids=ids, sampling=SamplingParams(max_tokens=8))
    with pytest.raises(PromptTooLong, match=rf"{length} tokens .* context of 32.*truncate"):
        engine.generate([request])
    cut, kept = engine.generate(
        [replace(request, truncate="left"), replace(request, token_ids=ids[-24:], id="kept")]
    )
    assert cut.stats.truncated_tokens == length - 24
    assert cut.usage.prompt_tokens == 24
    assert cut.token_ids == kept.token_ids and len(cut.token_ids) == 8
    greedy = replace(request, truncate="left", sampling=SamplingParams(max_tokens=1000))
    (half,) = engine.generate([greedy])
    assert (half.usage.prompt_tokens, len(half.token_ids)) == (16, 16)


def test_one_bad_request_refuses_all(tiny: Tiny) -> None:
    engine = tiny("llama", context=32)
    seen: list[str] = []
    good = Request(prompt="fox", id="good")
    for bad, message in [
        (Request(token_ids=[5] * 40), "context of 32"),
        (Request(token_ids=[1, 999]), r"token id 999 at position 1 .*\(0 to 319\)"),
        (Request(prompt="dog", id="good"), "id 'good' is already in use"),
    ]:
        with pytest.raises(InferenceInputError, match=message):
            engine.generate([good, bad], on_output=lambda o: seen.append(o.id))
    assert seen == []
    assert engine.generate([]) == []
    engine.generate([good], on_output=lambda o: seen.append(o.id))
    assert seen == ["good"]


def test_messages_without_a_template_are_refused(tiny: Tiny) -> None:
    engine = tiny("llama", template=None)
    assert Capability.CHAT not in engine.capabilities
    with pytest.raises(NoChatTemplate, match="no chat template; give a plain prompt"):
        engine.generate([Request(messages=[Message("user", "hi")])])
    assert engine.generate([Request(prompt="hi")])[0].token_ids


def test_roles_a_template_refuses(tiny: Tiny) -> None:
    engine = tiny("llama", template="{{ raise_exception('user and assistant must alternate') }}")
    with pytest.raises(
        InferenceInputError, match=r"refuses the roles \['user', 'user'\].*alternate"
    ):
        engine.generate([Request(messages=[Message("user", "a"), Message("user", "b")])])


def test_a_closed_engine_says_so(tmp_path: Path) -> None:
    engine = open_engine(checkpoint(tmp_path))
    engine.close()
    with pytest.raises(InferenceError, match="is closed; open it again"):
        engine.generate([Request(prompt="hi")])


def test_bfloat16_runs_with_half_the_cache(tmp_path: Path, tiny: Tiny) -> None:
    folder = checkpoint(tmp_path, endless=True)
    config = NativeConfig(model=str(folder), dtype="bfloat16", device="cpu")
    engine = NativeEngine.from_config(config)
    request = Request(prompt="the river", sampling=SamplingParams(max_tokens=10))
    (half,) = engine.generate([request])
    (full,) = tiny("llama", endless=True).generate([request])
    assert half.stats.peak_kv_bytes * 2 == full.stats.peak_kv_bytes
    assert half.token_ids == engine.generate([replace(request, id="again")])[0].token_ids
    engine.close()


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InferenceError, match="cannot be loaded") as caught:
        open_engine(folder)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_an_error_not_random_numbers(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InferenceError, match=r"lacks .*q_proj\.weight"):
        open_engine(folder)


def test_cuda_where_there_is_none(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    with pytest.raises(InferenceInputError, match="torch sees no CUDA device"):
        NativeEngine.from_config(NativeConfig(model=str(checkpoint(tmp_path)), device="cuda"))
