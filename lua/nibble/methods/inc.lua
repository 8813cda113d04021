-- methods.inc: AutoRound (INC) linear layers of 4 bits on the XPU, from checkpoints in
-- AWQ's or GPTQ's packing (SYSTEMS INC-07 to INC-15, INC-20), and the probe for ARK, its
-- package of kernels (INC-16). The method on ARK is nibble.methods.inc_ark.
local compat = require "nibble.compat"
local compute = require "nibble.compute"
local gemm = require "nibble.gemm"
local layout = require "nibble.layout"
local linear = require "nibble.methods.linear"
local tell = require "nibble.methods.tell"
local tensor = require "nibble.tensor"

local M = { name = "inc_xpu", monolithic = false, min_capability = 0 }
M.__index = M

-- From so many tokens on w4a8 quantizes the activations. (INC-18)
M.W4A8_TOKENS = 512

--- refuse(self, L, text, …) -> nil, msg, "eunsupported": names layer, backend, bits, sym and group. (INC-20)
function M.refuse(self, L, text, ...)
  local c = self.config
  return nil, ("layer %s (backend %s, %s bits, %s, group %s): %s"):format(L.name, self.options.backend or "auto",
    tostring(c.bits), c.sym and "symmetric" or "asymmetric", tostring(c.group), text:format(...)), "eunsupported"
end

--- new({bits =, group =, sym =, is_awq =}, {backend = "auto" | "w4a16" | "w4a8", log =, compat =}) -> method
-- is_awq: qweight is in AWQ's packing, else in GPTQ's. The method has bits, group, sym, pack_factor = 32 // bits and
-- is_awq_packed. (INC-01)
function M.new(config, options)
  local o = options or {}
  return setmetatable({ config = config, options = o, compat = compat.read(o), bits = config.bits, group = config.group,
    sym = config.sym, pack_factor = math.floor(32 / config.bits), is_awq_packed = config.is_awq == true }, M)
end

-- ---- parameters --------------------------------------------------------------------

--- parameters(self, L) -> groups | nil, msg, code
-- qweight i32 [K, N/pf] (AWQ) or [K/pf, N] (GPTQ); scales [G, N]; qzeros i32 [G, N/pf]; g_idx i32 [K], i // g. g = -1:
-- one group for the whole K, on every rank. (INC-07 to INC-10)
function M.parameters(self, L)
  local pf = self.pack_factor
  local groups, why = linear.groups(L, self.group)
  if not groups then return M.refuse(self, L, "%s", why) end
  if 32 % self.bits ~= 0 then return M.refuse(self, L, "words of 32 bits don't hold whole codes of %d", self.bits) end
  if L.k % pf ~= 0 or L.n % pf ~= 0 then
    return M.refuse(self, L, "the sizes %d and %d don't fill words of %d codes", L.k, L.n, pf)
  end
  local awq = self.is_awq_packed
  L:register("qweight", { dtype = "i32", shape = awq and { L.k, L.n / pf } or { L.k / pf, L.n }, input_dim = 0,
                          output_dim = 1, packed_dim = awq and 1 or 0, pack_factor = pf })
  L:register("scales", { dtype = L.dtype, shape = { groups, L.n }, input_dim = 0, output_dim = 1 })
  L:register("qzeros", { dtype = "i32", shape = { groups, L.n / pf }, input_dim = 0, output_dim = 1, packed_dim = 1,
                         pack_factor = pf })
  local g_idx = L:register("g_idx", { dtype = "i32", shape = { L.k }, input_dim = 0 }).data:ptr()
  for i = 0, L.k - 1 do g_idx[i] = math.floor(i / (L.k / groups)) end
  linear.register_bias(L)
  return groups
end

local function check_w4a8(self, L)
  if self.group <= 0 or self.group % 32 ~= 0 then
    return M.refuse(self, L, "w4a8 needs a group size above 0 that 32 divides")
  end
  if L.k % 8 ~= 0 or L.n % 8 ~= 0 then return M.refuse(self, L, "w4a8 needs sizes that 8 divides, found %d and %d", L.n, L.k) end
  return true
end

--- method:create(L) -> true | nil, msg, code
-- Symmetric 4 bits only: anything else is refused. (INC-13, INC-20)
function M:create(L)
  if self.bits ~= 4 or not self.sym then return M.refuse(self, L, "this path computes symmetric 4-bit weights only") end
  if self.options.backend == "w4a8" then
    local ok, msg, code = check_w4a8(self, L)
    if not ok then return nil, msg, code end
  end
  local groups, msg, code = M.parameters(self, L)
  if not groups then return nil, msg, code end
  return true
end

-- ---- after loading -----------------------------------------------------------------

--- gptq_words(self, L) -> qweight i32 [K/pf, N] in GPTQ's packing, whatever the checkpoint's. (INC-11)
-- AWQ words of 4 and 8 bits are converted, losslessly; other widths have no AWQ order.
function M.gptq_words(self, L)
  local words = L:get "qweight"
  if not self.is_awq_packed then return words end
  if self.bits ~= 4 and self.bits ~= 8 then return M.refuse(self, L, "AWQ's packing has an order for 4 and 8 bits only") end
  return layout.awq_to_gptq(words, self.bits)
end

--- check_g_idx(self, L): warns where the group indices, which the product ignores, aren't k // g. (SYSTEMS C-25)
function M.check_g_idx(self, L)
  if self.compat.silent_g_idx then return end
  local g_idx, groups = L:get("g_idx"):ptr(), L:get("scales"):size(1)
  local per, before = L.k / groups, L.parallel == "row" and L.rank * L.k or 0
  -- ranks may have been given the indices of the whole K
  local first = g_idx[0] ~= 0 and math.floor(before / per) or 0
  for i = 0, L.k - 1 do
    if g_idx[i] ~= first + math.floor(i / per) then
      return tell.say(self, "warning", ("layer %s: g_idx puts input %d into group %d, the product takes k // %d = %d: "
        .. "a checkpoint with activation order gives wrong results here"):format(L.name, i, tonumber(g_idx[i]), per,
        first + math.floor(i / per)))
    end
  end
end

--- method:process(L) -> true | nil, msg, code
-- After loading: (1) qweight from AWQ's packing to GPTQ's; (2) column-major: the logical [K/8, N] with strides (1, K/8),
-- held as a tensor [N, K/8]; (3) scales stay; (4) qzeros become one int8, 8. (INC-12)
function M:process(L)
  M.check_g_idx(self, L)
  local words, msg, code = M.gptq_words(self, L)
  if not words then return nil, msg, code end
  local p = L:replace("qweight", layout.transpose(words))
  p.logical, p.strides = { L.k / self.pack_factor, L.n }, { 1, L.k / self.pack_factor }
  L:replace("qzeros", tensor.new("i8", { 1 }, { 8 }))
  L.steps = { "qweight", "column-major", "scales", "qzeros" }
  return true
end

--- method:quant() -> nil
function M.quant() end

--- method:apply(L, x [, bias]) -> y [.., n] in x's dtype: x · ((q-8)*s) + bias, the bias inside the product. (INC-14)
-- With the backend w4a8, from 512 tokens on, x is quantized to int8, a scale a token.
function M:apply(L, x, bias)
  if not L.steps then error(("layer %s is not processed yet: call process after loading"):format(L.name), 2) end
  local flat, shape = linear.rows(L, x)
  if self.options.backend == "w4a8" and flat:size(1) >= M.W4A8_TOKENS then
    local q, scales = layout.marlin.quantize_activations(flat, "int8")
    flat = compute.scale_rows(q:cast "f32", scales:reshape { scales:numel() })
  end
  local words = L:get "qweight"
  local y = gemm.packed(flat, { n = L.n, k = L.k, bits = 4, scales = L:get "scales", bias = linear.bias(L, bias, false),
    read = function(codes, row) layout.ct.unpack(words, 4, codes, row) end })
  return linear.shaped(y, x, shape, L.n)
end

-- ---- the probe for ARK (INC-16) ------------------------------------------------------

--- prober(import [, log]) -> probe() -> available, error, module, class
-- import: function(name) -> module | nil, text, asked for "auto_round_kernel" and "auto_round_kernel.qlinear" (whose
-- QuantLinear is the class). What it finds is found once. Missing: false, the text; a module with neither cpu_lib nor
-- xpu_lib: false, a sentence; else true, nil, module, class and two lines to log(level, text).
function M.prober(import, log)
  local answer
  local function look()
    local module, why = import "auto_round_kernel"
    if not module then return { false, why } end
    local qlinear
    qlinear, why = import "auto_round_kernel.qlinear"
    if not qlinear then return { false, why } end
    if log then log("info", "Successfully imported auto_round_kernel.") end
    if module.cpu_lib == nil and module.xpu_lib == nil then return { false, "No ARK backend library is available." } end
    if log then log("info", "Successfully loaded auto_round_kernel backend library.") end
    return { true, nil, module, qlinear.QuantLinear }
  end
  return function()
    answer = answer or look()
    return answer[1], answer[2], answer[3], answer[4]
  end
end

--- probe() -> available, error, module, class: of a Lua module auto_round_kernel on this machine, looked for once.
M.probe = M.prober(function(name)
  local ok, module = pcall(require, name)
  if ok then return module end
  return nil, ("No module named %q"):format(name)
end)

return M
