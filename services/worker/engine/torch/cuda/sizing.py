"""How much KV memory a card has room for: what is left beside the largest step, measured, and the graphs."""

from __future__ import annotations

from services.worker.engine.torch.cuda.device import DeviceMemory

_MARGIN_SHARE = 0.02  # of the card, for what other processes and libraries take later
_MARGIN_LEAST = 256 << 20
_SMALL_CARD = 0.25  # of what is free is the margin at most
_GRAPH_BYTES = 4 << 20  # of the nodes of one graph


def kv_budget(memory: DeviceMemory, step_peak: int, graph_peak: int, graphs: int) -> int:
    """Bytes for KV blocks.

    step_peak: most bytes that the largest eager step takes at once; graph_peak: the same of the largest
    captured one, whose memory is the graphs' own. What this process has reserved without use counts as free.
    """
    free = memory.free + memory.reserved - memory.used
    margin = min(max(int(memory.total * _MARGIN_SHARE), _MARGIN_LEAST), int(free * _SMALL_CARD))
    return free - margin - step_peak - graph_peak - graphs * _GRAPH_BYTES
