"""Operators compiled for this CPU at start by numba: what torch does in many small calls, done in one each.

team.py          runs a kernel on the threads that torch's own products use
jit.py           what the kernels need of the machine: memory by address, bfloat16, exp, a shared counter
keeping.py       where compiled kernels are kept between starts
vectors.py       pieces of LLVM IR that tiles are written in
tile.py          a few rows times a panel in bf16 or fp32, in registers
product.py       bf16 products: panels, and tiles over them
int8_tile.py     a few rows times a panel in 8 bits, by groups of inputs
int8_rows.py     a product's input in 8 bits, by parts of groups
int8_product.py  int8 products: panels, and tiles over them
attention.py     queries read paged KV where it lies, nothing is gathered, padded or masked
placing.py       rotary positions, norms of heads, and keys and values to their places
rowwise.py       norms with the residual, the gate of the feed-forward, an input in 8 bits by tokens
operators.py     the kernels as the model's operators

A kernel is `void kernel(int64 *args)`: args[0] counts units handed out, args[1] says how many there are, the
rest is its own. Each thread takes the next unit until none is left, so a stolen core delays one unit only.
Each unit's arithmetic has one order: results depend neither on threads nor on the rest of the step.
"""
