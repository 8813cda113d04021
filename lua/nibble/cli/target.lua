-- target: where a checkpoint is to run: the options of commands that ask for a consumer and a device.
local M = {}

local function consumers()
  local out = {}
  for i, consumer in ipairs(require "nibble.backends.consumers") do out[i] = consumer.name end
  return out
end

local function devices() return { "sm_75", "sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "cuda", "cpu", "xpu", "rocm" } end

--- options(more) -> --consumer, --device, --tp, --ep, and more after them.
function M.options(more)
  local out = {
    { "--consumer", "NAME", words = consumers, doc = "whose rules: vllm-0.33 (default), pymllm, inc-xpu, llama.cpp, nibble, …" },
    { "--device", "NAME", words = devices, doc = "sm_75 to sm_120 (default sm_80), cuda (the one here), cpu, xpu, rocm or a gfx name" },
    { "--tp", "N", number = true, most = 1024, doc = "tensor-parallel ranks (default 1)" },
    { "--ep", "N", number = true, most = 1024, doc = "expert-parallel ranks (default 1)" },
  }
  for _, option in ipairs(more) do out[#out + 1] = option end
  return out
end

--- of(values) -> {consumer, device, tp, ep} as nibble.select takes it.
function M.of(values) return { consumer = values.consumer, device = values.device, tp = values.tp, ep = values.ep } end

--- given(values) -> whether one of the options was given.
function M.given(values) return values.consumer or values.device or values.tp or values.ep end

return M
