-- methods.marlin_float_cuda: dense layers of FP8, MXFP8, MXFP4 and NVFP4 weights with 16-bit activations on a CUDA device,
-- whatever format stores them: put into Marlin's form after loading (methods.marlin_float), which pads what its tiles don't
-- divide, and multiplied there as methods.marlin_cuda does (SYSTEMS MRL-48, CTM-NVFP4-15, CTM-FP8-17).
local formats = require "nibble.formats"
local linear = require "nibble.methods.linear"
local marlin_cuda = require "nibble.methods.marlin_cuda"
local nffi = require "nibble.ffi"
local prepare = require("nibble.methods.marlin_float").prepare
local schemes = require "nibble.scheme"
local tensor = require "nibble.tensor"
local C = nffi.C

local M = setmetatable({ name = "marlin_float_cuda" }, { __index = marlin_cuda })
M.__index = M

--- new({scheme =, format =}, {on = "cuda"}) -> method | nil, msg, code
function M.new(config, options)
  local method, msg, code = marlin_cuda.new(config, options)
  return method and setmetatable(method, M), msg, code
end

--- method:create(L) -> true | nil, msg, code: what is refused, the oracle says why.
M.create = linear.create_on_device

--- method:read(L, ck) -> true | nil, msg, code: the layer's weight, stored in whatever format.
function M.read(_, L, ck)
  local msg, code
  L.weight, msg, code = formats.quantized(ck, L.name)
  if not L.weight then return nil, msg, code end
  return true
end

-- How many of the bytes are NaN, which the product there takes for numbers: of FP8 codes (cut = 128) or E8M0 scales (256).
local function nans_of(t, cut)
  local p, nans = t:as("u8", t:size()):ptr(), 0
  for i = 0, t:numel() - 1 do
    if p[i] % cut == cut - 1 then nans = nans + 1 end
  end
  return nans
end

-- A Quantized as marlin_float.prepare takes it, and the type of its codes.
local function described(q, dtype, bias)
  local s, m = q.scheme, { dtype = dtype, bias = bias, weight = q.codes, scale = q.scales }
  if s.bits == 4 then
    m.weight = tensor.new("u8", { q.n, q.k / 2 })
    nffi.must(C.nb_fp4_pack(m.weight, q.codes, 0))
  end
  if s.strategy == "tensor_group" then
    m.kind, m.global = "nvfp4", q.factor or tensor.new("f32", { 1 }, { 1 / q.global:get(1) })
  elseif s.scale_dtype == "e8m0" then m.kind = s.bits == 4 and "mxfp4" or "mxfp8"
  else
    local rows, columns = schemes.block(s, q.n, q.k)
    m.kind, m.scale = "fp8", q.scales:cast "f32"
    if rows > 1 or q.scales:size(2) > 1 then m.block = { rows, columns } end
  end
  return m, s.bits == 4 and "float4_e2m1f" or "float8_e4m3fn"
end

--- method:process(L) -> true | nil, msg, code
-- After loading: L keeps "words", "scales" and "bias" in Marlin's form on the device, and gives the loaded ones up.
function M:process(L)
  if L.order_of_words then error(("layer %s was processed: load it again"):format(L.name), 2) end
  local q = L.weight
  local nans = (q.scheme.bits == 8 and nans_of(q.codes, 128) or 0) + (q.scheme.scale_dtype == "e8m0" and nans_of(q.scales, 256) or 0)
  if nans > 0 then return nil, ("layer %s: %d of its codes or scales are NaN"):format(L.name, nans), "eformat" end
  local m, type = described(q, L.dtype, L:get "bias")
  local out, msg, code = prepare(m)
  if not out then return nil, msg, code end
  L.form = { type = type, dtype = L.dtype, outputs = L.n, global = out.global and out.global:get(1) or nil,
    k = out.words:size(1) * 16, n = out.words:size(2) * 2 / q.scheme.bits }
  for _, name in ipairs(L:names()) do L:replace(name, nil) end
  for _, name in ipairs { "words", "scales", "bias" } do
    if out[name] then
      local t
      t, msg, code = out[name]:to(self.device)
      if not t then return nil, msg, code end
      L:replace(name, t).permuted = name == "bias"
    end
  end
  L.weight, L.order_of_words = nil, "marlin"
  return true
end

--- method:matrix(L) -> the layer's weight as gemm.marlin takes it
function M.matrix(_, L) return setmetatable({ words = L:get "words", scales = L:get "scales" }, { __index = L.form }) end

return M
