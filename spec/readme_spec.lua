-- The README's transcripts, replayed: every `nibble> ` line in a session and every `$ nibble ...`
-- command gives the lines below it. Times and rates may differ; a line … stands for lines left out;
-- a path "out..." is a folder of the spec's own.
local command = require "spec.support.command"
local files = require "spec.support.files"

local BREAK = "\30"

-- The fenced blocks of a Markdown text, as arrays of lines.
local function blocks(text)
  local out, block = {}, nil
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do
    if line:match "^```" then
      if block then out[#out + 1] = block end
      block = not block and {} or nil
    elseif block then
      block[#block + 1] = line
    end
  end
  return out
end

-- A block as pieces {input =, output = lines}; how a line of input begins: prompt, more.
local function pieces(block, prompt, more)
  local out = {}
  for _, line in ipairs(block) do
    local piece = out[#out]
    if line:sub(1, #prompt) == prompt then out[#out + 1] = { input = line:sub(#prompt + 1), output = {} }
    elseif piece and more and line:sub(1, #more) == more then piece.input = piece.input .. "\n" .. line:sub(#more + 1)
    elseif piece then table.insert(piece.output, line)
    end
  end
  return out
end

-- What may differ from run to run: times, rates, memory.
local function settled(line)
  return (line:gsub("%d[%d.]* ?[mµn]?s%f[%W]", "TIME"):gsub("%d+m%d%ds", "TIME"):gsub("%d[%d.]* [kMGT]?B/s", "RATE")
    :gsub("%d[%d.]*%% of [%w ]+", "SHARE"):gsub("%s+$", ""))
end

local function compare(expected, found, input)
  local at = 1
  for i, line in ipairs(expected) do
    if line:match "^ *…$" then
      local following = expected[i + 1]
      if not following then return end
      while found[at] and settled(found[at]) ~= settled(following) do at = at + 1 end
    else
      assert.equal(settled(line), settled(found[at] or "(nothing)"), input)
      at = at + 1
    end
  end
  assert.is_nil(found[at], input .. ": more than the README shows")
end

local function lines_of(text)
  local out = {}
  for line in text:gmatch "([^\n]*)\n" do out[#out + 1] = line end
  while out[#out] == "" do out[#out] = nil end
  return out
end

describe("README.md", function()
  local text = files.read "README.md"
  local dir = files.temporary()
  local function ours(s) return (s:gsub('([" ])out%f[^%w]', "%1" .. dir .. "/out")) end
  local function theirs(s) return (s:gsub(dir:gsub("%p", "%%%0") .. "/", "")) end

  teardown(function() files.remove(dir) end)

  local sessions, commands = 0, 0
  for _, block in ipairs(blocks(text)) do
    local session = pieces(block, "nibble> ", "      > ")
    if #session > 0 then
      sessions = sessions + 1
      it(("replays its session, %d inputs from %q"):format(#session, session[1].input), function()
        local input = {}
        for i, piece in ipairs(session) do
          input[i] = ours(piece.input) .. ("\nio.stdout:write %q io.stdout:flush()\n"):format(BREAK)
        end
        local r = command.run({}, { stdin = table.concat(input) })
        local outputs = {}
        for output in (theirs(r.out)):gmatch("([^" .. BREAK .. "]*)" .. BREAK) do outputs[#outputs + 1] = output end
        for i, piece in ipairs(session) do
          assert.is_truthy(outputs[i], piece.input .. ": no output; stderr: " .. r.err)
          compare(piece.output, lines_of(outputs[i]), piece.input)
        end
      end)
    end
    for _, piece in ipairs(pieces(block, "$ ")) do
      commands = commands + 1
      it("replays $ " .. piece.input, function()
        local words = assert(piece.input:match "^nibble (.*)$")
        local r = command.run(ours(words))
        compare(piece.output, lines_of(theirs(r.out .. r.err)), piece.input)
      end)
    end
  end

  it("has transcripts to replay", function() assert.is_true(sessions >= 1 and commands >= 1) end)
end)
