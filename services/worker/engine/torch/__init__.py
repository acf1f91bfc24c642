"""The default engine: Llama-like models in torch, on CPU and CUDA.

load.py     settings to a ready runner     config.py   config.json, checked
runner.py   steps                          weights.py  safetensors, checked
model.py    forward pass                   linear.py   one matrix, laid out for its device
operators.py  what a forward pass needs besides products; plain.py in torch, compiled/ in kernels for this CPU
cuda/        the runner, operators and kernels for a CUDA device: runner.py there says how a step runs
parts.py    which of these a model is built with
attention.py, kv.py, rope.py               their parts
sampler.py, gumbel.py, penalties.py, masks.py   from logits to ids
"""
