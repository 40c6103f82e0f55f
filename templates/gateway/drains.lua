-- Metrics of drained replicas. HAProxy's own state decides whether a replica is drained, so a drain that is over never
-- appears. The lease contains the start of the drain, and survives a reload (stackgen/runtimes/compose/drains.py).
-- API: HAProxy 3.2's Lua documentation (core.register_converters, Server.is_draining, core.now).

local LEASES = "/tmp/drained/"
-- when this worker first reported a drain that has no lease
local first_seen = {}

-- Whether the replica `name` is drained in one of its backends
local function is_drained(name)
    for _, backend in pairs(core.backends) do
        local server = backend.servers[name]
        if server and server:is_draining() then return true end
    end
    return false
end

-- When the lease expires, and when the drain began (seconds since 1970); nothing without a lease
local function read_lease(name)
    local file = io.open(LEASES .. name)
    if not file then return end
    local expires, since = file:read("n", "n")
    file:close()
    return expires, since
end

-- Seconds since 1970, 0 if the replica `name` is not drained. Without a lease (drained by hand): since the first scrape
core.register_converters("drained-since", function(name)
    if not is_drained(name) then
        first_seen[name] = nil
        return "0"
    end
    local _, since = read_lease(name)
    first_seen[name] = first_seen[name] or core.now().sec
    return tostring(math.floor(since or first_seen[name]))
end)

-- Seconds since 1970, 0 if the replica `name` is not drained, or if no command of stackgen holds its drain
core.register_converters("drained-until", function(name)
    local expires = is_drained(name) and read_lease(name)
    return tostring(math.floor(expires or 0))
end)
