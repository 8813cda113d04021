-- Any architecture: FP8 weights by output channel, FP8 activations by token.
local r = recipe "any-w4a16"
r.name = "any-fp8-dynamic"
r.scheme, r.group = "FP8_DYNAMIC", nil
return r
