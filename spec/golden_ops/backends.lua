-- Golden operations: which MoE backends a consumer has, in which order, under which names.
local backends = require "nibble.backends"
local json = require "nibble.json"

local consumer, moe = "vllm-0.33", "WNA16 MoE"
local ops = {}

local fns = {}

function fns._get_priority_backends(row)
  local device = row.platform == "cuda" and "sm_" .. row.capability or row.platform
  return { result = assert(backends.priority { consumer = consumer, table = moe, device = device }) }
end

function fns.map_wna16_backend(row)
  local word = row.runner_backend ~= json.null and row.runner_backend or nil
  local name, msg = backends.explicit(consumer, moe, word)
  if name then return { result = name } end
  -- The message lists the accepted names, in the order of the row's.
  local accepted = {}
  for known in row.error:match "%[(.*)%]":gmatch "'([^']*)'" do accepted[#accepted + 1] = known end
  assert(msg:find("expected one of " .. table.concat(accepted, ", "), 1, true), msg)
  return { error_type = "ValueError" }
end

ops["int_wna16 oracle"] = function(case)
  local out = {}
  for i, row in ipairs(case.rows) do out[i] = fns[row.fn](row) end
  return out
end

return ops
