"""LoRA training: peft's modules over a base model, and the adapter that comes out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from warnings import filterwarnings

import torch
from torch.nn.functional import cross_entropy

from inference.adapters.folder import WEIGHTS
from inference.adapters.lora import Adapter, Site, lasting
from inference.adapters.shape import Shape
from inference.errors import AdapterInputError, Unsupported
from inference.models.manifest import sha256
from inference.suggest import nearest
from inference.training.base import Base, twin
from inference.training.card import Card
from inference.training.examples import IGNORED, Example, batched, digest
from inference.training.loop import Plan, plan_of, train

LENGTHS = 64
"""Examples are padded to a multiple of so many tokens."""

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """Size and place of an adapter: `rank`, scale `alpha` / rank, modules, dropout on its input."""

    rank: int = 8
    alpha: float = 16
    targets: tuple[str, ...] = LINEAR
    dropout: float = 0.0


def with_lora(network: Any, options: LoraOptions, seed: int = 0) -> Any:
    """A peft model over the weights of `network`; its adapter, float32 or wider, does nothing yet.

    A is drawn from `seed`, B is zero. `network` itself stays as it is.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise Unsupported(
            "training adapters needs peft; install it with pip install 'ragwright[train]'"
        ) from error
    shape = Shape.of(network)
    for target in options.targets:
        if target not in shape.sizes:
            raise AdapterInputError(
                f"no linear layer {target!r} in the blocks of this model; "
                f"{nearest(target, shape.sizes)}"
            )
    if options.rank < 1 or not options.targets:
        raise AdapterInputError(
            f"rank={options.rank} and {len(options.targets)} targets: give at least 1 of each"
        )
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(options.targets),
        task_type="CAUSAL_LM",
    )
    # peft asks transformers by an old name, which concerns nobody here.
    filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    with lasting(grad=True), torch.random.fork_rng(devices=_cuda(shape.device)):
        torch.manual_seed(seed)
        return get_peft_model(twin(network), config)


def adapter_of(model: Any, name: str, shape: Shape, options: LoraOptions) -> Adapter:
    """What the peft `model` has learned so far, copied, in the type of `shape`."""
    pairs = {at: (a.detach(), b.detach()) for at, (a, b) in _factors(model, shape, options).items()}
    return Adapter.from_tensors(name, pairs, options.alpha / options.rank, shape)


def _factors(
    model: Any, shape: Shape, options: LoraOptions
) -> dict[Site, tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    """The peft `model`'s own A and B by layer and module."""
    weights = dict(model.named_parameters())
    return {
        (layer, module): (
            weights[f"{path}.lora_A.default.weight"],
            weights[f"{path}.lora_B.default.weight"],
        )
        for layer in range(shape.layers)
        for module in options.targets
        for path in [f"base_model.model.{shape.path(layer, module)}"]
    }


def causal_loss(model: Any) -> Callable[[Sequence[Example]], tuple[torch.Tensor, int]]:
    """Summed next-token loss of a causal model over the labelled tokens, in nats.

    Raises InferenceInputError for an example that is longer than the context of the model or
    holds ids that are not its own.
    """
    config = model.config.get_text_config()

    def loss(examples: Sequence[Example]) -> tuple[torch.Tensor, int]:
        context = config.max_position_embeddings
        for one in examples:
            one.check(config.vocab_size, context)
        # oneDNN prepares, and keeps, a product for every shape it meets, so let these be few.
        room = context - max(len(one.ids) for one in examples)
        batch = batched(examples, model.device, LENGTHS if room >= LENGTHS else 1)
        labels = batch.labels[:, 1:]
        # Of a dialogue mostly a third is learned, and the vocabulary is a fifth of the work.
        kept = (labels != IGNORED).any(0).nonzero().flatten()
        with mixed(model):  # without a mask: padding stands behind whatever could attend to it
            logits = model(input_ids=batch.ids, use_cache=False, logits_to_keep=kept).logits
        labels = labels[:, kept].flatten()
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = cross_entropy(wide.flatten(0, 1), labels, ignore_index=IGNORED, reduction="sum")
        return total, int((labels != IGNORED).sum())

    return loss


@contextmanager
def mixed(model: Any) -> Iterator[None]:
    """Products of adapters in the type of a half-precision base, though their weights are wider.

    peft would take every input to float32 and every output back, which is half of the time.
    """
    from peft.helpers import disable_input_dtype_casting

    if model.dtype not in (torch.bfloat16, torch.float16):
        yield
        return
    with torch.autocast(model.device.type, model.dtype), disable_input_dtype_casting(model):
        yield


def train_lora(
    base: Base,
    examples: Sequence[Example],
    plan: Plan,
    out: Path,
    *,
    recipe: str,
    options: LoraOptions | None = None,
    facts: Mapping[str, Any] | None = None,
    stored: torch.dtype | None = None,
    start: Path | None = None,
) -> Card:
    """Train an adapter and leave it in `out` as a PEFT folder with a card.

    It begins with what the adapter in `start` does, where given, whose rank and targets must be
    these. It is stored as it was trained, in float32 or wider, or as `stored`. `facts` go into
    the card's options, as does the digest of what it began with. Killed and called again with the
    same arguments, it goes on at its last checkpoint, which lies in `out` until the adapter does.
    """
    options = options or LoraOptions()
    model = with_lora(base.network, options, plan.seed)
    model.train()
    shape = Shape.of(base.network)
    wide = replace(shape, dtype=torch.promote_types(shape.dtype, torch.float32))
    facts = dict(facts or {})
    if start is not None:
        _begin_with(model, start, wide, options)
        facts["start"] = sha256(start / WEIGHTS)
    data = digest(examples)
    # A checkpoint that began elsewhere is none of this run's.
    origin = data if start is None else f"{data} {facts['start']}"
    scratch = out / ".checkpoints"
    progress = train(model, examples, causal_loss(model), plan, data=origin, folder=scratch)
    kept = replace(wide, dtype=stored or wide.dtype)
    adapter_of(model, out.name, kept, options).save_peft(out)
    card = Card(
        recipe=recipe,
        base=base.name,
        base_files=base.files,
        dtype=str(shape.dtype).removeprefix("torch."),
        options={**asdict(options), "targets": list(options.targets), **facts},
        plan=plan_of(plan),
        examples=len(examples),
        data=data,
        losses=[round(one, 4) for one in progress.losses],
        tokens=progress.terms,
        files={WEIGHTS: sha256(out / WEIGHTS)},
    )
    card.write(out)
    shutil.rmtree(scratch)
    return card


def _begin_with(model: Any, folder: Path, shape: Shape, options: LoraOptions) -> None:
    """Let the peft `model` do what the adapter in a PEFT folder does."""
    given = Adapter.from_peft(folder, shape)
    own = _factors(model, shape, options)
    if {at: pair.rank for at, pair in given.pairs.items()} != dict.fromkeys(own, options.rank):
        raise AdapterInputError(
            f"the adapter in {str(folder)!r} is not of rank {options.rank} on {options.targets} in "
            "every layer; train with the rank and the targets it has"
        )
    with torch.no_grad():
        for at, (a, b) in own.items():
            a.copy_(given.pairs[at].a)
            b.copy_(given.pairs[at].b * (options.rank / options.alpha))


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
