-- Completes the entries of GET /v1/models with what the engines report: `created`, the context length, and whether the
-- client speaks OpenAI's or Anthropic's API. The gateway's maps have the names, but only an engine knows its context.
-- API: HAProxy 3.2's Lua documentation (core.register_action, core.httpclient, Map, txn.c).

-- the frontend that sends GET /v1/models to the backend in the path
local URL = "http://127.0.0.1:8409/"
-- an engine's answer changes only when it restarts
local SECONDS, MILLISECONDS = 10, 1000
-- for engines that report no time: when the gateway loaded its configuration
local loaded = os.time()
local owners = Map.new("/gateway/models.map", Map._str)
-- backend -> when its answer expires, and the fields of each model by id
local answers = {}

local function hex(text)
    return (text:gsub(".", function(char) return ("%02X"):format(char:byte()) end))
end

-- The fields of each model in an engine's answer, and `only` if it is one model
local function read(txn, body)
    local by_id, only, number = {}, nil, 0
    while true do
        local entry = "$.data[" .. number .. "]."
        local id = txn.c:json_query(body, entry .. "id")
        if not id or id == "" then break end
        local function integer(path)
            return math.tointeger(tonumber(txn.c:json_query(body, entry .. path, "int") or ""))
        end
        only = { created = integer("created"), max_model_len = integer("max_model_len"), n_ctx = integer("meta.n_ctx"),
                 n_ctx_train = integer("meta.n_ctx_train") }
        by_id[id], number = only, number + 1
    end
    return by_id, number == 1 and only or {}
end

local function ask(txn, backend)
    local now = core.now().sec
    local known = answers[backend]
    if known and known.expires > now then return known end
    known = { expires = now + SECONDS, by_id = {}, only = {} }
    local answer = core.httpclient():get({ url = URL .. backend, timeout = MILLISECONDS })
    if answer and answer.status == 200 and answer.body and #answer.body < 32768 then
        known.by_id, known.only = read(txn, answer.body)
    end
    answers[backend] = known
    return known
end

local function describe(txn, id, is_anthropic)
    local name = stackgen.plain(id:sub(2, -2))
    local backend = owners:lookup(hex(name))
    local known = backend and ask(txn, backend)
    local card = known and (known.by_id[name] or known.only) or {}
    local created = card.created or loaded
    local more = ""
    if card.max_model_len then more = (',"max_model_len":%d'):format(card.max_model_len) end
    if card.n_ctx or card.n_ctx_train then
        local meta = {}
        for _, field in ipairs({ "n_ctx", "n_ctx_train" }) do
            if card[field] then meta[#meta + 1] = ('"%s":%d'):format(field, card[field]) end
        end
        more = more .. ',"meta":{' .. table.concat(meta, ",") .. "}"
    end
    if is_anthropic then
        local at = os.date("!%Y-%m-%dT%H:%M:%SZ", created)
        return ('{"type":"model","id":%s,"display_name":%s,"created_at":"%s"%s}'):format(id, id, at, more)
    end
    return ('{"id":%s,"object":"model","created":%d,"owned_by":"stackgen"%s}'):format(id, created, more)
end

-- Argument: the variable with the entries of objects.map, separated by commas. Sets txn.entries to the
-- completed entries, and txn.body to the body of the response: one model, or a list if the variable is txn.list.
core.register_action("describe-models", { "http-req" }, function(txn, variable)
    local is_anthropic = txn:get_var("txn.anthropic")
    local ids, found = {}, {}
    -- quotes in a name are escaped, so a name can't contain this text
    for id in (txn:get_var(variable) or ""):gmatch('{"id":(".-"),"object":"model","created":0,"owned_by":"stackgen"}') do
        ids[#ids + 1] = id
        found[#found + 1] = describe(txn, id, is_anthropic)
    end
    local body = table.concat(found, ",")
    txn:set_var("txn.entries", body)
    if variable == "txn.list" and is_anthropic then
        local last = ('"first_id":%s,"last_id":%s'):format(ids[1] or "null", ids[#ids] or "null")
        body = '{"data":[' .. body .. '],"has_more":false,' .. last .. "}"
    elseif variable == "txn.list" then
        body = '{"object":"list","data":[' .. body .. "]}"
    end
    txn:set_var("txn.body", body)
end, 1)
