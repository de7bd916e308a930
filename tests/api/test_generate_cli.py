"""`ragwright generate`: prompts, files, JSON, and every bad input on one line with status 2."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from inference import Request, SamplingParams
from inference.engine import NativeConfig
from tests.api.conftest import Ragwright
from tests.inference.tiny import POISON, checkpoint, tokenizer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint(tmp_path_factory.mktemp("model"), endless=True, ascii_only=True))


@pytest.fixture
def run(ragwright: Ragwright, model: str) -> Run:
    """`ragwright generate ...` of twelve tokens by a tiny model."""
    return partial(ragwright, "generate", "--model", model, "--max-tokens", "12")


def test_json_of_one_prompt(run: Run, model: str) -> None:
    status, out, _ = run("fox", "--json", "--dtype", "float32", "--device", "cpu")
    assert status == 0
    (result,) = json.loads(out)["results"]
    assert {"id", "text", "token_ids", "finish_reason", "usage", "stats"} == set(result)
    engine = NativeConfig(model=model, dtype="float32", device="cpu").open()
    raw = Request(
        prompt="<|user|>fox<|end|><|assistant|>", sampling=SamplingParams(max_tokens=12), id="0"
    )
    (wanted,) = engine.generate([raw])
    engine.close()
    assert (result["text"], result["token_ids"]) == (wanted.text, list(wanted.token_ids))
    assert result["usage"]["completion_tokens"] == 12
    assert result["finish_reason"] == "length"


def test_text_of_one_prompt_is_streamed_whole(run: Run) -> None:
    text = json.loads(run("fox", "--json")[1])["results"][0]["text"]
    assert run("fox")[:2] == (0, text + "\n")


def test_options_reach_the_engine(run: Run) -> None:
    def result(*arguments: str) -> dict[str, Any]:
        return json.loads(run("fox", "--json", *arguments)[1])["results"][0]

    plain = result()
    assert result("--raw")["usage"]["prompt_tokens"] < plain["usage"]["prompt_tokens"]
    assert (
        result("--system", "be brief")["usage"]["prompt_tokens"] > (plain["usage"]["prompt_tokens"])
    )
    drawn = result("--temperature", "2", "--seed", "3")
    assert drawn["token_ids"] == result("--temperature", "2", "--seed", "3")["token_ids"]
    assert drawn["notes"] == {"seed": 3}
    narrow = ["--temperature", "2", "--seed", "3", "--top-k", "1"]
    assert result(*narrow)["token_ids"] == plain["token_ids"] != drawn["token_ids"]
    for filters in (["--top-p", "1e-9"], ["--min-p", "1"]):
        again = result("--temperature", "2", "--seed", "3", *filters)
        assert again["token_ids"] == plain["token_ids"]
    assert result("--repetition-penalty", "9")["token_ids"] != plain["token_ids"]
    stop = plain["text"][3:6]
    cut = result("--stop", "nowhere", "--stop", stop)
    assert (cut["finish_reason"], cut["text"]) == (
        "stop_string",
        plain["text"][: plain["text"].index(stop)],
    )


def test_a_file_of_prompts(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("fox\r\n\n  \ndog\u2028night\n", encoding="utf-8-sig")
    status, out, err = run("--prompts", str(path), "--json")
    results = json.loads(out)["results"]
    assert (status, [r["id"] for r in results], err) == (0, ["0", "3"], "")
    assert results[0]["text"] == json.loads(run("fox", "--json")[1])["results"][0]["text"]
    status, out, err = run("--prompts", str(path))
    assert out == "".join(f"--- {r['id']} (length)\n{r['text']}\n\n" for r in results)


def test_a_jsonl_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"id": "a", "prompt": "fox"},
        {"id": 7, "messages": [{"role": "user", "content": "fox"}]},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "fox"}]},
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    results = json.loads(run("--prompts", str(path), "--json")[1])["results"]
    assert [r["id"] for r in results] == ["a", "7", "2"]
    assert results[0]["token_ids"] == results[1]["token_ids"]
    tokens = [r["usage"]["prompt_tokens"] for r in results]
    given = json.loads(run("--prompts", str(path), "--json", "--system", "s")[1])["results"]
    assert [r["usage"]["prompt_tokens"] for r in given] == [tokens[2]] * 3


def test_every_bad_line_is_reported_at_once(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    lines = [
        '{"prompt": "fox", "id": "a"}',
        "{nonsense",
        "[1]",
        '{"prompt": ""}',
        '{"prompt": "x", "messages": []}',
        '{"promt": "x"}',
        '{"prompt": "dog", "id": "a"}',
        '{"prompt": "dog", "id": true}',
        '{"messages": [{"role": "wizard", "content": "x"}]}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "user", "content": 3}]}',
        '{"messages": {}}',
        "[" * 100_000,
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    status, out, err = run("--prompts", str(path), "--json")
    assert (status, out, err.count("\n")) == (2, "", 1)
    for part in [
        f"ragwright: {path}: ",
        "line 2: not JSON (",
        "line 3: not a JSON object",
        "line 4: 'prompt' is not a non-empty string",
        "line 5: needs exactly one of",
        "line 6: unknown key 'promt'; known keys are id, prompt, messages",
        "line 7: id 'a' is already used in line 1",
        "line 8: id True is not",
        "line 9: message 0 has role 'wizard'; one of system, user, assistant",
        "line 10: message 0 is not an object",
        "line 11: message 0 has content",
        "line 12: 'messages' is not",
        "line 13: not JSON",
    ]:
        assert part in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give exactly one of PROMPT and --prompts FILE"),
        (["fox", "--prompts", "x"], "give exactly one of PROMPT and --prompts FILE"),
        ([""], "PROMPT is empty"),
        (["fox", "--system", "s", "--raw"], "--system needs the chat template"),
        (["fox", "--max-tokens", "0"], "max_tokens=0 must be at least 1"),
        (["fox", "--temperature", "nan"], "temperature=nan must be finite"),
        (["fox", "--logprobs", "3"], "--logprobs is printed with --json only; add --json"),
        (["fox", "--json", "--logprobs", "21"], "logprobs=21; give 0 to 20"),
        (["fox", "--top-p", "0"], "top_p=0.0 must be in (0, 1]"),
        (["fox", "--model", "defualt"], "did you mean 'default'"),
        (["fox " * 300], "context of 256, which must also hold what is generated"),
        (["--prompts", "{tmp}/missing.txt"], "missing.txt cannot be read: No such file"),
        (["--prompts", "{tmp}"], "cannot be read: Is a directory"),
        (["--prompts", "{tmp}/latin.txt"], "latin.txt is not UTF-8 (byte 1)"),
        (["--prompts", "{tmp}/blank.txt"], "blank.txt holds no prompts"),
        (["--prompts", "{tmp}/turns.jsonl", "--raw"], "holds messages; leave out --raw"),
    ],
)
def test_bad_input_is_one_line(
    run: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "latin.txt").write_bytes("né".encode("latin-1"))
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    (tmp_path / "turns.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "x"}]}', encoding="utf-8"
    )
    status, out, err = run(*(a.replace("{tmp}", str(tmp_path)) for a in arguments))
    assert (status, out) == (2, "")
    assert err.startswith("ragwright: ") and err.count("\n") == 1 and message in err


def test_a_long_prompt_is_cut_when_asked(run: Run) -> None:
    status, out, _ = run("fox " * 300, "--truncate", "left", "--json")
    (result,) = json.loads(out)["results"]
    assert status == 0 and result["stats"]["truncated_tokens"] > 0


def test_a_model_without_template_names_raw(run: Run, tmp_path: Path) -> None:
    bare = str(checkpoint(tmp_path, template=None))
    status, _, err = run("fox", "--model", bare)
    assert status == 2 and "has no chat template" in err and "--raw" in err
    assert run("fox", "--model", bare, "--raw", "--json")[0] == 0


def test_log_probabilities_are_printed(run: Run) -> None:
    (result,) = json.loads(run("fox", "--json", "--logprobs", "2")[1])["results"]
    assert [entry["id"] for entry in result["logprobs"]] == result["token_ids"]
    for entry in result["logprobs"]:
        assert set(entry) == {"text", "logprob", "id", "top"}
        assert entry["top"][0] == [entry["text"], entry["logprob"]] and len(entry["top"]) == 2


def test_a_failed_request_is_printed_with_the_others_and_the_status_is_1(
    run: Run, tmp_path: Path
) -> None:
    model = str(checkpoint(tmp_path / "model", poison=math.nan, endless=True, ascii_only=True))
    spelt = tokenizer().decode([POISON])
    rows = [{"id": "a", "prompt": "fox"}, {"id": "b", "prompt": f"x{spelt}"}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    says = "ragwright: request 'b' failed: the model computed logits of NaN for 320 of 320 tokens"
    status, out, err = run("--prompts", path, "--model", model, "--json")
    fine, failed = json.loads(out)["results"]
    assert (status, err.count("\n"), fine["finish_reason"]) == (1, 1, "length")
    assert (failed["finish_reason"], failed["notes"]["error"]["code"]) == (
        "failed",
        "broken_logits",
    )
    assert err.startswith(says)
    status, out, err = run("--prompts", path, "--model", model)
    assert (status, err.startswith(says)) == (1, True)
    assert f"--- a (length)\n{fine['text']}\n" in out and "--- b (failed)" in out
    status, out, err = run(f"x{spelt}", "--model", model)
    assert (status, out) == (1, "\n") and "failed: the model computed logits of NaN" in err


@pytest.mark.default_model
def test_the_default_model_in_a_process_of_its_own() -> None:
    code = "from api.cli import main; main()"
    arguments = ["generate", "What is the capital of France?", "--json", "--dtype", "float32"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--max-tokens", "8"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Paris" in json.loads(done.stdout)["results"][0]["text"]
