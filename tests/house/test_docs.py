"""What the documents say can be typed, opened and found."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.house.source import ROOT
from workflows.shelves import shipped_workflows

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LIBRARY = ROOT / "workflows" / "library"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*")
"""Words like FOLDER that the reader replaces."""


def commands(text: str) -> Iterator[list[str]]:
    """The `ragwright` and `make` command lines in the shell fences of a page, as words."""
    for language, body in FENCE.findall(text):
        if language not in {"sh", "bash", "console"}:
            continue
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if "&" in words:  # what follows is a command of its own
                words = words[: words.index("&")]
            if words and Path(words[0]).name in {"ragwright", "make"}:
                yield [Path(words[0]).name, *words[1:]]


def fault(words: list[str]) -> str | None:
    """What is wrong with a command line, or None."""
    return _make_fault(words[1:]) if words[0] == "make" else _ragwright_fault(words[1:])


def _make_fault(words: list[str]) -> str | None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z]+) \?=", makefile, re.MULTILINE)) | {"CC"}
    for word in words:
        name, setting, _ = word.partition("=")
        if name not in (variables if setting else targets):
            return f"make has no {word!r}"
    return None


def _ragwright_fault(words: list[str]) -> str | None:
    from api.cli import cli

    command: click.Command = cli
    context = click.Context(cli, info_name="ragwright")
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        found = command.get_command(context, name)
        if found is None:
            return f"no command {name!r}"
        command, context = found, click.Context(found, parent=context, info_name=name)
    try:
        values, extra, _ = command.make_parser(context).parse_args(list(rest))
    except click.UsageError as error:
        return error.message
    if extra and not isinstance(command, click.Group):
        return f"too many arguments: {extra}"
    return _names_fault(context.command_path, values)


def _names_fault(path: str, values: dict[str, object]) -> str | None:
    """Checks the workflow, and the files that a command reads."""
    for option, value in values.items():
        for text in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(text, str) or PLACEHOLDER.fullmatch(text):
                continue
            if option == "workflow" or path.endswith("workflows show"):
                known = {file.stem for file in LIBRARY.glob("*.yaml")}
                if text not in known and not (ROOT / text).is_file():
                    return f"no workflow {text!r}"
            reads = option in {"docs", "files", "queries", "prompts", "graph"}
            if reads and "/" in text and not (ROOT / text).exists():
                return f"no file {text!r}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_can_be_typed(page: Path) -> None:
    found = commands(page.read_text(encoding="utf-8"))
    faults = {shlex.join(words): reason for words in found if (reason := fault(words))}
    assert faults == {}


def test_readme_starts_with_the_two_commands() -> None:
    found = list(commands((ROOT / "README.md").read_text(encoding="utf-8")))
    assert found[:2] == [["make", "demo"], ["make", "test"]]
    assert any(words[:2] == ["ragwright", "run"] for words in found)


def test_readme_lists_every_command() -> None:
    from api.cli import COMMANDS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {name for name in COMMANDS if f"`ragwright {name}" not in text} == set()


def test_readme_lists_every_page_and_workflow() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = {page.relative_to(ROOT).as_posix() for page in ROOT.glob("docs/*.md")}
    assert pages - set(LINK.findall(text)) == set()
    assert {name for name in shipped_workflows() if f"| `{name}` |" not in text} == set()


@pytest.mark.parametrize(
    "line",
    [
        "make dmeo",
        "make install EXTRA=gpu",
        "ragwright rnu auto_rag",
        "ragwright run auto_rag --dosc data/corpus",
        "ragwright run no_such_workflow --question x",
        "ragwright run auto_rag --docs data/no-such-folder --question x",
        "ragwright workflows shwo auto_rag",
        "ragwright index build data/corpus --to x",
    ],
)
def test_wrong_commands_are_noticed(line: str) -> None:
    [words] = commands(f"```sh\n{line}  # a comment\n```\n")
    assert fault(words)


def test_comments_continuations_and_settings_are_understood() -> None:
    text = "```sh\n# first\nA=b ragwright run \\\n  auto_rag\n```\n```yaml\nmake x\n```\n"
    assert list(commands(text)) == [["ragwright", "run", "auto_rag"]]


def anchors(page: Path) -> set[str]:
    """The fragment of every heading of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"(https?|mailto):", target):
            continue
        name, _, fragment = target.partition("#")
        file = (page.parent / name) if name else page
        if not file.exists() or (fragment and fragment not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("file", sorted(LIBRARY.glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_workflows_are_valid_and_described(file: Path) -> None:
    from workflows.loading import load_workflow

    load_workflow(str(file))
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert f"`{file.stem}`" in text, f"no page describes {file.stem}"


def test_the_library_is_there() -> None:
    names = {file.stem for file in LIBRARY.glob("*.yaml")}
    assert {"auto_rag", "closed_book", "naive_rag"} <= names


def test_changelog_names_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    heads = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert heads[0] == project["version"]


def test_fenced_workflows_are_valid(tmp_path: Path) -> None:
    from workflows.loading import load_workflow

    seen = 0
    for page in PAGES:
        for language, body in FENCE.findall(page.read_text(encoding="utf-8")):
            if language == "yaml" and body.startswith("name:"):
                file = tmp_path / f"{page.stem}-{seen}.yaml"
                file.write_text(body, encoding="utf-8")
                load_workflow(str(file))
                seen += 1
    assert seen, "README shows no workflow file"
