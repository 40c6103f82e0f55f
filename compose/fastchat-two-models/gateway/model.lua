-- What HAProxy's own JSON reader does not find: names that are written with escapes (org\/name), and a `model` after
-- values that are nested deeply. It is asked only where that one found nothing, and used by the fallback's filter.
-- Functions as in HAProxy 3.2's Lua documentation: core.register_action, txn.f, txn:set_var.

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

-- The inside of a string without its escapes: "mod\u0065l" is "model" for every parser
local function plain(inside)
    return (inside:gsub("\\(.)(%x?%x?%x?%x?)", function(sign, code)
        if sign ~= "u" or #code < 4 then return (UNESCAPED[sign] or sign) .. code end
        return utf8.char(tonumber(code, 16))
    end))
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

-- for the other files, which are loaded after this one
stackgen = { places = places }

-- The last one counts, as it does for the engines' parsers
core.register_action("find-model", { "http-req" }, function(txn)
    local text = txn.f:req_body() or ""
    local found = places(text)
    if not found then return end
    local place = found[#found]
    txn:set_var("txn.model", plain(text:sub(place[1] + 1, place[2] - 1)))
end)
