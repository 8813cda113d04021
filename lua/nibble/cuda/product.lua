-- cuda.product: products of activations on a device with weights there.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local tensors = require "nibble.cuda.tensors"
local C = nffi.C

local M = {}

local function plain(t) return ffi.istype(tensors.type, t) and t.t or t end

-- marlin(x, weight, n [, outputs [, row_scale [, y [, dtype]]]]) -> y [rows, n] on the device | nil, msg, code
-- gemm.marlin's work where x lies on a device: x f16 or bf16 or, with 8-bit activations, their codes; weight(): the
-- nb_marlin_weight of tensors there, of n columns. y has that dtype (default: x's), and the first `outputs` of the columns, an
-- even number (default all). row_scale: f32 [rows,1] there, multiplies the rows of the product. y: a tensor there to fill
-- instead of a new one. (MRL-51)
function M.marlin(x, weight, n, outputs, row_scale, y, dtype)
  if y then return nffi.check(C.nb_device_marlin_gemm(y.t, x.t, weight(), plain(row_scale)), y) end
  local id = dtype and tensor.dtype_id(dtype) or x.t.dtype
  return tensors.make(x.t.device, function(out)
    if id ~= x.t.dtype or (outputs and outputs ~= n) then
      local rc = C.nb_tensor_new_on(out, x.t.device, id, 2, ffi.new("int64_t[2]", x.t.shape[0], outputs or n))
      if rc ~= 0 then return rc end
    end
    return C.nb_device_marlin_gemm(out, x.t, weight(), plain(row_scale))
  end)
end

return M
