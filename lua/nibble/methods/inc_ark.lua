-- methods.inc_ark: AutoRound (INC) linear layers on ARK's kernels: the layer's tensors
-- are handed to a linear object of that package, which computes (SYSTEMS INC-17).
local inc = require "nibble.methods.inc"
local linear = require "nibble.methods.linear"

local M = { name = "inc_ark", monolithic = false, min_capability = 0 }
M.__index = M

local tags = { f16 = "fp16", bf16 = "bf16", f32 = "fp32" }

--- new({bits =, group =, sym =, is_awq =}, {probe = inc.probe, backend =, log =, compat =}) -> method | nil, msg, code
-- Where the probe found nothing: its sentence.
function M.new(config, options)
  local o = options or {}
  local available, why, _, class = (o.probe or inc.probe)()
  if not available then return nil, "inc_ark: " .. why, "eunsupported" end
  local method = inc.new(config, o)
  method.class = class
  return setmetatable(method, M)
end

--- method:create(L) -> true | nil, msg, code: the parameters of nibble.methods.inc.
function M:create(L)
  local groups, msg, code = inc.parameters(self, L)
  if not groups then return nil, msg, code end
  return true
end

--- method:process(L) -> true | nil, msg, code
-- After loading: class.new{bits, group, sym, in_features, out_features, bias} makes the linear object; it gets qweight in
-- GPTQ's packing, qzeros, scales in the layer's dtype and a copy of the bias, and post_init() is called. L.ark keeps it
-- and the tags of its compute, weight and scale types; the layer's qzeros and scales are given back. (INC-17)
function M:process(L)
  inc.check_g_idx(self, L)
  local words, msg, code = inc.gptq_words(self, L)
  if not words then return nil, msg, code end
  local object = self.class.new { bits = self.bits, group = self.group, sym = self.sym, in_features = L.k,
                                  out_features = L.n, bias = L.bias }
  object.qweight, object.qzeros, object.scales = words, L:get "qzeros", L:get "scales"
  local bias = linear.bias(L, nil, false)
  object.bias = bias and bias:clone() or nil
  object:post_init()
  L.ark = { linear = object, compute_type = tags[L.dtype], weight_type = (self.sym and "s" or "u") .. self.bits,
            scale_type = tags[L:get("scales"):type()] }
  L:replace("qweight", words)
  L:replace("qzeros", nil)
  L:replace("scales", nil)
  return true
end

--- method:quant() -> nil
function M.quant() end

--- method:apply(L, x) -> y [.., n] in x's dtype, the bias included: linear:forward(x [m,k]) -> [m,n]
function M.apply(_, L, x)
  if not L.ark then error(("layer %s is not processed yet: call process after loading"):format(L.name), 2) end
  local flat, shape = linear.rows(L, x)
  local y = L.ark.linear:forward(flat)
  shape[#shape + 1] = L.n
  return y:reshape(shape)
end

return M
