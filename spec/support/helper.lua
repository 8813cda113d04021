-- Loaded before every spec: the tree's modules, and a leak check after each test.
package.path = "lua/?.lua;lua/?/init.lua;" .. package.path
local busted = require "busted"
local nffi = require "nibble.ffi"
local C = nffi.C

local live = {}

busted.subscribe({ "test", "start" }, function()
  collectgarbage() collectgarbage()
  live[#live + 1] = { bytes = tonumber(C.nb_live_bytes()) }
  return nil, true
end)

-- Tensors that a test leaves behind must be garbage, not leaks: after a full
-- collection no more bytes live than before, unless a describe block's own
-- upvalues hold them (set spec_keeps_bytes in the test's block for that).
busted.subscribe({ "test", "end" }, function(element)
  collectgarbage() collectgarbage()
  local before = table.remove(live)
  local now = tonumber(C.nb_live_bytes())
  if before and now > before.bytes then -- traces keep the closures they saw, and those their tensors
    jit.flush()
    collectgarbage() collectgarbage()
    now = tonumber(C.nb_live_bytes())
  end
  if before and now > before.bytes and not rawget(_G, "spec_keeps_bytes") then
    io.stderr:write(("\nleak: %s: %d bytes live before, %d after\n"):format(tostring(element.name), before.bytes, now))
    rawset(_G, "spec_leaks", (rawget(_G, "spec_leaks") or 0) + 1)
  end
  return nil, true
end)
