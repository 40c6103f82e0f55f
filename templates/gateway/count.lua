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
-- llama.cpp's `usage` has the tokens of one choice: of the first one, or in a stream of each one in turn. So the choices
-- are found by how they begin in /v1/completions and in a chat, and end with the next field of the response.
local CHOICE, TEXT, CHOICES_END = '{"finish_reason":', '{"text":', '"created":'
-- bytes of a choice without its text, and how many tokens of the first choice are enough to know the bytes of a token
local FRAMES, SAMPLE = { chat = 81, texts = 63 }, 8
local ONE_USAGE = '"completion_tokens"%s*:%s*(%d+)%s*[,}]()'

local Counter = {}
Counter.__index = Counter
Counter.flags = filter.FLT_CFG_FL_HTX

function Counter:new()
    local counter = { prompt = 0, answer = 0, total = 0, events = 0, rest = "" }
    counter.received, counter.choices, counter.usages, counter.usage_sum = 0, {}, 0, 0
    return setmetatable(counter, Counter)
end

-- Sums the usages of a stream of llama.cpp. `fresh` is the position of the first new byte
function Counter:add_usages(text, fresh)
    for number, after in text:gmatch(ONE_USAGE) do
        if after > fresh then self.usages, self.usage_sum = self.usages + 1, self.usage_sum + tonumber(number) end
    end
end

-- Calls `found` with the place in the response of each `sign` that is complete only with the new bytes
function Counter:find_new(text, fresh, sign, found)
    local at = text:find(sign, math.max(1, fresh - #sign + 1), true)
    while at do
        found(self.received + at - fresh)
        at = text:find(sign, at + #sign, true)
    end
end

-- Finds where the choices of llama.cpp's response begin and end
function Counter:find_choices(text, fresh)
    local function add(place) self.choices[#self.choices + 1] = place end
    self:find_new(text, fresh, CHOICE, add)
    self:find_new(text, fresh, TEXT, add)
    self:find_new(text, fresh, CHOICES_END, function(place) self.choices_end = self.choices_end or place end)
end

-- The tokens of all choices of llama.cpp. Only the answers of a complete stream are exact
function Counter:all_choices(prompt, answer, is_complete)
    local number = self.is_stream and self.usages or #self.choices
    if self.is_stream and answer > 0 then
        -- choices without a usage have not ended, but their events count
        answer = is_complete and self.usage_sum or math.max(self.usage_sum, self.events)
    elseif number > 1 then
        local frame = FRAMES[self.counts_one]
        local first = self.choices[2] - self.choices[1] - frame
        local all = (self.choices_end or self.received) - self.choices[1] - frame * number
        if answer >= SAMPLE and first > 0 then
            answer = math.max(answer, math.ceil(answer * all / first))
        else
            answer = math.max(answer * number, math.ceil(all / BYTES_PER_TOKEN))
        end
    end
    -- the choices may have different prompts, but a chat has one prompt
    if number > 1 and self.counts_one == "texts" then
        prompt = math.max(prompt, math.ceil(self.sent / BYTES_PER_TOKEN))
    end
    return prompt, answer
end

-- Sets the variable that the log passes to usage.lua
local function report(counter, txn, is_complete)
    local prompt, answer = counter.prompt, counter.answer
    if counter.counts_one then prompt, answer = counter:all_choices(prompt, answer, is_complete) end
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
        self.counts_one = txn:get_var("txn.counts_one")
        filter.register_data_filter(self, channel)
    end
end

function Counter:http_payload(txn, message)
    local body = message:body()
    if not body or body == "" then return end
    local text, fresh = self.rest .. body, #self.rest + 1
    if self.counts_one and not self.is_stream then self:find_choices(text, fresh) end
    self.received = self.received + #body
    -- almost no event of a stream has a usage, so most events cost only two searches
    if text:find('_tokens"', 1, true) then
        for pattern, field in pairs(FIELDS) do
            for number in text:gmatch(pattern) do self[field] = math.max(self[field], tonumber(number)) end
        end
        if self.counts_one and self.is_stream then self:add_usages(text, fresh) end
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
    if self.key and message.channel:is_resp() then report(self, txn, true) end
end

core.register_filter("count-tokens", Counter, function(counter) return counter end)
