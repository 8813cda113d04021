-- Correctness: every device function against the CPU's. Repacks, permutations, dequantizing and quantizing to the bit; the
-- product against float64; primitives against the emulator. The functions are in pieces/, one file a piece.
local pieces = require "pieces"

return {
  title = "device functions against the CPU's",
  seconds = 140, emulated_seconds = 60,
  cases = function(ctx) return pieces.collect("correctness", ctx) end,
}
