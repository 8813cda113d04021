-- Any architecture: 4-bit weights in groups of 128, int8 activations by token.
local r = recipe "any-w4a16"
r.name = "any-w4a8"
r.scheme = "W4A8"
return r
