-- Reads the number of tokens in responses. Sets txn.usage: the key's name, and the tokens of the prompt and of the answer.
-- The log format passes it to usage.lua when the request has ended, even if the client has disconnected.
-- If a request does not ask for `usage`, its stream contains none. Then each event counts as one token, and so do each
-- four bytes of the request's body. API: HAProxy 3.2's Lua documentation (core.register_filter, HTTPMessage).

-- more than the longest `"prompt_tokens":NUMBER`, which may be cut in two by the end of a chunk
local OVERLAP = 64
local BYTES_PER_TOKEN = 4
-- how an event with JSON begins (`data: [DONE]` has no JSON), and how many events pass before the count is saved
local EVENT, EVENTS = "data: {", 4
-- fields of OpenAI's APIs and of Anthropic's; a quote inside a text is escaped, so no text contains these patterns
local FIELDS = {
    ['"prompt_tokens"%s*:%s*(%d+)'] = "prompt", ['"input_tokens"%s*:%s*(%d+)'] = "prompt",
    ['"completion_tokens"%s*:%s*(%d+)'] = "answer", ['"output_tokens"%s*:%s*(%d+)'] = "answer",
    ['"total_tokens"%s*:%s*(%d+)'] = "total",
}

local Counter = {}
Counter.__index = Counter
Counter.flags = filter.FLT_CFG_FL_HTX

function Counter:new()
    return setmetatable({ prompt = 0, answer = 0, total = 0, events = 0, rest = "" }, Counter)
end

-- Sets the variable that the log passes to usage.lua
local function report(counter, txn)
    local prompt, answer = counter.prompt, counter.answer
    if prompt + answer == 0 then prompt = counter.total end
    if prompt + answer == 0 and counter.is_stream then
        prompt, answer = math.ceil(counter.sent / BYTES_PER_TOKEN), counter.events
    end
    if prompt + answer > 0 then txn:set_var("txn.usage", counter.key .. " " .. prompt .. " " .. answer) end
end

function Counter:http_headers(txn, message)
    local channel = message.channel
    -- the second process returns large requests to the frontend `inner`, which counts them
    if not channel:is_resp() or txn:get_var("txn.large") or not txn:get_var("txn.key") then return end
    local line, kinds = message:get_stline(), message:get_headers()["content-type"]
    local kind = kinds and kinds[0] or ""
    self.is_stream = kind:find("text/event-stream", 1, true) == 1
    if tonumber(line.code) == 200 and (self.is_stream or kind:find("application/json", 1, true) == 1) then
        self.key, self.sent = txn:get_var("txn.key"), tonumber(txn:get_var("txn.sent")) or 0
        filter.register_data_filter(self, channel)
    end
end

function Counter:http_payload(txn, message)
    local body = message:body()
    if not body or body == "" then return end
    local text, fresh = self.rest .. body, #self.rest + 1
    -- almost no event of a stream has a usage, so most events cost only two searches
    if text:find('_tokens"', 1, true) then
        for pattern, field in pairs(FIELDS) do
            for number in text:gmatch(pattern) do self[field] = math.max(self[field], tonumber(number)) end
        end
        report(self, txn)
    end
    -- a number at the end of a chunk may continue in the next chunk, so the largest value counts
    self.rest = text:sub(-OVERLAP)
    if not self.is_stream then return end
    -- events whose beginning is complete only with this chunk
    local at = text:find(EVENT, math.max(1, fresh - #EVENT + 1), true)
    while at do
        self.events = self.events + 1
        -- saved now and then, because the client may disconnect before the end
        if self.events % EVENTS == 1 then report(self, txn) end
        at = text:find(EVENT, at + #EVENT, true)
    end
end

function Counter:http_end(txn, message)
    if self.key and message.channel:is_resp() then report(self, txn) end
end

core.register_filter("count-tokens", Counter, function(counter) return counter end)
