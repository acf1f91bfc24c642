"""What runs inside Valkey, where a call is one atomic step. Needs Valkey 7.2+ or Redis 7+, not a cluster.

    headrace_store   an entry and its place in the tenant's index, which is bounded
    headrace_forget  some of a tenant's entries, until none is left
    headrace_lease   a token bucket that is spent in leases
    headrace_hold    a level: what routers use at one time, and what is free of it

Names:  hr:c:<kind>:<key>      an entry             hr:q:<quota>:<tag>           a bucket
        hr:t:<tag>             a tenant's index     hr:l:<quota>:<tag>:<router>  a router's last lease
        hr:s:<name>            newest snapshot      hr:p:<name>:<random>         its pieces
        hr:h:<quota>:<tag>     what routers use of a level, and until when each is believed

The index holds a tenant's entries by their end. What falls out of a full index is deleted with it, so that
Forget finds everything. Should Valkey evict the index itself, the entries are unreadable without the tenant's
salt, and end by their TTL.

A lease is counted as spent when granted; what comes back of the last lease in time, at most what it granted,
is put back. So over any time t the units spent are at most burst + rate · t, whatever claimants do and lose.

Of a level a router is granted what it uses and an even part of what nobody uses; who is silent uses nothing.
Numbers that somebody else wrote are taken for what they can be at most: the functions never fail on them.
"""

from __future__ import annotations

STORE = "headrace_store"
FORGET = "headrace_forget"
LEASE = "headrace_lease"
HOLD = "headrace_hold"

LIBRARY = """#!lua name=headrace
local function store(keys, args)
  local ttl = tonumber(args[2])
  local now = tonumber(redis.call('TIME')[1])
  redis.call('SET', keys[1], args[1], 'EX', ttl)
  redis.call('ZREMRANGEBYSCORE', keys[2], '-inf', now)
  redis.call('ZADD', keys[2], now + ttl + 1, keys[1])
  local over = redis.call('ZCARD', keys[2]) - tonumber(args[3])
  if over > 0 then
    local ended = redis.call('ZPOPMIN', keys[2], over)
    for i = 1, #ended, 2 do redis.call('UNLINK', ended[i]) end
  end
  if redis.call('TTL', keys[2]) < ttl + 1 then redis.call('EXPIRE', keys[2], ttl + 1) end
  return 1
end

local function forget(keys, args)
  local popped = redis.call('ZPOPMIN', keys[1], tonumber(args[1]))
  local removed = {}
  for i = 1, #popped, 2 do
    if redis.call('UNLINK', popped[i]) == 1 then removed[#removed + 1] = popped[i] end
  end
  return {#popped / 2, removed}
end

local function bounded(text, default, low, high)
  local number = tonumber(text or default) or default
  if number ~= number then number = default end
  return math.max(low, math.min(high, number))
end

local function lease(keys, args)
  local per_ms, burst = tonumber(args[1]) / 60000, tonumber(args[2])
  local wanted, returned, valid_ms = tonumber(args[3]), tonumber(args[4]), tonumber(args[5])
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000
  local level = bounded(redis.call('HGET', keys[1], 'level'), burst, 0, burst)
  local at = bounded(redis.call('HGET', keys[1], 'at_ms'), now, 0, now)
  local outstanding = bounded(redis.call('GET', keys[2]), 0, 0, burst)
  level = level + math.max(0, now - at) * per_ms + math.min(returned, outstanding)
  level = math.min(burst, level)
  local granted = math.min(wanted, level)
  level = level - granted
  redis.call('HSET', keys[1], 'level', string.format('%.17g', level), 'at_ms', string.format('%.17g', now))
  redis.call('PEXPIRE', keys[1], math.ceil(math.min(burst / per_ms, 1e12)) + valid_ms)
  if granted > 0 then redis.call('SET', keys[2], string.format('%.17g', granted), 'PX', valid_ms)
  else redis.call('DEL', keys[2]) end
  local retry_ms = 0
  if granted < wanted then
    local missing = math.min(wanted - granted, burst) - level
    retry_ms = math.max(1, math.ceil(math.min(missing / per_ms, 1e12)))
  end
  return {string.format('%.17g', granted), retry_ms}
end

local function hold(keys, args)
  local limit, wanted, used = tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
  local valid_ms = tonumber(args[5])
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local held, routers, others = redis.call('HGETALL', keys[1]), 1, 0
  for i = 1, #held, 2 do
    local units, ends = string.match(held[i + 1], '^(%S+) (%S+)$')
    if bounded(ends, 0, 0, now + valid_ms) <= now then redis.call('HDEL', keys[1], held[i])
    elseif held[i] ~= args[1] then
      routers, others = routers + 1, others + bounded(units, 0, 0, limit)
    end
  end
  if wanted > 0 or used > 0 then
    redis.call('HSET', keys[1], args[1], string.format('%.17g %.17g', used, now + valid_ms))
    redis.call('PEXPIRE', keys[1], valid_ms)
  else redis.call('HDEL', keys[1], args[1]) end
  local free = math.max(0, limit - others - used)
  local granted = math.min(wanted, limit - others, used + math.ceil(free / routers))
  granted = math.max(0, granted)
  return {string.format('%.17g', granted), granted < wanted and valid_ms or 0}
end

redis.register_function('headrace_store', store)
redis.register_function('headrace_forget', forget)
redis.register_function('headrace_lease', lease)
redis.register_function('headrace_hold', hold)
"""


def entry_name(kind: int, key: bytes) -> bytes:
    """Where an entry lies."""
    return b"hr:c:%d:%b" % (kind, key)


def index_name(tag: bytes) -> bytes:
    """Where a tenant's index lies."""
    return b"hr:t:" + tag
