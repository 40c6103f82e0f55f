-- Rewrites a request that goes to a model's fallback. It replaces the model name in the JSON body by the value of the
-- variable txn.fallback_model (JSON), and keeps only headers that the provider needs: no cookies, no client address.
-- This is a Lua filter because HAProxy's configuration language can't change a body. model.lua finds the name.
-- API: HAProxy 3.2's Lua documentation (core.register_action, core.register_filter, HTTPMessage).

local KEPT = {
    ["accept"] = true, ["accept-encoding"] = true, ["authorization"] = true, ["content-length"] = true,
    ["content-type"] = true, ["host"] = true, ["transfer-encoding"] = true, ["user-agent"] = true,
}

-- Stores the positions of the model name in the variable txn.places. Without that variable, the request must not be
-- forwarded.
core.register_action("fallback-model", { "http-req" }, function(txn)
    local number, first, last = stackgen.find(txn.f:req_body() or "")
    if number == 1 and first then txn:set_var("txn.places", first .. "-" .. last) end
end)

local Fallback = {}
Fallback.id = "stackgen fallback"
Fallback.flags = filter.FLT_CFG_FL_HTX
Fallback.__index = Fallback

function Fallback:new() return setmetatable({}, Fallback) end

function Fallback:start_analyze(_, channel)
    filter.register_data_filter(self, channel)
end

function Fallback:http_headers(txn, message)
    if message.channel:is_resp() then return end
    self.model = txn:get_var("txn.fallback_model")
    local headers = message:get_headers()
    for name in pairs(headers) do
        if not KEPT[name] then message:del_header(name) end
    end
    self.places, self.added, self.passed, self.done, self.now = {}, 0, 0, 0, {}
    for first, last in (txn:get_var("txn.places") or ""):gmatch("(%d+)-(%d+)") do
        self.places[#self.places + 1] = { tonumber(first), tonumber(last) }
        self.added = self.added + #self.model - (last - first + 1)
    end
    local length = headers["content-length"]
    if length then message:set_header("content-length", tostring(math.tointeger(length[0]) + self.added)) end
end

-- Small bodies arrive whole, because the gateway waited for them to find the model. Large bodies arrive in pieces. In each
-- piece, names are replaced from last to first, so that no replacement moves another name. If a piece ends within a name,
-- that name waits for the next piece.
function Fallback:http_payload(_, message)
    if message.channel:is_resp() or not self.places then return end
    local from, length = self.passed, message:input()
    local whole = length
    while #self.places > self.done do
        local place = self.places[self.done + 1]
        if place[2] > from + length then
            if place[1] <= from + length then whole = place[1] - 1 - from end
            break
        end
        self.done = self.done + 1
        self.now[#self.now + 1] = place
    end
    local grown = 0
    for number = #self.now, 1, -1 do
        local first, last = self.now[number][1] - from, self.now[number][2] - from
        message:remove(first - 1, last - first + 1)
        message:insert(self.model, first - 1)
        grown = grown + #self.model - (last - first + 1)
    end
    self.now, self.passed = {}, from + whole
    -- without a return value, HAProxy would forward as many bytes as came in, and call this function with the other bytes
    return whole + grown
end

core.register_filter("fallback", Fallback, function(class) return class end)
