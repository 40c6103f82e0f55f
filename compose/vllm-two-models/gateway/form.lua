-- Finds the model name in the multipart/form-data body of a request with a file, wherever the field is. model.lua reads
-- JSON. Format: RFC 7578 and RFC 2046, as python-multipart reads it, which vLLM uses.
-- API: HAProxy 3.2's Lua documentation (core.register_action, txn.f, txn:set_var).

-- Starlette, which vLLM uses, refuses forms with more fields
local PARTS = 1000
-- copies of bodies with more bytes are released at once, because the garbage collector alone lets copies accumulate
local LARGE = 2 ^ 20

-- The parameters of a header's value, for example `form-data; name="model"`, with names in lower case
local function parameters(value)
    local found = {}
    local at = value:find(";", 1, true)
    while at do
        local name, from = value:match("^;%s*([^=;%s]+)%s*=%s*()", at)
        if not name then return found end
        local text, after
        if value:byte(from) == 34 then
            local last = from
            repeat
                last = value:find('"', last + 1, true)
                if not last then return found end
            until value:byte(last - 1) ~= 92
            text, after = value:sub(from + 1, last - 1):gsub('\\(["\\])', "%1"), last + 1
        else
            text, after = value:match("^([^;%s]*)()", from)
        end
        found[name:lower()] = text
        at = value:find(";", after, true)
    end
    return found
end

-- The value of Content-Disposition among the header lines of a part
local function disposition(lines)
    for name, value in lines:gmatch("([^\r\n:]+):%s*([^\r\n]*)") do
        if name:lower() == "content-disposition" then return value end
    end
    return ""
end

-- Number of fields `model` in a form, and the value of the last one: nil if it is a file. The number is 0 if `text` is not
-- a complete form.
local function find_field(text, boundary)
    local mark, number, model = "--" .. boundary, 0, nil
    local at = 1
    if text:sub(1, #mark) ~= mark then
        at = text:find("\r\n" .. mark, 1, true)
        if not at then return 0 end
        at = at + 2
    end
    for _ = 1, PARTS do
        at = at + #mark
        if text:sub(at, at + 1) == "--" then return number, model end
        local head = text:match("^[ \t]*\r\n()", at)
        local blank = head and text:find("\r\n\r\n", head, true)
        local last = blank and text:find("\r\n" .. mark, blank + 4, true)
        if not last then return 0 end
        local found = parameters(disposition(text:sub(head, blank)))
        if found.name == "model" then
            number = number + 1
            model = nil
            if not found.filename and not found["filename*"] then model = text:sub(blank + 4, last - 1) end
        end
        at = last + 2
    end
    return 0
end

-- Sets the variables txn.models (the number of fields `model`) and txn.model (the name)
core.register_action("find-form-model", { "http-req" }, function(txn)
    local kind = txn.f:req_fhdr("content-type") or ""
    local boundary = parameters(kind).boundary
    if not boundary or boundary == "" or not kind:lower():find("^multipart/form%-data") then return end
    local text = txn.f:req_body() or ""
    local number, model = find_field(text, boundary)
    txn:set_var("txn.models", number)
    if number == 1 and model then txn:set_var("txn.model", model) end
    if #text > LARGE then
        text = nil
        collectgarbage()
    end
end)
