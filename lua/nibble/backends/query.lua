-- backends.query: what a caller asks the oracle, made whole: sizes of the rank and of the layer
-- from one another, the device taken apart, the weight's and the activations' names, defaults.
-- The caller's table is never changed.
local nffi = require "nibble.ffi"

local M = {}

--- query.copy(t) -> a copy; tables in it are shared.
M.copy = nffi.interpreted(function(t)
  local out = {}
  for k, v in pairs(t) do out[k] = v end
  return out
end)

-- ---- the device ---------------------------------------------------------------

-- The CUDA device of this machine that is meant.
local function here(name)
  local devices, msg = require("nibble.cuda").devices()
  local wanted = name == "cuda" and "cuda:0" or name
  for _, d in ipairs(devices or {}) do
    if d.name == wanted and d.sm then
      return { text = "sm_" .. d.sm, platform = "cuda", capability = d.sm,
        packages = { cublaslt = require("nibble.cuda").cublaslt() ~= nil } }
    end
  end
  return nil, ("device %s: %s; name the one that is meant, as sm_80 or sm_90"):format(name,
    msg or ("devices here: %d, from cuda:0 on"):format(#devices)), "einval"
end

--- query.device(text) -> {text, platform = "cuda"|"rocm"|"xpu"|"cpu", capability = 80|nil, chip = "gfx1100"|nil} | nil,
-- msg, code
-- sm_75 … sm_120 (sm_90a too), rocm or a gfx name, xpu, cpu: nothing is read off the machine. cuda, cuda:1 …: the sm_NN
-- of that device here, and packages = {cublaslt = bool}: what this machine has for it.
function M.device(name)
  local text = tostring(name or ""):lower()
  local sm = text:match "^sm_?(%d+)%l?$"
  if sm then return { text = text, platform = "cuda", capability = tonumber(sm) } end
  local chip = text:match "^gfx%w+$"
  if chip or text == "rocm" then return { text = text, platform = "rocm", chip = chip } end
  if text == "xpu" or text == "cpu" then return { text = text, platform = text } end
  if text:match "^cuda$" or text:match "^cuda:%d+$" then return here(text) end
  return nil, ("device %s: expected sm_75 to sm_120, cuda, cpu, xpu, rocm or a gfx name"):format(
    name == nil and "is not given" or ("%q is unknown"):format(tostring(name))), "einval"
end

-- ---- weights and activations -----------------------------------------------------

-- "uint4b8" -> int, 4 bits, symmetric; as the kernels name types.
local function scalar(name)
  local bits, bias = name:match "^uint(%d+)b(%d+)$"
  if bits and tonumber(bias) == 2 ^ (bits - 1) then return "int", tonumber(bits), true end
  bits = name:match "^uint(%d+)$"
  if bits then return "int", tonumber(bits), false end
  bits = name:match "^int(%d+)$"
  if bits then return "int", tonumber(bits), true end
  bits = name:match "^float(%d+)_%w+$"
  if bits then return "float", tonumber(bits), true end
end

-- What formats are called elsewhere -> how the tables call their layout.
local layouts = {
  ["pack-quantized"] = "compressed-tensors", gptq_v2 = "gptq", gptq_marlin = "gptq", auto_gptq = "gptq",
  ["auto_round:auto_gptq"] = "gptq", ["auto_round:gptqmodel"] = "gptq", awq_marlin = "awq",
    ["auto_round:auto_awq"] = "awq",
}

local function block_text(block) return ("%dx%d"):format(block[1], block[2]) end

-- How tables call a weight: "int4", "int4 asym", "fp8 block 128x128", "nvfp4", "mxfp4".
local function weight_key(w)
  if w.type == "int" then return ("int%d%s"):format(w.bits, w.symmetric and "" or " asym") end
  if w.bits == 4 then return w.group == 32 and "mxfp4" or w.group == 16 and "nvfp4" or "fp4 group " .. w.group end
  if w.bits ~= 8 then return ("fp%d"):format(w.bits) end
  if w.block then return "fp8 block " .. block_text(w.block) end
  if w.group == 32 then return "mxfp8" end
  return w.strategy == "group" and "fp8 group " .. w.group or "fp8 " .. w.strategy
end

-- How tables call activations: "none", "int8 token", "fp8 tensor static", "fp8 group 128", "nvfp4".
local function activation_key(a)
  if not a then return "none" end
  if a.type == "float" and a.bits == 4 then return a.group == 32 and "mxfp4" or "nvfp4" end
  if a.type == "float" and a.group == 32 then return "mxfp8" end
  local base = (a.type == "int" and "int" or "fp") .. a.bits
  local strategy = a.strategy == "group" and "group " .. tostring(a.group) or a.strategy or "token"
  return ("%s %s%s"):format(base, strategy, a.dynamic == false and " static" or "")
end

local function weight_of(raw, activation)
  local t, bits, symmetric = raw.type or "int", raw.bits, raw.symmetric
  local exact
  if t ~= "int" and t ~= "float" then
    local kind, b, sym = scalar(t)
    if not kind then
      return nil, ("weight type %q: expected int or float with bits, or a kernel's type as uint4b8"):format(tostring(t))
    end
    exact, t, bits = raw.type, kind, b
    if symmetric == nil then symmetric = sym end
  end
  if type(bits) ~= "number" then return nil, "weight.bits is not given" end
  if raw.zero_points ~= nil then symmetric = not raw.zero_points end
  if symmetric == nil then symmetric = true end
  local group = raw.group or -1
  local strategy = raw.strategy or (raw.block and "block") or (group > 0 and "group" or "channel")
  if strategy == "tensor_group" then strategy = "group" end
  local w = { type = t, bits = bits, symmetric = symmetric, zero_points = not symmetric, strategy = strategy,
              group = group, block = raw.block, format = layouts[raw.format] or raw.format, ggml = raw.ggml,
                experts_format = raw.experts_format,
              actorder = (raw.actorder == "group" or raw.actorder == "dynamic" or raw.actorder == true) and "group"
                or nil }
  if exact then w.scalar = exact
  elseif t == "float" then w.scalar = bits == 4 and "float4_e2m1f" or bits == 8 and "float8_e4m3fn" or "float" .. bits
  elseif not symmetric then w.scalar = "uint" .. bits
  -- Schemes with 8-bit activations carry their codes as signed numbers.
  elseif activation and activation.bits == 8 then w.scalar = "int" .. bits
  else w.scalar = ("uint%db%d"):format(bits, 2 ^ (bits - 1)) end
  w.key = weight_key(w)
  return w
end

-- ---- sizes -----------------------------------------------------------------------

-- rank's size, whole size of one axis from what is given; cut: tensor parallelism divides it.
local function axis(raw, name, tp, cut)
  local rank, full = raw[name], raw[name .. "_full"]
  if full and not rank then
    if cut and full % tp ~= 0 then
      return nil, nil, ("%s = %d does not divide among %d tensor-parallel ranks"):format(name, full, tp)
    end
    rank = cut and full / tp or full
  end
  if rank and not full then full = cut and rank * tp or rank end
  return rank, full
end

local function sizes(q, raw)
  local msg
  if q.kind == "moe" then
    q.hidden, q.experts, q.top = raw.hidden, raw.experts, raw.top
    q.intermediate, q.intermediate_full, msg = axis(raw, "intermediate", q.tp, true)
    return msg
  end
  local parallel = raw.parallel
  if not parallel and q.tp > 1 then
    if raw.k and raw.k_full and raw.k * q.tp == raw.k_full then parallel = "row"
    elseif raw.n and raw.n_full and raw.n * q.tp == raw.n_full then parallel = "column" end
  end
  q.parallel = parallel
  q.k, q.k_full, msg = axis(raw, "k", q.tp, parallel == "row")
  if msg then return msg end
  q.n, q.n_full, msg = axis(raw, "n", q.tp, parallel == "column")
  return msg
end

-- ---- the whole ---------------------------------------------------------------------

local function set(list)
  local out = {}
  for _, name in ipairs(list or {}) do out[name:lower()] = true end
  return out
end

local plain = { "consumer", "name", "bias", "lora", "batch_invariant", "router_weight_on_input", "clamp", "all2all",
  "eplb",
  "sequence_parallel", "backend", "strict", "tokens", "arch", "versions", "table",
  "tile_padding" }

--- query.new(raw) -> the query made whole | nil, msg, code
function M.new(raw)
  local device, msg, code = M.device(raw.device)
  if not device then return nil, msg, code end
  local kind = raw.kind == "lm_head" and "linear" or raw.kind
  if kind ~= "linear" and kind ~= "moe" then
    return nil, ("kind %s: expected linear or moe"):format(tostring(raw.kind)), "einval"
  end
  local q = { kind = kind, device = device.text, platform = device.platform, capability = device.capability,
    chip = device.chip,
              here = device.packages, tp = raw.tp or 1, ep = raw.ep or 1, dtype = raw.dtype or "bf16", format = raw.format or "standard",
              activation_fn = raw.activation_fn or "silu", gated = raw.gated ~= false }
  for _, key in ipairs(plain) do q[key] = raw[key] end
  if q.format ~= "standard" and q.format ~= "batched" then
    return nil, ("format %q: expected standard or batched"):format(tostring(q.format)), "einval"
  end
  if type(raw.weight) ~= "table" then return nil, "weight is not given: the oracle chooses for quantized weights",
    "einval" end
  -- A whole scheme may be given as the weight.
  local a = raw.activation or raw.weight.activations
  q.weight, msg = weight_of(raw.weight, a)
  if not q.weight then return nil, msg, "einval" end
  q.activation, q.activation_key = a, activation_key(a)
  -- What the product reads: the scheme's activations, or what the deployment asks for (MRL-46), else the model's dtype.
  q.given_input = raw.input
  q.input = raw.input or (a and a.bits == 8 and (a.type == "int" and "int8" or "fp8")) or q.dtype
  msg = sizes(q, raw)
  if msg then return nil, msg, "einval" end
  local r = raw.routing or {}
  q.routing = { method = r.method or "renormalize", logits = r.logits or "bf16", hash = r.hash, changed = r.changed }
  q.disabled, q.packages = set(raw.disabled), raw.packages or {}
  return q
end

--- query.describe(q) -> "int4 weights, group 128, act-order": for messages about the whole.
function M.describe(q)
  local w = q.weight
  local words = { w.format == "gguf" and (w.ggml or "GGUF") .. " weights" or w.key .. " weights" }
  if w.strategy == "group" and w.group > 0 then words[#words + 1] = "group " .. w.group end
  if w.actorder then words[#words + 1] = "act-order" end
  if q.activation_key ~= "none" then words[#words + 1] = q.activation_key .. " activations" end
  return table.concat(words, ", ")
end

return M
