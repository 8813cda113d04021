-- methods.activations_cuda: what dense layers on a CUDA device whose input is quantized too have in common (fp8_cuda,
-- nvfp4_cuda): the weight comes from any format, the input may lie on the device or not, and so does the output.
local cuda = require "nibble.cuda"
local linear = require "nibble.methods.linear"

local M = {}
local Method = {}

--- class(name) -> a method's class: new({scheme =, format =}, {on = "cuda", fnuz =}), create, read, process, quant, apply; its
-- keeps_f32 says that of an x of f32 nothing is rounded to 16 bits (methods.runner).
-- Who takes it gives it keep(self, L, q) -> true | nil, msg, code: the checkpoint's weight q (nibble.quantized) onto
-- self.device, by L:replace; and product(self, L, x, dtype, bias) -> y [m,n] of dtype there | nil, msg, code, of x [m,k]
-- f32, bf16 or f16 and bias [n] of dtype or nil; and may have output(self, L, dtype) -> the dtype that it makes y of for
-- an x of dtype, where that is another.
function M.class(name)
  local class = setmetatable({ name = name, monolithic = false, keeps_f32 = true }, { __index = Method })
  class.__index = class

  function class.new(config, options)
    options = options or {}
    if options.fnuz then
      return nil, name .. ": e4m3fnuz is the format of other makers' devices; NVIDIA's compute with e4m3fn", "eunsupported"
    end
    local device, msg, code = cuda.device(options.on or "cuda")
    if not device then return nil, msg, code end
    return setmetatable({ config = config, device = device.name, sm = device.sm }, class)
  end
  return class
end

--- method:create(L) -> true | nil, msg, code: what is refused, the oracle says why.
Method.create = linear.create_on_device

--- method:read(L, ck) -> true | nil, msg, code: this rank's part of the weight, stored in whatever format, to the device.
function Method:read(L, ck)
  local q, msg, code = linear.weight(L, ck)
  if not q then return nil, msg, code end
  return self:keep(L, q)
end

function Method.output(_, _, dtype) return dtype end

--- method:process(L) -> true: the bias waits for the dtype that is asked for.
function Method.process(_, L)
  L.biases = {}
  return true
end

--- method:quant() -> nil
function Method.quant() end

local function bias_of(self, L, dtype)
  local bias = linear.bias(L, nil, false)
  if not bias or L.biases[dtype] then return L.biases[dtype] end
  local msg, code
  L.biases[dtype], msg, code = linear.rounded(bias, dtype):to(self.device)
  return L.biases[dtype], msg, code
end

--- method:apply(L, x) -> y [.., n] in x's dtype | nil, msg, code
-- x f32, bf16 or f16 in the computer's memory, and y then too, or on the device, where y stays.
function Method:apply(L, x)
  local flat, shape = linear.rows(L, x)
  local here, dtype = x:where() == "cpu", self:output(L, x:type())
  local there, msg, code = flat:to(self.device)
  if not there then return nil, msg, code end
  local bias, y
  bias, msg, code = bias_of(self, L, dtype)
  if msg then return nil, msg, code end
  y, msg, code = self:product(L, there, dtype, bias)
  if y and here then y, msg, code = y:to "cpu" end
  if not y then return nil, msg, code end
  return linear.shaped(y, x, shape, L.n)
end

return M
