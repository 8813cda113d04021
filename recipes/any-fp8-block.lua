-- Any architecture: FP8 weights in blocks of 128x128, FP8 activations in groups of 128.
local r = recipe "any-w4a16"
r.name = "any-fp8-block"
r.scheme, r.group = "FP8_BLOCK", nil
return r
