"""`ragwright models`: what the store knows and what it holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from inference.calibration import Calibration


@click.group()
def models() -> None:
    """List and fetch models."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_command(as_json: bool) -> None:
    """Show the models that need no hub, and those in the cache."""
    from inference.models import list_models

    entries = list_models()
    if as_json:
        click.echo(json.dumps({"models": [entry.to_dict() for entry in entries]}))
        return
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        state = f"cached, {entry.size / 1e6:.0f} MB" if entry.size is not None else "not cached"
        licence = entry.license or "licence not stated"
        click.echo(f"{entry.name:<{width}}  {entry.description} ({licence}; {state})")
        if entry.path is not None:
            click.echo(f"{'':<{width}}  {entry.path}")


@models.command()
@click.argument("name", default="default")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto")
@click.option(
    "--atlas",
    type=click.Path(exists=True, path_type=Path),
    metavar="DOCS",
    help="Thresholds of ATLAS behind the beginnings of these documents, instead.",
)
@click.option("--rate", type=click.FloatRange(0, 0.5, min_open=True, max_open=True))
@click.option("--form", type=click.Choice(["lookahead", "outgoing"]))
@click.option("--window", type=click.IntRange(8, 256))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def calibrate(name: str, dtype: Any, atlas: Path | None, as_json: bool, **options: Any) -> None:
    """Measure model NAME (default: default) here, for the engine to use from then on.

    With --atlas, what ATLAS must know of it: at which probability and which MLAG a share --rate
    (0.05) of the content tokens triggers that the model writes behind the beginnings of DOCS, for
    a --form (lookahead) and a --window (32) of the trigger.
    """
    given = {option: value for option, value in options.items() if value is not None}
    if atlas is not None:
        _calibrate_atlas(name, dtype, atlas, given, as_json)
        return
    if given:
        raise click.UsageError(f"--{next(iter(given))} goes with --atlas DOCS")
    from tqdm import tqdm

    from inference.calibration import save
    from inference.engine import NativeConfig
    from inference.native.calibrate import MEASUREMENTS
    from inference.native.calibrate import calibrate as measure

    hidden = not sys.stderr.isatty()
    with tqdm(total=MEASUREMENTS, desc="calibrating", unit="run", disable=hidden) as bar:
        found = measure(NativeConfig(model=name, dtype=dtype), tick=lambda: bar.update(1))
    path = str(save(found))
    if as_json:
        click.echo(json.dumps({"model": name, "path": path, **found.summary()}))
        return
    for line in _account(found):
        click.echo(line)
    click.echo(path)


def _calibrate_atlas(
    name: str, dtype: Any, docs: Path, options: dict[str, Any], as_json: bool
) -> None:
    from tqdm import tqdm

    from agents.atlas_calibration import calibrate, save
    from inference.engine import NativeConfig
    from retrieval.documents import load

    texts = [document.text for document in load(docs)]
    engine = NativeConfig(model=name, dtype=dtype).open()
    try:
        hidden = not sys.stderr.isatty()
        with tqdm(total=len(texts), desc="calibrating", unit="text", disable=hidden) as bar:
            found = calibrate(engine, texts, **options, tick=lambda: bar.update(1))
    finally:
        engine.close()
    path = str(save(found))
    if as_json:
        click.echo(json.dumps({"path": path, **found.model_dump()}))
        return
    click.echo(
        f"a token under p = {found.max_probability:.4f} with MLAG over {found.threshold:.3g} "
        f"triggers: {found.rate:.1%} of {found.tokens} content tokens behind {found.texts} texts"
    )
    click.echo(path)


def _account(found: Calibration) -> Iterator[str]:
    """A calibration for the reader: its tables, then what follows from them."""
    setting, runtime, held = found.setting, found.runtime, found.held_out
    yield f"{setting.dtype}, {setting.threads} threads, torch {setting.torch}, {setting.device}"
    for tokens, seconds in found.forwards:
        mark = " (the knee)" if tokens == found.knee else ""
        speed = f"{seconds * 1e3:9.1f} ms {tokens / seconds:7.0f} tokens/s"
        yield f"forward of {tokens:4} tokens {speed}{mark}"
    yield "T(p, o) = F(p) + g (o - 1) for p prompt and o output tokens"
    for tokens, seconds in runtime.prefill.items():
        yield f"F({tokens}) = {seconds * 1e3:.1f} ms"
    yield f"g = {runtime.per_token * 1e3:.2f} ms, R^2 = {runtime.r_squared:.4f}"
    yield (
        f"fitted to {', '.join(map(str, held.fitted))}, predicts "
        f"{', '.join(map(str, held.predicted))} prompt tokens with an error of "
        f"{held.median_error:.1%} (median), {held.max_error:.1%} (largest), "
        f"R^2 = {held.r_squared:.4f}"
    )


@models.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pull(name: str, as_json: bool) -> None:
    """Fetch model NAME (a known name or a hub id) unless a verified copy is there."""
    from inference.models import list_models, resolve

    path = str(resolve(name))
    if not as_json:
        click.echo(path)
        return
    entry = next((entry for entry in list_models() if entry.path == path), None)
    facts = entry.to_dict() if entry else {"name": name, "cached": False, "path": path}
    click.echo(json.dumps(facts))
