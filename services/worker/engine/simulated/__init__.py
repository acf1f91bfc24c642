"""An engine without a model: real session, scheduler and KV books; tokens are invented, steps only take time.

calibration.py  how long a step takes on a device, and how much KV it holds
answers.py      tokens as a function of prompt, seed and output index
clock.py        real time, or virtual time for simulations
faults.py       die, hang, slow down: on request
runner.py       the Runner                       load.py  from settings to a runner
"""
