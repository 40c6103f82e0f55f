-- A request that goes to a model's fallback: the model's name in its JSON body becomes the one that the variable
-- txn.fallback_model holds (as JSON), and of its headers only those go along that the provider needs: no cookie, no
-- client's address. HAProxy can't change a body by itself.
-- Functions as in HAProxy 3.2's Lua documentation: core.register_action, core.register_filter, HTTPMessage.

local KEPT = {
    ["accept"] = true, ["accept-encoding"] = true, ["authorization"] = true, ["content-length"] = true,
    ["content-type"] = true, ["host"] = true, ["transfer-encoding"] = true, ["user-agent"] = true,
}
local MOST = 8
local UNESCAPED = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

-- The place of the closing quote of the string that opens at `from`
local function string_end(text, from)
    local at = from + 1
    while true do
        at = text:find('["\\]', at)
        if not at then return nil end
        if text:byte(at) == 34 then return at end
        at = at + 2
    end
end

-- A key without its escapes: "mod\u0065l" is "model" for every parser
local function plain(key)
    key = key:gsub("\\u(%x%x%x%x)", function(code)
        code = tonumber(code, 16)
        return code < 128 and string.char(code) or nil
    end)
    return (key:gsub('\\(["\\/bfnrt])', function(sign) return UNESCAPED[sign] or sign end))
end

-- Where the values of the key "model" stand in the object `text`: all of them, as parsers differ in which one counts.
-- Only those of the outermost object; nil for what is no object, where a value is no string, and for more than MOST.
local function places(text)
    local found, depth, key = {}, 0, nil
    local at = text:find("%S")
    if not at or text:byte(at) ~= 123 then return nil end
    while at do
        local sign = text:byte(at)
        if sign == 34 then
            local last = string_end(text, at)
            if not last then return nil end
            if depth == 1 then
                if key then
                    if key == "model" then found[#found + 1] = { at, last } end
                    key = nil
                else
                    key = plain(text:sub(at + 1, last - 1))
                    local colon = text:match("^%s*():", last + 1)
                    if not colon then return nil end
                    last = colon
                    if key == "model" and not text:find('^%s*"', last + 1) then return nil end
                end
            end
            at = last
        elseif sign == 123 or sign == 91 then
            depth = depth + 1
        elseif sign == 44 then
            if depth == 1 then key = nil end
        else
            depth = depth - 1
            if depth == 0 then break end
        end
        at = text:find(depth == 1 and '["{}%[%],]' or '["{}%[%]]', at + 1)
    end
    if depth ~= 0 or #found == 0 or #found > MOST or text:find("%S", at + 1) then return nil end
    return found
end

-- Leaves the places in a variable, or none there: then nothing may be sent on
core.register_action("fallback-model", { "http-req" }, function(txn)
    local found = places(txn.f:req_body() or "")
    if not found then return end
    local words = {}
    for number, place in ipairs(found) do words[number] = place[1] .. "-" .. place[2] end
    txn:set_var("txn.places", table.concat(words, ","))
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
    self.places, self.added = {}, 0
    for first, last in (txn:get_var("txn.places") or ""):gmatch("(%d+)-(%d+)") do
        self.places[#self.places + 1] = { tonumber(first), tonumber(last) }
        self.added = self.added + #self.model - (last - first + 1)
    end
    local length = headers["content-length"]
    if length then message:set_header("content-length", tostring(math.tointeger(length[0]) + self.added)) end
end

-- The whole body is there: the gateway has waited for it to find the model. From the last place to the first, so that
-- no replacement moves another.
function Fallback:http_payload(_, message)
    if message.channel:is_resp() or not self.places then return end
    for number = #self.places, 1, -1 do
        local first, last = self.places[number][1], self.places[number][2]
        message:remove(first - 1, last - first + 1)
        message:insert(self.model, first - 1)
    end
    self.places = nil
end

core.register_filter("fallback", Fallback, function(class) return class end)
