-- Sums the tokens of each key that count.lua has read, today (UTC) and in total, and applies the token budgets.
-- This file is loaded into one Lua state for all threads (lua-load). After a reload, an old worker still finishes its
-- streams. So each worker has its own file, and also adds the sums in the files of the other workers. A worker appends
-- a line when a request ends, because it may exit right afterwards. The files are in the container's memory, so the sums
-- restart at zero when the container starts.
-- API: HAProxy 3.2's Lua documentation (core.register_task, core.register_action, core.get_info).

local FOLDER, DAY = "/tmp/", 86400
local WORKERS = FOLDER .. "usage.workers"
local own, others = {}, {}
local pid, journal, lines
-- a longer file is replaced by one line for each key
local MAX_LINES = 1000

local function today() return core.now().sec // DAY end

local function add(sums, name, day, prompt, answer, all_prompt, all_answer)
    local key = sums[name] or { day = day, prompt = 0, answer = 0, all_prompt = 0, all_answer = 0 }
    if key.day < day then key.day, key.prompt, key.answer = day, 0, 0 end
    if key.day == day then key.prompt, key.answer = key.prompt + prompt, key.answer + answer end
    key.all_prompt, key.all_answer = key.all_prompt + all_prompt, key.all_answer + all_answer
    sums[name] = key
end

local function append(name, day, prompt, answer, all_prompt, all_answer)
    if not journal then return end
    journal:write(("%s %d %d %d %d %d\n"):format(name, day, prompt, answer, all_prompt, all_answer))
    lines = lines + 1
end

-- Replaces the file by one line for each key
local function compact()
    local path = FOLDER .. "usage." .. pid
    if journal then journal:close() end
    journal, lines = io.open(path .. ".new", "w"), 0
    for name, key in pairs(own) do append(name, key.day, key.prompt, key.answer, key.all_prompt, key.all_answer) end
    if journal then journal:flush() end
    -- the open file keeps its new name
    os.rename(path .. ".new", path)
    lines = 0
end

-- Adds the sums in a file to `sums`
local function read(path, sums)
    local file = io.open(path)
    if not file then return end
    for line in file:lines() do
        local name, day, prompt, answer, all_prompt, all_answer = line:match("^(%S+) (%d+) (%d+) (%d+) (%d+) (%d+)$")
        if name then
            add(sums, name, tonumber(day), tonumber(prompt), tonumber(answer), tonumber(all_prompt), tonumber(all_answer))
        end
    end
    file:close()
end

local function is_running(worker)
    local file = io.open("/proc/" .. worker .. "/stat")
    return file and file:close()
end

local function read_others()
    local file, found = io.open(WORKERS), {}
    if not file then return end
    for worker in file:lines() do
        local path = FOLDER .. "usage." .. worker
        if worker == pid then
            -- its own sums are in memory
        elseif is_running(worker) then
            read(path, found)
        -- only one worker can rename the file of a worker that has exited, and this worker takes over its sums
        elseif os.rename(path, path .. "." .. pid) then
            read(path .. "." .. pid, own)
            compact()
            os.remove(path .. "." .. pid)
        end
    end
    file:close()
    others = found
end

core.register_task(function()
    pid = tostring(core.get_info().Pid)
    -- sums of an earlier worker with the same process id
    read(FOLDER .. "usage." .. pid, own)
    local file = io.open(WORKERS, "a")
    if file then
        file:write(pid .. "\n")
        file:close()
    end
    compact()
    while true do
        read_others()
        core.msleep(1000)
    end
end)

-- Used in the log format, because the log is written when a request has ended. Returns the request's tokens
core.register_converters("add-tokens", function(usage)
    local name, prompt, answer = usage:match("^(%S+) (%d+) (%d+)$")
    if not name then return "" end
    prompt, answer = tonumber(prompt), tonumber(answer)
    add(own, name, today(), prompt, answer, prompt, answer)
    if journal and lines >= MAX_LINES then
        compact()
    elseif journal then
        append(name, today(), prompt, answer, prompt, answer)
        journal:flush()
    end
    return tostring(prompt + answer)
end)

local function sum(name, field)
    local total = 0
    for _, sums in ipairs({ own, others }) do
        local key = sums[name]
        if key and (field:find("all_", 1, true) or key.day == today()) then total = total + key[field] end
    end
    return total
end

core.register_converters("tokens-today", function(name) return tostring(sum(name, "prompt") + sum(name, "answer")) end)
core.register_converters("prompt-tokens", function(name) return tostring(sum(name, "all_prompt")) end)
core.register_converters("answer-tokens", function(name) return tostring(sum(name, "all_answer")) end)

-- Sets txn.wait, the seconds until the next day, if the tokens of txn.key today have reached txn.budget
core.register_action("limit-tokens", { "http-req" }, function(txn)
    local name = txn:get_var("txn.key")
    if sum(name, "prompt") + sum(name, "answer") >= txn:get_var("txn.budget") then
        txn:set_var("txn.wait", DAY - core.now().sec % DAY)
    end
end)
