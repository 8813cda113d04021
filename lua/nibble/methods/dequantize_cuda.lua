-- methods.dequantize_cuda: dense layers of any scheme on a CUDA device whose product nibble has no kernel for: their
-- codes lie there, become floats of the layer's dtype at every call, and cuBLASLt multiplies (weight-only).
local backends = require "nibble.backends"
local cuda = require "nibble.cuda"
local formats = require "nibble.formats"
local linear = require "nibble.methods.linear"

local M = { name = "dequantize_cuda", monolithic = false }
M.__index = M

--- new({scheme =, format =}, {on = "cuda"}) -> method | nil, msg, code
-- on: the device. Without one, or without cuBLASLt, the sentence why.
function M.new(config, options)
  local device, msg, code = cuda.device(options and options.on or "cuda")
  if not device then return nil, msg, code end
  local library
  library, msg, code = cuda.cublaslt()
  if not library then return nil, msg, code end
  return setmetatable({ config = config, device = device.name, sm = device.sm }, M)
end

--- method:create(L) -> true | nil, msg, code: what is refused, the oracle says why.
function M:create(L)
  local weight = setmetatable({ format = self.config.format }, { __index = self.config.scheme })
  local ok, msg, code = backends.select({ consumer = "nibble", kind = "linear", device = "sm_" .. self.sm, backend = M.name,
    name = L.name, weight = weight, dtype = L.dtype, k = L.k, n = L.n, k_full = L.k_full, n_full = L.n_full }, { change = false })
  if not ok then return nil, ("layer %s: %s"):format(L.name, msg), code end
  linear.register_bias(L)
  return true
end
