"""The default engine: Llama-like models in plain torch, on CPU and CUDA.

load.py     settings to a ready runner     config.py   config.json, checked
runner.py   steps                          weights.py  safetensors, checked
model.py    forward pass                   linear.py   one matrix, laid out for its device
attention.py, kv.py, rope.py               its parts
sampler.py, gumbel.py, penalties.py, masks.py   from logits to ids
"""
