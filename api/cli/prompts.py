"""Prompts of the command line: an argument, a text file or JSONL, checked before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from inference.errors import AdapterInputError, GrammarInputError, InferenceInputError
from inference.grammar import Grammar
from inference.kv import parse as parse_policy
from inference.requests import Message, Request, SamplingParams
from inference.speculative import parse as parse_drafter

ROLES = ("system", "user", "assistant")
KEYS = ("id", "prompt", "messages")

Content = str | list[Message]


def build_requests(
    prompt: str | None,
    prompts: Path | None,
    *,
    system: str | None,
    raw: bool,
    truncate: str,
    logprobs: int | None = None,
    kv: str | None = None,
    drafter: str | None = None,
    references: tuple[Path, ...] = (),
    schema: Path | None = None,
    regex: str | None = None,
    ebnf: Path | None = None,
    adapters: tuple[str, ...] = (),
    **sampling: Any,
) -> list[Request]:
    """Requests for one prompt or a file of them; raises InferenceInputError naming every fault."""
    if (prompt is None) == (prompts is None):
        raise InferenceInputError("give exactly one of PROMPT and --prompts FILE")
    if raw and system is not None:
        raise InferenceInputError("--system needs the chat template; leave out --raw")
    params = SamplingParams(**sampling)
    grammar = read_grammar(schema, regex, ebnf)
    policy = None if kv is None else parse_policy(kv)
    drafts = None if drafter is None else parse_drafter(drafter)
    texts = tuple(_text(path) for path in references)
    if prompts is None:
        rows: list[tuple[str, Content]] = [("0", prompt or "")]
        if not rows[0][1]:
            raise InferenceInputError("PROMPT is empty; give a text")
    else:
        rows = read_prompts(prompts)
        if raw and any(isinstance(content, list) for _, content in rows):
            raise InferenceInputError(f"{prompts} holds messages; leave out --raw or give prompts")
    return [
        Request(
            id=key,
            sampling=params,
            truncate=cast(Any, truncate),
            logprobs=logprobs,
            grammar=grammar,
            adapters=adapters,
            kv=policy,
            drafter=drafts,
            references=texts,
            **_body(content, system, raw),
        )
        for key, content in rows
    ]


def named_adapters(given: tuple[str, ...]) -> dict[str, str]:
    """PEFT folders by their names; AdapterInputError for what is no folder, or a name twice."""
    found: dict[str, str] = {}
    for text in given:
        folder = Path(text).expanduser()
        if not folder.is_dir():
            raise AdapterInputError(
                f"--adapter {text}: there is no such folder; give one that PEFT or "
                "`train_lora` wrote"
            )
        name = folder.resolve().name
        if name in found:
            raise AdapterInputError(
                f"--adapter {text}: {found[name]} is called {name!r} too; rename one of them"
            )
        found[name] = str(folder)
    return found


def _body(content: Content, system: str | None, raw: bool) -> dict[str, Any]:
    if isinstance(content, str):
        if raw:
            return {"prompt": content}
        content = [Message("user", content)]
    if system is not None and content[0].role != "system":
        content = [Message("system", system), *content]
    return {"messages": tuple(content)}


def read_grammar(schema: Path | None, regex: str | None, ebnf: Path | None) -> Grammar | None:
    """The grammar of one of the three options; raises GrammarInputError naming the file."""
    given = {"--schema": schema, "--regex": regex, "--ebnf": ebnf}
    if len(names := [name for name, value in given.items() if value is not None]) > 1:
        raise InferenceInputError(f"{' and '.join(names)} exclude each other; give one of them")
    if regex is not None:
        return Grammar.regex(regex)
    path = schema or ebnf
    if path is None:
        return None
    text = _text(path)
    try:
        return Grammar("json_schema" if schema else "ebnf", text)
    except GrammarInputError as error:
        raise GrammarInputError(f"{path}: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InferenceInputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InferenceInputError(
            f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from error


def read_prompts(path: Path) -> list[tuple[str, Content]]:
    """(id, prompt or messages) of each non-blank line; the default id is the line's index."""
    text = _text(path)
    parse = _parse_json if path.suffix.lower() == ".jsonl" else _parse_line
    rows: list[tuple[str, Content]] = []
    faults: list[str] = []
    first: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            key, content = parse(number - 1, line.rstrip("\r"))
        except ValueError as error:
            faults.append(f"line {number}: {error}")
            continue
        if key in first:
            faults.append(f"line {number}: id {key!r} is already used in line {first[key]}")
        first.setdefault(key, number)
        rows.append((key, content))
    if faults:
        raise InferenceInputError(f"{path}: " + "; ".join(faults))
    if not rows:
        raise InferenceInputError(f"{path} holds no prompts; write one a line")
    return rows


def _parse_line(index: int, line: str) -> tuple[str, Content]:
    return str(index), line


def _parse_json(index: int, line: str) -> tuple[str, Content]:
    """One JSONL row; raises ValueError saying what is wrong with it."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not JSON that can be read (nested too deeply)") from None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    if unknown := sorted(set(row) - set(KEYS)):
        raise ValueError(f"unknown key {unknown[0]!r}; known keys are {', '.join(KEYS)}")
    if ("prompt" in row) == ("messages" in row):
        raise ValueError("needs exactly one of 'prompt' and 'messages'")
    key = row.get("id", str(index))
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise ValueError(f"id {key!r} is not a string or an integer")
    if "messages" in row:
        return str(key), _messages(row["messages"])
    if not isinstance(row["prompt"], str) or not row["prompt"]:
        raise ValueError("'prompt' is not a non-empty string")
    return str(key), row["prompt"]


def _messages(given: object) -> list[Message]:
    if not isinstance(given, list) or not given:
        raise ValueError("'messages' is not a non-empty list")
    for at, turn in enumerate(given):
        if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
            raise ValueError(f"message {at} is not an object of 'role' and 'content'")
        if turn["role"] not in ROLES:
            raise ValueError(f"message {at} has role {turn['role']!r}; one of {', '.join(ROLES)}")
        if not isinstance(turn["content"], str):
            raise ValueError(f"message {at} has content that is not a string")
    return [Message(turn["role"], turn["content"]) for turn in given]
