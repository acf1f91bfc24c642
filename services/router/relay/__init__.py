"""From a worker's updates to a client's messages: plain synchronous code, no task, no await a token.

text        ids to text, stop strings, one stream at a time
outlet      what waits for the client, and when it is flushed
attempt     of a request at a worker: where it sits, how it goes, who is to blame for its end
flight      one request from submission to its one terminal event: the fence
report      the end as the caller reads it
trailers    timings for tools that see only trailers
"""
