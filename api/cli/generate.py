"""`ragwright generate`: prompts in, text out, through the local engine."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from inference.native.engine import NativeEngine
    from inference.requests import Output, Request


@click.command()
@click.argument("prompt", required=False)
@click.option("--prompts", type=click.Path(path_type=Path), help="One prompt a line, or .jsonl.")
@click.option("--system", help="System message for prompts that bring none.")
@click.option("--raw", is_flag=True, help="Send the prompt as it stands, without chat template.")
@click.option("--max-tokens", type=int, default=256, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int)
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--min-p", type=float, default=0.0, show_default=True)
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True)
@click.option("--stop", multiple=True, metavar="TEXT", help="End before TEXT; repeatable.")
@click.option(
    "--schema", type=click.Path(path_type=Path), help="Answer in JSON of this JSON Schema."
)
@click.option("--regex", metavar="R", help="Answer in a text that matches R as a whole.")
@click.option("--ebnf", type=click.Path(path_type=Path), help="Answer in a text of these rules.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="FOLDER",
    help="LoRA in a PEFT folder, known by the folder's name; repeatable.",
)
@click.option(
    "--kv", metavar="SPEC", help="What the cache keeps: NAME or NAME:OPTION=VALUE,OPTION=VALUE."
)
@click.option(
    "--drafter",
    metavar="SPEC",
    help="What guesses tokens ahead: NAME or NAME:OPTION=VALUE,OPTION=VALUE.",
)
@click.option(
    "--reference",
    "references",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Text file the drafter may copy from; repeatable.",
)
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option(
    "--logprobs", type=int, metavar="N", help="Log-probability and N best of each token (--json)."
)
@click.option("--truncate", type=click.Choice(["never", "left"]), default="never")
@click.option("--model", default="default", show_default=True, help="Known name, path or hub id.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def generate(
    prompt: str | None,
    prompts: Path | None,
    model: str,
    dtype: Any,
    device: Any,
    as_json: bool,
    adapters: tuple[str, ...],
    **options: Any,
) -> None:
    """Generate text for PROMPT, or for every prompt of a file."""
    from api.cli.prompts import build_requests, named_adapters
    from inference.engine import NativeConfig
    from inference.native.engine import NativeEngine

    if options["logprobs"] is not None and not as_json:
        raise click.UsageError("--logprobs is printed with --json only; add --json")
    folders = named_adapters(adapters)
    requests = build_requests(prompt, prompts, adapters=tuple(folders), **options)
    config = NativeConfig(model=model, dtype=dtype, device=device, adapters=folders)
    engine = NativeEngine.from_config(config)
    try:
        if as_json:
            outputs = _generate_all(engine, requests)
            results = {"results": [output.to_dict() for output in outputs]}
            click.echo(json.dumps(results, ensure_ascii=False))
            _require_success(outputs)
        elif prompt is not None:
            asyncio.run(_print_stream(engine, requests[0]))
        else:
            outputs = _generate_all(engine, requests)
            for output in outputs:
                click.echo(f"--- {output.id} ({output.finish_reason.value})\n{output.text}\n")
            _require_success(outputs)
    finally:
        engine.close()


def _generate_all(engine: NativeEngine, requests: list[Request]) -> list[Output]:
    from tqdm import tqdm

    hidden = len(requests) < 2 or not sys.stderr.isatty()
    with tqdm(total=len(requests), desc="generating", unit="prompt", disable=hidden) as bar:
        return engine.generate(requests, on_output=lambda _: bar.update(1))


async def _print_stream(engine: NativeEngine, request: Request) -> None:
    async with aclosing(engine.stream(request)) as chunks:
        async for chunk in chunks:
            click.echo(chunk.text, nl=False)
    click.echo()
    _require_success([chunk.output] if chunk.output else [])


def _require_success(outputs: list[Output]) -> None:
    """Raise for the first failed output, after everything was printed."""
    for output in outputs:
        output.raise_if_failed()
