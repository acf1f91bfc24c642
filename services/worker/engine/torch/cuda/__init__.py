"""The torch engine on a CUDA device: kernels of our own, request state that lives on the device, graphs.

Nothing here imports what a bare GPU host lacks: torch, triton and numpy are enough. Only `kernels` imports
triton; `reference` says the same functions in plain torch, for any device.
"""
