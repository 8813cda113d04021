-- Any architecture: int8 weights by output channel, int8 activations by token.
local r = recipe "any-w4a16"
r.name = "any-w8a8"
r.scheme, r.group = "W8A8", nil
return r
