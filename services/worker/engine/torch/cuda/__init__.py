"""The torch engine on a CUDA device: kernels of our own, request state that lives on the device, graphs.

    load.py      a model directory       weights.py   files → device           build.py    weights → runner
    choice.py    kernels, products and attention, by settings and by trial
    runner.py    launch, result          graphs.py    which shapes, when       forward.py  a step's launches
    inputs.py    a step as it is read    slots.py     state of requests        sizing.py   KV memory
    uploads.py   host → device           results.py   device → host            staging.py  pinned memory
    operators.py a layer's operators     products.py  matrices, 8 bits, fixed tiles
    kernels/     in Triton               reference.py, product_reference.py    the same functions in torch
    attention/   ours and others'        device.py    streams, events, graphs  ranges.py   names for Nsight

Nothing here imports what a bare GPU host lacks: torch, triton and numpy are enough. Only `kernels` imports
triton; the references say the same functions in plain torch, for any device.
"""
