-- cuda: the GPUs of this machine, and tensors in their memory.
--
-- A device is called as the driver and PyTorch call it: "cuda:0" is the first, "cuda" alone means it. A tensor there
-- is a type of its own, which no function for the computer's memory takes. Its functions are in cuda/.
local M = {}

for _, piece in ipairs { "devices", "tensors", "launch", "stream", "blas", "dequantize", "quantize", "fp8", "fp4" } do
  for name, value in pairs(require("nibble.cuda." .. piece)) do M[name] = value end
end

return M
