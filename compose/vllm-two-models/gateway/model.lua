-- Finds model names that HAProxy's json_query misses: names with escapes (org\/name), and a `model` after deeply nested
-- values. HAProxy uses this code only if json_query finds nothing, and in the fallback filter.
-- API: HAProxy 3.2's Lua documentation (core.register_action, txn.f, txn:set_var).

local MOST = 8
local UNESCAPED = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

-- Position of the closing quote of the string that opens at `from`
local function string_end(text, from)
    local at = from + 1
    while true do
        at = text:find('["\\]', at)
        if not at then return nil end
        if text:byte(at) == 34 then return at end
        at = at + 2
    end
end

-- Resolves the escapes of a string: every parser reads "mod\u0065l" as "model"
local function plain(inside)
    return (inside:gsub("\\(.)(%x?%x?%x?%x?)", function(sign, code)
        if sign ~= "u" or #code < 4 then return (UNESCAPED[sign] or sign) .. code end
        return utf8.char(tonumber(code, 16))
    end))
end

-- Positions of all values of "model" in the outermost object of `text`, because parsers disagree on which value counts.
-- nil if `text` is not an object, if a value is not a string, or if there are more than MOST values.
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

-- fallback.lua, which is loaded after this file, uses this table
stackgen = { places = places }

-- Uses the last `model`, as the engines' parsers do
core.register_action("find-model", { "http-req" }, function(txn)
    local text = txn.f:req_body() or ""
    local found = places(text)
    if not found then return end
    local place = found[#found]
    txn:set_var("txn.model", plain(text:sub(place[1] + 1, place[2] - 1)))
end)
