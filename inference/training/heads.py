"""Extra heads over the final hidden states of a frozen model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from inference.errors import InferenceInputError
from inference.training.examples import Batch

WEIGHTS = "head.safetensors"


def final_hidden(network: Any, batch: Batch) -> torch.Tensor:
    """Hidden states [examples, longest, width] that the language model head would read.

    No gradients flow back: the network is frozen, and a head learns on top of it.
    """
    with torch.no_grad():
        output = network.get_decoder()(
            input_ids=batch.ids, attention_mask=batch.mask, use_cache=False
        )
    # A normal tensor, which a backward pass may keep.
    hidden: torch.Tensor = output.last_hidden_state.clone()
    return hidden


def save_head(head: Any, folder: Path) -> None:
    """Write the weights of a head to head.safetensors in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().cpu().contiguous() for n, t in head.state_dict().items()}, _of(folder))


def load_head(head: Any, folder: Path) -> None:
    """Fill `head` with what `save_head` wrote; InferenceInputError if it is of another size."""
    try:
        head.load_state_dict(load_file(_of(folder)))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InferenceInputError(
            f"head {str(_of(folder))!r} cannot be loaded: {reason}; train it again for this model"
        ) from error


def _of(folder: Path) -> Path:
    return folder / WEIGHTS
