-- check: lint of a checkpoint against the rules of its consumers.
local M = {
  summary = "lint of a checkpoint against the rules of its consumers",
  notes = "Files and index, config, shapes, fused layers, ignore lists, tensor-parallel sizes, act-order, values: each finding with\n"
    .. "what is wrong, whose rule it breaks and what to do. Exit status 1 when there is an error; warnings and notes are fine.\n"
    .. "--consumer: vllm-0.33 (default), llama.cpp, transformers-5.23, several with commas, or all.",
  args = { { "MODEL" } },
  options = {
    { "--consumer", "NAMES", doc = "whose rules: vllm-0.33 (default), llama.cpp, …, or all" },
    { "--device", "NAME", doc = "sm_75 to sm_120 (default sm_80), cuda (the one here), cpu, xpu, rocm or a gfx name" },
    { "--tp", "N,N", doc = "tensor-parallel sizes to look at (default 1,2,4,8)" },
    { "--no-values", doc = "headers and configs only: no tensor's bytes are read" },
    { "--headers", doc = "the same" },
    { "--rules", doc = "list the rules instead" },
    { "--json", doc = "one JSON document" },
  },
}

local function sizes(list)
  if not list then return nil end
  local out = {}
  for word in list:gmatch "[^,%s]+" do
    out[#out + 1] = tonumber(word) or error(("--tp expects whole numbers with commas, found %q"):format(list), 0)
  end
  return out
end

local function list_rules(check, json)
  local rows = check.rules()
  if json then return io.write(require("nibble.json").encode(rows, { indent = 2 }), "\n") end
  for i, rule in ipairs(rows) do rows[i] = { rule.topic, rule.id, rule.about } end
  io.write(require("nibble.show").columns(rows, "lll"))
end

function M.run(values)
  local check = require "nibble.check"
  if values.rules then
    list_rules(check, values.json)
    return 0
  end
  local report, finish = require("nibble.repl.progress").new()
  local result = assert(check.run(values.model, { consumer = values.consumer, device = values.device, tp = sizes(values.tp),
    values = not (values.no_values or values.headers), progress = report }))
  finish()
  if values.json then io.write(require("nibble.json").encode(result:totable(), { indent = 2 }), "\n")
  else io.write(tostring(result), "\n") end
  return result.counts.error > 0 and 1 or 0
end

return M
