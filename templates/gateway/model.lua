-- Finds the model name in bodies that HAProxy's json_query can't read reliably: bodies with several `model` fields (also in
-- nested objects), names with escapes (org\/name), and a `model` after deeply nested values. See model.cfg.j2.
-- API: HAProxy 3.2's Lua documentation (core.register_action, txn.f, txn:set_var).

local UNESCAPED = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }
-- copies of bodies with more bytes are released at once, because the garbage collector alone lets copies accumulate
local LARGE = 2 ^ 20

-- Position of the closing quote of the string that opens at `from`
local function string_end(text, from)
    local at = from
    while true do
        at = text:find('"', at + 1, true)
        if not at then return nil end
        local before = at - 1
        while text:byte(before) == 92 do before = before - 1 end
        -- an even number of backslashes escape each other, and not the quote
        if (at - before) % 2 == 1 then return at end
    end
end

-- Resolves the escapes of a string: every parser reads "mod\u0065l" as "model"
local function plain(inside)
    if not inside:find("\\", 1, true) then return inside end
    return (inside:gsub("\\(.)(%x?%x?%x?%x?)", function(sign, code)
        if sign ~= "u" or #code < 4 then return (UNESCAPED[sign] or sign) .. code end
        return utf8.char(tonumber(code, 16))
    end))
end

-- Number of `model` fields in the outermost object of `text`, and the positions of the quotes around the last one's value.
-- The number is 0 if `text` is not an object. There are no positions if the value is not a string.
local function find(text)
    local number, first, last, depth, key = 0, nil, nil, 0, nil
    local at = text:find("%S")
    if not at or text:byte(at) ~= 123 then return 0 end
    while at do
        local sign = text:byte(at)
        if sign == 34 then
            local closing = string_end(text, at)
            if not closing then return 0 end
            if depth == 1 then
                if key then
                    if key == "model" then first, last = at, closing end
                    key = nil
                else
                    key = plain(text:sub(at + 1, closing - 1))
                    local colon = text:match("^%s*():", closing + 1)
                    if not colon then return 0 end
                    closing = colon
                    if key == "model" then number, first, last = number + 1, nil, nil end
                end
            end
            at = closing
        elseif sign == 123 or sign == 91 then
            depth = depth + 1
        elseif sign == 44 then
            key = nil
        else
            depth = depth - 1
            if depth == 0 then break end
            -- a string after a nested value is the next key
            if depth == 1 then key = nil end
        end
        at = text:find(depth == 1 and '["{}%[%],]' or '["{}%[%]]', at + 1)
    end
    if depth ~= 0 or text:find("%S", at + 1) then return 0 end
    return number, first, last
end

-- the files that are loaded after this one use this table
stackgen = { find = find, plain = plain, string_end = string_end }

-- Sets the variables txn.models (the number of `model` fields) and txn.model (the name)
core.register_action("find-model", { "http-req" }, function(txn)
    local text = txn.f:req_body() or ""
    local number, first, last = find(text)
    txn:set_var("txn.models", number)
    if number == 1 and first then txn:set_var("txn.model", plain(text:sub(first + 1, last - 1))) end
    if #text > LARGE then
        text = nil
        collectgarbage()
    end
end)
