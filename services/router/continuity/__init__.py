"""How a stream survives what dies under it.

    its worker dies, hangs, breaks off, leaves, is slow          its router dies
         │                                                            │
    failover     who keeps a seat, who goes elsewhere            worker keeps all that it made (claims.sealed)
         │                                                            │
    migrations   so much recomputation at a time                 resumption   its client calls on any router
         │                                                            │
    scheduler    a place, as the next attempt                    adoption     asks all workers: who has it?
         └─────────────────────────▶ relay.flight ◀───────────────────┘
                 the fence: every token once, in order, from the next index on

claims       the key under which a stream is found, and the sealed state that its worker carries for it
"""
