-- Limits the requests per minute of a key. Only admitted requests count, in a sliding window: in any window, at most the
-- limit is admitted. HAProxy's own rate counters can't do this: they count before the decision, or not atomically.
-- This file is loaded into one Lua state for all threads (lua-load), so that no two requests decide at the same time.
-- API: HAProxy 3.2's Lua documentation (core.register_action, core.now).

-- Requests within a window / MOST share one entry, so a key's memory depends on MOST and not on its limit
local MOST = 600
local keys = {}

-- Arguments: the variables txn.key and txn.rate (requests per window), and the window in seconds. Sets txn.wait if the
-- limit is reached: the seconds until the next request is admitted.
core.register_action("limit-rate", { "http-req" }, function(txn, seconds)
    local time, window = core.now(), tonumber(seconds)
    local now = time.sec + time.usec / 1e6
    local name = txn:get_var("txn.key")
    -- entries[oldest] to entries[newest]; `total` is the sum of their counts
    local key = keys[name]
    -- threads' clocks differ by microseconds; a clock that was set back must not block the key
    if not key or (key.newest >= key.oldest and key.entries[key.newest].last > now + 1) then
        key = { oldest = 1, newest = 0, total = 0, entries = {} }
        keys[name] = key
    end
    local entries = key.entries
    if key.newest >= key.oldest then now = math.max(now, entries[key.newest].last) end
    while key.newest >= key.oldest and entries[key.oldest].last + window <= now do
        key.total = key.total - entries[key.oldest].count
        entries[key.oldest] = nil
        key.oldest = key.oldest + 1
    end
    if key.total >= txn:get_var("txn.rate") then
        txn:set_var("txn.wait", math.max(1, math.ceil(entries[key.oldest].last + window - now)))
        return
    end
    key.total = key.total + 1
    local newest = entries[key.newest]
    if newest and now - newest.first < window / MOST then
        newest.last, newest.count = now, newest.count + 1
    else
        key.newest = key.newest + 1
        entries[key.newest] = { first = now, last = now, count = 1 }
    end
end, 1)
