"""The text core of the tokenizer service: encoding, chat templates, and the processes they run in.

No gRPC here: the processes of the pool import this package and nothing else of the service.
"""
