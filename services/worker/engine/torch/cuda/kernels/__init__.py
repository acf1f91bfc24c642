"""The functions of `reference` as Triton kernels: what they promise is said there.

All of a batch is read from device memory, grids depend on shapes only, outputs and workspaces are passed in:
each launch can be captured in a graph. Tensors are contiguous.

    rowwise.py   norms, rotation, gate      paged.py     attention            products.py  8 bits, fixed tiles
    sampling.py  from logits to ids         ranking.py   log-probabilities
"""

from services.worker.engine.torch.cuda.kernels.paged import attend, attention_workspace
from services.worker.engine.torch.cuda.kernels.ranking import logprobs, logprobs_workspace
from services.worker.engine.torch.cuda.kernels.rowwise import add_norm, gate, place
from services.worker.engine.torch.cuda.kernels.sampling import sample, sampling_workspace

__all__ = [
    "add_norm",
    "attend",
    "attention_workspace",
    "gate",
    "logprobs",
    "logprobs_workspace",
    "place",
    "sample",
    "sampling_workspace",
]
