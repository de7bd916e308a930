"""Checkpoints from a model hub: safetensors and their configuration, nothing executable."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from inference.errors import ModelUnavailable

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
UNWANTED = ["*/*.safetensors", "consolidated*", "onnx/*", "openvino/*", "original/*"]


def fetch_repository(repository: str, out: Path) -> None:
    """Download the safetensors, configuration and tokenizer of a hub repository into `out`."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    silence = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if silence:
        disable_progress_bars()
    try:
        snapshot_download(
            repository, local_dir=out, allow_patterns=WANTED, ignore_patterns=UNWANTED
        )
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelUnavailable(
            f"model {repository!r} could not be fetched from the hub: {reason}; check the name, "
            "the network and your access rights, or give --model the path of a checkpoint folder"
        ) from error
    finally:
        if silence:
            enable_progress_bars()
