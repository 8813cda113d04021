-- marlin: what the Marlin kernels take, as facts: constants, type ids, support
-- checks with reasons, padding, workspace (SYSTEMS MRL-01 to MRL-08, MRL-46 to MRL-50).
-- The layouts themselves are in nibble.layout.marlin.
local ffi = require "ffi"
local tensor = require "nibble.tensor"

local M = {}

--- marlin.constants: the kernels' limits by name. (MRL-01)
M.constants = {
  tile = 16, min_thread_n = 64, min_thread_k = 128, group_sizes = { -1, 32, 64, 128 },
  max_blocks_per_sm = 4, max_parallel = 16, fp32_reduce = true,
}
local K = M.constants

--- marlin.policy: "vllm" (capability 75 and up, types checked) or "pymllm" (80 and up; no check of types, only of
-- the group, so that uint8 is taken beside uint4). (MRL-06)
M.policy = "vllm"

-- ---- types ------------------------------------------------------------------

-- name = exponent, mantissa, signed, bias, finite only, kind of NaN (0 none, 1 IEEE, 2 extended)
local fields = {
  int4 = { 0, 3, 1, 0, 0, 1 }, uint4 = { 0, 4, 0, 0, 0, 1 }, int8 = { 0, 7, 1, 0, 0, 1 }, uint8 = { 0, 8, 0, 0, 0, 1 },
  uint2b2 = { 0, 2, 0, 2, 0, 1 }, uint3b4 = { 0, 3, 0, 4, 0, 1 }, uint4b8 = { 0, 4, 0, 8, 0, 1 },
  uint8b128 = { 0, 8, 0, 128, 0, 1 }, float8_e4m3fn = { 4, 3, 1, 0, 1, 2 }, float8_e5m2 = { 5, 2, 1, 0, 0, 1 },
  float8_e8m0fnu = { 8, 0, 0, 0, 1, 2 }, float16_e8m7 = { 8, 7, 1, 0, 0, 1 }, float16_e5m10 = { 5, 10, 1, 0, 0, 1 },
  float6_e3m2f = { 3, 2, 1, 0, 1, 0 }, float6_e2m3f = { 2, 3, 1, 0, 1, 0 }, float4_e2m1f = { 2, 1, 1, 0, 1, 0 },
  bfloat16 = { 8, 7, 1, 0, 0, 1 }, float16 = { 5, 10, 1, 0, 0, 1 },
}

-- exponent(8) mantissa(8) signed(1) bias(32) finite-only(1) nan-kind(8), from bit 0 up.
local function pack_id(f)
  local id = ffi.new("uint64_t", f[1])
  id = id + f[2] * 2ULL ^ 8 + f[3] * 2ULL ^ 16
  return id + f[4] * 2ULL ^ 17 + f[5] * 2ULL ^ 49 + f[6] * 2ULL ^ 50
end

local types, by_id = {}, {}
for name, f in pairs(fields) do
  local id = pack_id(f)
  local type = { name = name, id = id, bits = f[1] + f[2] + f[3], bias = f[4], exponent = f[1], mantissa = f[2],
                 signed = f[3] == 1, finite_only = f[5] == 1, float = f[1] > 0 }
  types[name] = type
  local known = by_id[tostring(id)]
  -- float16 and bfloat16 are second names; the systematic one answers a look-up.
  if not known or name:match "_e" then by_id[tostring(id)] = type end
end

--- marlin.types[name] -> {name, id = uint64, bits, bias, exponent, mantissa, signed, finite_only, float}. (MRL-02)
M.types = types

--- marlin.type_of_id(id) -> type; an unknown id is an error naming it. (MRL-02)
function M.type_of_id(id)
  id = ffi.cast("uint64_t", id)
  local type = by_id[tostring(id)]
  if not type then error(("no scalar type has the id %s"):format(tostring(id):gsub("ULL$", "")), 2) end
  return type
end

--- marlin.type_range(name) -> smallest, largest value of a type; nil where it has no sign and no float range
-- that a number holds exactly.
function M.type_range(name)
  local t = types[name]
  if not t then error(("unknown scalar type %q"):format(tostring(name)), 2) end
  if not t.float then
    if t.signed then return -2 ^ t.mantissa, 2 ^ t.mantissa - 1 end
    return -t.bias, 2 ^ t.mantissa - 1 - t.bias
  end
  if not t.signed then return nil end
  local f = fields[name]
  local bias = 2 ^ (t.exponent - 1) - 1
  local exponent, mantissa = 2 ^ t.exponent - 1, 2 ^ t.mantissa - 1
  if f[6] == 1 then exponent = exponent - 1 end    -- IEEE: the top exponent is inf and NaN
  if f[6] == 2 then mantissa = mantissa - 1 end    -- extended: only the top code is NaN
  local max = (1 + mantissa / 2 ^ t.mantissa) * 2 ^ (exponent - bias)
  return -max, max
end

-- ---- types and groups by device (MRL-03, MRL-04) ------------------------------

--- marlin.supported_types{platform = "cuda", capability =, zero_points = bool|nil, floats = true} -> names
-- capability: 80 for SM 8.0; nil means unknown and gives none on CUDA. zero_points nil: the union. (MRL-03)
function M.supported_types(o)
  local platform, zp = o.platform or "cuda", o.zero_points
  if platform == "xpu" then return { "uint4", "uint4b8" } end
  if platform == "cuda" and (o.capability or -1) < 75 then return {} end
  local out = {}
  if zp ~= true then
    out = platform == "cpu" and { "uint4b8" } or { "uint4b8", "uint8b128" }
    if o.floats ~= false and platform ~= "cpu" then
      out[#out + 1] = "float8_e4m3fn"
      out[#out + 1] = "float4_e2m1f"
    end
  end
  if zp ~= false then out[#out + 1] = "uint4" end
  return out
end

local function contains(list, x)
  for _, v in ipairs(list) do if v == x then return true end end
  return false
end

--- marlin.supported(type, group, zero_points, capability [, platform [, policy]]) -> true | false, reason
-- policy: default marlin.policy. group nil fails. (MRL-04, MRL-06)
function M.supported(type, group, zero_points, capability, platform, policy)
  if (policy or M.policy) == "pymllm" then
    if (capability or -1) < 80 then
      return false, ("Marlin needs a device of SM 80 or above, found SM %s"):format(tostring(capability))
    end
  else
    local allowed = M.supported_types { platform = platform, capability = capability, zero_points = zero_points }
    if not contains(allowed, type) then
      return false, ("Marlin does not take %s weights: types %s are supported (group size %s, capability %s, "
        .. "zero-points %s)"):format(tostring(type), #allowed > 0 and table.concat(allowed, ", ") or "(none)", tostring(group),
                tostring(capability), zero_points == nil and "either" or zero_points and "yes" or "no")
    end
  end
  if not contains(K.group_sizes, group) then
    return false, ("Marlin does not take the group size %s: %s are supported"):format(tostring(group),
      table.concat(K.group_sizes, ", "))
  end
  return true
end

--- marlin.check_supported(...) -> boolean: marlin.supported without its reason. (MRL-04)
function M.check_supported(...) return (M.supported(...)) end

--- marlin.verify_supported(...): marlin.supported, raising its reason. (MRL-04)
function M.verify_supported(...)
  local ok, reason = M.supported(...)
  if not ok then error(reason, 2) end
end

-- ---- shapes (MRL-05, MRL-07, MRL-08) -------------------------------------------

local advice = "use a smaller tensor-parallel size or the method without Marlin"

--- marlin.supports_shape(n, k, k_full, group) -> true | false, reason
-- n, k: of this rank's part; k_full: the layer's whole K. (MRL-05)
function M.supports_shape(n, k, k_full, group)
  if n % K.min_thread_n ~= 0 then
    return false, ("N = %d is not a multiple of %d: %s"):format(n, K.min_thread_n, advice)
  end
  if k % K.min_thread_k ~= 0 then
    return false, ("K = %d is not a multiple of %d: %s"):format(k, K.min_thread_k, advice)
  end
  if group < k_full and k % group ~= 0 then
    return false, ("K = %d is not a multiple of the group size %d: %s"):format(k, group, advice)
  end
  return true
end

--- marlin.verify_shape(...): supports_shape, raising its reason.
function M.verify_shape(...)
  local ok, reason = M.supports_shape(...)
  if not ok then error(reason, 2) end
end

--- marlin.supports_layer(n, k, k_full, group [, pad]) -> true | false, reason
-- pad: tiles may be padded with zeros, so that only the group must divide K. (MRL-05, MRL-08)
function M.supports_layer(n, k, k_full, group, pad)
  if not pad then return M.supports_shape(n, k, k_full, group) end
  if group < k_full and group ~= -1 and k % group ~= 0 then
    return false, ("K = %d is not a multiple of the group size %d: padding cannot split a group"):format(k, group)
  end
  return true
end

--- marlin.can_implement{type=, zero_points=, group=, k=, k_full=, n=, capability=, platform=} -> true | false, reason
-- Types, group size and the group's fit into this rank's K; tiles are padded. (MRL-03, MRL-08)
function M.can_implement(o)
  local ok, reason = M.supported(o.type, o.group, o.zero_points, o.capability, o.platform)
  if not ok then return false, reason end
  return M.supports_layer(o.n, o.k, o.k_full, o.group, true)
end

--- marlin.supports_moe(hidden, intermediate, group, options) -> true | false, reason
-- options: platform; pad (the intermediate size may be padded); router_weight_on_input = false and
-- activation = "silu" are checked only when given. (MRL-07)
function M.supports_moe(hidden, intermediate, group, options)
  local o = options or {}
  if o.platform == "rocm" then return false, "Marlin's MoE kernels are not there on ROCm" end
  if not contains(K.group_sizes, group) then
    return false, ("Marlin does not take the group size %s: %s are supported"):format(tostring(group),
      table.concat(K.group_sizes, ", "))
  end
  if hidden % 128 ~= 0 then return false, ("the hidden size %d is not a multiple of 128"):format(hidden) end
  local unit = o.pad and math.max(group, 1) or math.max(64, group)
  if intermediate % unit ~= 0 then
    return false, ("the intermediate size %d is not a multiple of %d"):format(intermediate, unit)
  end
  if o.router_weight_on_input then return false, "the router's weight is applied to the input" end
  if o.activation and o.activation ~= "silu" then
    return false, ("the activation is %s, not silu"):format(o.activation)
  end
  return true
end

local function up(x, unit) return math.ceil(x / unit) * unit end

local function lcm(a, b)
  local x, y = a, b
  while y > 0 do x, y = y, x % y end
  return a / x * b
end

--- marlin.padded_size(n, k, group) -> n, k: the cheaper of (N to 64, K to lcm(128,g)) and (N to 128, K to
-- lcm(64,g)), by area, then by sum. (MRL-08)
function M.padded_size(n, k, group)
  local g = group > 0 and group or 1
  local n1, k1, n2, k2 = up(n, 64), up(k, lcm(128, g)), up(n, 128), up(k, lcm(64, g))
  local a, b = n1 * k1, n2 * k2
  if b < a or (b == a and n2 + k2 < n1 + k1) then return n2, k2 end
  return n1, k1
end

--- marlin.padded_intermediate(intermediate, group) -> up to a multiple of lcm(64, g). (MRL-08)
function M.padded_intermediate(intermediate, group) return up(intermediate, lcm(64, group > 0 and group or 1)) end

--- marlin.scales_on_all_ranks(group, row_parallel) -> true when every rank keeps the single row of scales. (MRL-59)
function M.scales_on_all_ranks(group, row_parallel) return group == -1 and row_parallel end

-- ---- activations (MRL-46, MRL-47) ----------------------------------------------

--- marlin.activation_dtype(option, capability) -> "int8" | "fp8" | "none" | nil, msg, code
-- option: what the recipe or the environment says; unset and unknown mean none. fp8 needs SM 89 or SM 12x. (MRL-46)
function M.activation_dtype(option, capability)
  local want = (option or ""):lower()
  if want == "int8" then return "int8" end
  if want ~= "fp8" then return "none" end
  if capability == 89 or math.floor((capability or 0) / 10) == 12 then return "fp8" end
  return nil, ("fp8 activations with Marlin need SM 89 or SM 12x, found SM %s; int8 works there"):format(
    tostring(capability)), "eunsupported"
end

--- marlin.check_pair(weight_type, activations [, moe]) -> true | nil, msg, code
-- activations: nil, "none", "int8" or "fp8". 8-bit activations go with uint4b8, and in MoE with uint4. (MRL-47)
function M.check_pair(weight_type, activations, moe)
  if not activations or activations == "none" then return true end
  local t = types[weight_type]
  if not t then error(("unknown scalar type %q"):format(tostring(weight_type)), 2) end
  if weight_type == "uint4b8" or (moe and weight_type == "uint4") then return true end
  if t.bits == 8 then
    return nil, ("W8A8 is unsupported: %s weights with %s activations"):format(weight_type, activations),
      "eunsupported"
  end
  if weight_type == "float4_e2m1f" then
    return nil, ("NVFP4 weights take no 8-bit activations, found %s"):format(activations), "eunsupported"
  end
  return nil, ("%s activations need %s weights, found %s"):format(activations,
    moe and "uint4b8 or uint4" or "uint4b8", weight_type), "eunsupported"
end

-- ---- workspace (MRL-50) ----------------------------------------------------------

--- marlin.workspace(sms [, blocks_per_sm = 1]) -> i32 tensor of zeros; MoE kernels take 4 blocks. (MRL-50)
function M.workspace(sms, blocks_per_sm) return tensor.new("i32", { sms * (blocks_per_sm or 1) }) end

--- marlin.workspace_legacy(n) -> i32 tensor of zeros, N/64 * 16: the first kernels' locks.
function M.workspace_legacy(n) return tensor.new("i32", { n / K.min_thread_n * K.max_parallel }) end

--- marlin.check_workspace(words, {sms =, n = N, sorted_ids =, block_m =}) -> true | nil, msg, code
-- Dense: at least sms words. MoE (sorted_ids given): at least min((N/64)*(sorted_ids/block_m), 4*sms). (MRL-50)
function M.check_workspace(words, o)
  local need = o.sms
  if o.sorted_ids then
    need = math.min(o.n / K.min_thread_n * math.floor(o.sorted_ids / o.block_m), K.max_blocks_per_sm * o.sms)
  end
  if words:numel() < need then
    return nil, ("the workspace has %d words, the kernel needs %d"):format(words:numel(), need), "einval"
  end
  return true
end

return M
