"""What an operator can tell the tokenizer service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from services.common.settings import ListenAddress, ServiceSettings


def _half_of_the_cores() -> int:
    """Two at least: long texts leave one to the short ones."""
    return max(2, len(os.sched_getaffinity(0)) // 2)


class TokenizerSettings(ServiceSettings):
    """The tokenizer's settings."""

    service: ClassVar[str] = "tokenizer"

    listen: ListenAddress = Field(default="127.0.0.1:50062", description="host:port for the mesh")
    model: str = Field(
        default="default", description="'default', a Hugging Face directory, a *.gguf file or a hub id"
    )
    cache_dir: Path | None = Field(
        default=None, description="where converted models are kept; unset: the user's cache directory"
    )
    processes: int = Field(
        default_factory=_half_of_the_cores,
        ge=1,
        le=256,
        description="processes that render and encode; long texts take at most half",
    )
    item_timeout_s: float = Field(
        default=2.0,
        gt=0,
        description="longest time for one text or conversation in a process, in seconds",
    )
    queued_items: int = Field(
        default=4096, ge=1, description="texts that may wait for a process; one tenant's: half"
    )
    encoding_cache_bytes: int = Field(
        default=32 << 20, ge=0, description="memory for encodings that may be asked for again, in bytes"
    )
