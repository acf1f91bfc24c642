"""`headrace up`: the whole mesh on one machine, as supervised child processes.

command ── resolves the model, prints what runs where, asks the first prompt, waits for Ctrl-C
   │
supervisor ── starts all at once, restarts what dies, drains in order: router, workers, the rest
   │
child ── one process: its log, its readiness, its end          mesh ── what to start, and with which settings
"""
