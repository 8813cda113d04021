-- The session: from the start of the program to its prompt, and Tab over the names of 100,000 tensors, beside what
-- this machine needs to start `true` and to open that checkpoint.
local nb = require "nibble"
local C = require("nibble.ffi").C
local complete = require "nibble.repl.complete"
local names = require "nibble.repl.names"
local terminal = require "spec.support.terminal"

local LAYERS, EXPERTS = 96, 346 -- x 3 projections: 99,648 tensors, and a few more a layer

-- A header alone: experts of a mixture, each tensor empty.
local function write_checkpoint(path)
  local parts = {}
  local function add(name) parts[#parts + 1] = ('"%s":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'):format(name) end
  for layer = 0, LAYERS - 1 do
    for _, module in ipairs { "self_attn.q_proj", "self_attn.o_proj", "mlp.gate", "input_layernorm" } do
      add(("model.layers.%d.%s.weight"):format(layer, module))
    end
    for e = 0, EXPERTS - 1 do
      for _, p in ipairs { "gate_proj", "up_proj", "down_proj" } do
        add(("model.layers.%d.mlp.experts.%d.%s.weight"):format(layer, e, p))
      end
    end
  end
  local header = "{" .. table.concat(parts, ",") .. "}"
  header = header .. (" "):rep(-#header % 8)
  local f = assert(io.open(path, "wb"))
  local size = #header
  for _ = 1, 8 do
    f:write(string.char(size % 256))
    size = math.floor(size / 256)
  end
  f:write(header)
  f:close()
end

-- Median and best of n runs, ms.
local function median_ms(n, f)
  local times = {}
  for i = 1, n do
    local start = C.nb_now()
    f()
    times[i] = (C.nb_now() - start) * 1e3
  end
  table.sort(times)
  return times[math.ceil(n / 2)], times[1]
end

local function start()
  local home = { HOME = "/nonexistent", XDG_STATE_HOME = "", XDG_CONFIG_HOME = "", TERM = "xterm" }
  local one = median_ms(15, function() os.execute "true" end)
  local t
  local prompt, best = median_ms(15, function()
    if t then
      t:send "\4"
      t:close()
    end
    t = assert(terminal.start({}, home))
    assert(t:expect "nibble> ")
  end)
  t:send "\4"
  t:close()
  print(("  prompt after start, the last one's end included  %6.1f ms (best %.1f; bar 30); sh -c true %.1f ms"):format(
    prompt, best, one))
end

local function completion()
  local path = os.tmpname() .. ".safetensors"
  write_checkpoint(path)
  local opened = C.nb_now()
  local ck = assert(nb.open(path))
  opened = (C.nb_now() - opened) * 1e3
  local env = { m = ck }
  collectgarbage() -- what the writing left is none of the session's
  print(("  %d tensors, opened in %.0f ms"):format(ck.count, opened))
  for _, typed in ipairs { "", "model.layers.4", "model.layers.95.mlp.experts.34", "gate_proj.wei" } do
    local first = C.nb_now()
    local r = complete.offer('m["' .. typed, typed, env)
    first = (C.nb_now() - first) * 1e3
    local time, best = median_ms(25, function() r = complete.offer('m["' .. typed, typed, env) end)
    print(("  Tab after m[\"%-32s %6.2f ms (first %.2f, best %.2f; bar 20)  %s"):format(typed, time, first, best,
      r and (r.insert or ("%d names"):format(#(names.complete(ck, typed)))) or "nothing"))
  end
  os.remove(path)
end

return {
  title = "the session",
  run = function()
    start()
    completion()
  end,
}
