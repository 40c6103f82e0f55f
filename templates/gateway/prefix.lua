-- Sends the requests of one conversation to the same replica, which has the conversation in its prefix cache. Such
-- requests have the same session id, or else the same beginning.
-- If this file misreads an unusual body, the request still works, because every replica is a valid choice.
-- API: HAProxy 3.2's Lua documentation (core.register_action, core.backends, Server.get_cur_sess, txn.f, txn.c).

-- a replica is busy if it has more requests than this share of the average
local SHARE = 1.25

-- headers in which Claude Code, Codex, OpenCode and other clients send the id of a session
local HEADERS = { "x-session-id", "x-session-affinity", "x-claude-code-session-id", "session-id", "session_id" }

-- Position of the first quote or bracket of the value of the field `name`, if the value is a string or an array
local function find_value(text, name)
    local field, at = '"' .. name .. '"', 1
    while true do
        local _, last = text:find(field, at, true)
        if not last then return end
        local value = text:match('^%s*:%s*()["%[]', last + 1)
        if value then return value end
        at = last + 1
    end
end

-- Position of the first `"role": "user"` after `from`
local function find_user(text, from)
    local at = from
    while true do
        local first, last = text:find('"user"', at, true)
        if not first or text:sub(math.max(1, first - 16), first - 1):find('"role"%s*:%s*$') then return first end
        at = last + 1
    end
end

-- Position of the last byte of the string, array or object that opens at `from`
local function value_end(text, from)
    local at, depth = from, 0
    while at do
        local sign = text:byte(at)
        if sign == 34 then
            at = stackgen.string_end(text, at)
            if not at then return end
        elseif sign == 123 or sign == 91 then
            depth = depth + 1
        else
            depth = depth - 1
        end
        if depth <= 0 then return at end
        at = text:find('["{}%[%]]', at + 1)
    end
end

-- The messages up to `most` bytes of the first one from the user. Later messages differ in each request of a conversation
local function opening(text, array, most)
    local user = find_user(text, array)
    local first = user and text:find("[^%s%[]", array)
    while first and text:byte(first) == 123 do
        local last = value_end(text, first)
        if not last then break end
        if last > user then return text:sub(array, math.min(last, first + most - 1)) end
        first = text:find("[^%s,]", last + 1)
    end
    return text:sub(array, math.min(value_end(text, array) or #text, array + most - 1))
end

local function beginning(text, most)
    for _, name in ipairs({ "messages", "input", "prompt" }) do
        local value = find_value(text, name)
        if value and text:byte(value) == 91 and name ~= "prompt" then return opening(text, value, most) end
        if value then return text:sub(value, math.min(value_end(text, value) or #text, value + most - 1)) end
    end
end

local function session(txn, text)
    for _, name in ipairs(HEADERS) do
        local id = txn.f:req_fhdr(name)
        if id and id ~= "" then return id end
    end
    local key = find_value(text, "prompt_cache_key")
    if key and text:byte(key) == 34 then return text:sub(key, stackgen.string_end(text, key) or key) end
end

-- Argument: how many bytes of the prompt, or of the first message from the user, count. Sets txn.prefix, a hash.
core.register_action("find-prefix", { "http-req" }, function(txn, most)
    local text = txn.f:req_body() or ""
    local found = session(txn, text) or beginning(text, tonumber(most))
    if found then txn:set_var("txn.prefix", tostring(txn.c:xxh64(found))) end
end, 1)

-- Arguments: the name of the backend, the requests that a replica processes at the same time, and those up to which it is
-- never busy. Sets txn.server: of the replicas that are up and not busy, the one with the highest hash of prefix and name.
-- So each prefix has its own order of replicas, and a replica that is added or removed moves only its own prefixes.
-- If all are full, it sets nothing, and the request waits for the first free replica.
core.register_action("choose-replica", { "http-req" }, function(txn, backend, most, calm)
    local prefix, loads, total, number = txn:get_var("txn.prefix"), {}, 0, 0
    for name, server in pairs(core.backends[backend].servers) do
        if txn.f:srv_is_up(backend .. "/" .. name) and not server:is_draining() then
            loads[name] = server:get_cur_sess() + server:get_pend_conn()
            total, number = total + loads[name], number + 1
        end
    end
    local busy = math.min(tonumber(most), math.max(tonumber(calm), math.ceil(SHARE * (total + 1) / number)))
    local best
    for name, load in pairs(loads) do
        local score = load < busy and txn.c:xxh64(prefix .. name)
        if score and (not best or score > best) then
            best = score
            txn:set_var("txn.server", name)
        end
    end
end, 3)
