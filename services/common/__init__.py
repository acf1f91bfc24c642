"""What every service shares, and nothing else.

errors      the exception tree and the one table from exception to gRPC status
settings    environment, TOML and flags into frozen, typed settings
transport   gRPC servers and channels with the mesh's channel arguments
rpc         registers servicers: member check, malformed messages, error mapping, counting
replies     a stream's messages, handed to gRPC in the turn in which they come to be
members     the mesh secret: who may speak on internal ports
identity    API keys and tenants: who may speak on the public port
scope       keys of everything cached: which tenant may reuse what
lifecycle   start → serve → drain → stop, and the tasks of a service
logs        structured logs without prompts or answers
metrics     the /metrics endpoint
models      model directories: resolve, download, convert
text        incremental decoding and stop strings
"""
