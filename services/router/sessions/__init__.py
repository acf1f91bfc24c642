"""Workers' sessions: who a worker is, what it holds, what it may be given, what it says.

handshake   strangers out, members in, digests compared
account     load and credit, exact without asking
ledger      what was submitted and is not acknowledged
seats       who sits in which slot
outbox      the commands of one event-loop turn in one frame
submit      an order as the wire's Submit, long prompts in pieces
session     one worker: what it is given, its beginning and its end
hearing     what it says
servicer    SessionService: one call, one session
workers     all sessions of this router process
"""
