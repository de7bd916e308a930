"""The folder format of PEFT's LoRA: a JSON configuration beside safetensors."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import regex
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from inference.adapters.shape import NUMBERED, Shape
from inference.errors import AdapterInputError
from inference.suggest import nearest

if TYPE_CHECKING:
    from inference.adapters.lora import Adapter, Site

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
SECONDS = 2.0
"""How long the patterns of a configuration may take to match, all in all."""

READ: dict[str, tuple[type, ...]] = {
    "peft_type": (str,),
    "r": (int,),
    "lora_alpha": (int, float),
    "use_rslora": (bool,),
    "rank_pattern": (dict,),
    "alpha_pattern": (dict,),
    "target_modules": (str, list),
    "exclude_modules": (str, list),
    "layers_to_transform": (int, list),
    "layers_pattern": (str, list),
    "bias": (str,),
    "init_lora_weights": (bool, str),
}
"""Keys that are understood, and the types of their values; null stands for the default."""

WITHOUT_EFFECT = {
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "qalora_group_size",
}
"""Keys that say how an adapter was made, not what it does."""

PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to initialise that leave the base weights as they are."""


@dataclass
class Config:
    """What adapter_config.json says about ranks, scales and targets."""

    place: str
    options: Mapping[str, Any]
    seconds: float = SECONDS

    def targets(self, path: str) -> bool:
        """Whether the module at `path` of the network carries a pair."""
        wanted, excluded = self.options["target_modules"], self.options.get("exclude_modules")
        if excluded and self._names(excluded, path):
            return False
        if not self._names(wanted, path):
            return False
        layers = self.options.get("layers_to_transform")
        if layers is None or layers == [] or isinstance(wanted, str) or path in wanted:
            return True
        lists = self.options.get("layers_pattern")
        match = NUMBERED.fullmatch(path)
        if match is None:
            return False
        lists = [lists] if isinstance(lists, str) else lists
        if lists and match["list"].rpartition(".")[2] not in lists:
            return False
        return int(match["layer"]) in ([layers] if isinstance(layers, int) else layers)

    def rank(self, path: str) -> int:
        """Rank of the pair at `path`."""
        rank = self._patterned("rank_pattern", path, self.options.get("r", 8))
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise AdapterInputError(
                f"{self.place}: rank {rank!r} for {path} must be a whole number of at least 1"
            )
        return rank

    def scale(self, path: str) -> float:
        """What B A is multiplied by: alpha / rank, or alpha / sqrt(rank) with rsLoRA.

        Source of rsLoRA: Kalajdzievski, arXiv 2312.03732, equation 7.
        """
        alpha = self._patterned("alpha_pattern", path, self.options.get("lora_alpha", 8))
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise AdapterInputError(f"{self.place}: lora_alpha {alpha!r} must be a finite number")
        rank = self.rank(path)
        return float(alpha / (math.sqrt(rank) if self.options.get("use_rslora") else rank))

    def _names(self, wanted: str | list[str], path: str) -> bool:
        if isinstance(wanted, str):
            return self._matches(wanted, path)
        return any(path == name or path.endswith(f".{name}") for name in wanted)

    def _patterned(self, key: str, path: str, otherwise: Any) -> Any:
        patterns: dict[str, Any] = self.options.get(key) or {}
        for pattern, value in patterns.items():
            if self._matches(rf"(.*\.)?({pattern})", path):
                return value
        return otherwise

    def _matches(self, pattern: str, path: str) -> bool:
        started = perf_counter()
        try:
            return regex.fullmatch(pattern, path, timeout=max(self.seconds, 1e-6)) is not None
        except regex.error as error:
            raise AdapterInputError(
                f"{self.place}: {pattern!r} is no regular expression: {error}"
            ) from error
        except TimeoutError as error:
            raise AdapterInputError(
                f"{self.place}: {pattern!r} takes too long to match {path!r}; "
                "name the modules in a list"
            ) from error
        finally:
            self.seconds -= perf_counter() - started


def read(
    folder: Path, shape: Shape
) -> tuple[dict[Site, tuple[torch.Tensor, torch.Tensor]], dict[Site, float]]:
    """Factors (A, B) and scale of each module that the adapter in `folder` changes."""
    config = _config(folder)
    tensors = _tensors(folder)
    sites = {
        shape.path(layer, module): (layer, module)
        for layer in range(shape.layers)
        for module in shape.sizes
    }
    targets = {path for path in sites if config.targets(path)}
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        path, _, factor = key.removesuffix(".weight").rpartition(".lora_")
        path = path.removeprefix(PREFIX)
        if not key.endswith(".weight") or factor not in {"A", "B"} or path not in sites:
            raise _stray(folder, key, path, shape)
        if path not in targets:
            raise AdapterInputError(
                f"{folder / WEIGHTS} holds {key!r}, which target_modules of {CONFIG} leaves out"
            )
        factors.setdefault(path, {})[factor] = tensor
    for path in sorted(targets):
        if missing := {"A", "B"} - set(factors.get(path, ())):
            raise AdapterInputError(
                f"{folder / WEIGHTS} lacks lora_{min(missing)} of {path}, a target of {CONFIG}; "
                "save the adapter again"
            )
    pairs = {sites[path]: (two["A"], two["B"]) for path, two in factors.items()}
    for path, two in factors.items():
        if two["A"].shape[:1] != (config.rank(path),):
            raise AdapterInputError(
                f"{folder / WEIGHTS}: A of {path} has shape {list(two['A'].shape)} and "
                f"{CONFIG} says rank {config.rank(path)}"
            )
    return pairs, {sites[path]: config.scale(path) for path in factors}


def write(adapter: Adapter, folder: Path) -> None:
    """Save `adapter` so that PEFT loads it; the scale is in B, so alpha equals the rank."""
    shape = adapter.shape
    ranks = {shape.path(*site): pair.rank for site, pair in adapter.pairs.items()}
    names = sorted({module for _, module in adapter.pairs})
    everywhere = len(ranks) == len(names) * shape.layers
    usual = max(set(ranks.values()), key=list(ranks.values()).count)
    other = {regex.escape(path): rank for path, rank in ranks.items() if rank != usual}
    options = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": other,
        "alpha_pattern": other,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": names if everywhere else sorted(ranks),
    }
    tensors = {
        f"{PREFIX}{shape.path(*site)}.lora_{factor}.weight": tensor.detach().cpu().contiguous()
        for site, pair in adapter.pairs.items()
        for factor, tensor in zip("AB", pair, strict=True)
    }
    folder.mkdir(parents=True, exist_ok=True)
    scratch = {name: folder / f".{name}.{os.getpid()}" for name in (WEIGHTS, CONFIG)}
    save_file(tensors, scratch[WEIGHTS], metadata={"format": "pt"})
    scratch[CONFIG].write_text(json.dumps(options, indent=1) + "\n", encoding="utf-8")
    for name, path in scratch.items():
        path.replace(folder / name)


def _config(folder: Path) -> Config:
    path = folder / CONFIG
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterInputError(
            f"adapter folder {str(folder)!r} has no readable {CONFIG} ({error}); "
            "give a folder that PEFT saved"
        ) from error
    if not isinstance(options, dict) or options.get("peft_type") != "LORA":
        kind = options.get("peft_type") if isinstance(options, dict) else options
        raise AdapterInputError(f"{path}: peft_type {kind!r} is not implemented; only LORA is")
    for key, value in options.items():
        if key in READ:
            if value is not None and not isinstance(value, READ[key]):
                kinds = " or ".join(kind.__name__ for kind in READ[key])
                raise AdapterInputError(f"{path}: {key}={value!r} must be of type {kinds}")
        elif key not in WITHOUT_EFFECT and value not in (None, False, [], {}, ""):
            raise AdapterInputError(f"{path}: {key}={value!r} is not implemented; plain LoRA is")
    if options.get("bias") not in (None, "none"):
        raise AdapterInputError(f"{path}: bias={options['bias']!r} is not implemented; use 'none'")
    start = options.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise AdapterInputError(
            f"{path}: init_lora_weights={start!r} is not implemented, for it changes the base "
            "weights; convert the adapter to plain LoRA when saving it"
        )
    wanted = options.get("target_modules")
    if not wanted:
        raise AdapterInputError(
            f"{path}: target_modules={wanted!r}; give module names or a regular expression"
        )
    return Config(str(path), {key: value for key, value in options.items() if value is not None})


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = sorted(p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt")))
        reason = f" but {pickled[0]}, a pickle, and loading one can run code" if pickled else ""
        raise AdapterInputError(
            f"adapter folder {str(folder)!r} has no {WEIGHTS}{reason}; save it as safetensors"
        )
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterInputError(
            f"{path} cannot be read: {error}; save the adapter again"
        ) from error
    return tensors


def _stray(folder: Path, key: str, path: str, shape: Shape) -> AdapterInputError:
    """What is wrong with a tensor that belongs to no linear layer of the blocks."""
    where = f"{folder / WEIGHTS} holds {key!r}"
    match = NUMBERED.fullmatch(path)
    name = path.rpartition(".")[2]
    if match and name in shape.sizes and int(match["layer"]) >= shape.layers:
        return AdapterInputError(
            f"{where}, and this model has {shape.layers} layers; it belongs to another model"
        )
    return AdapterInputError(
        f"{where}, which is no LoRA factor of a linear layer in this model's blocks; "
        f"{nearest(name, shape.sizes)}"
    )
