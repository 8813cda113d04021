-- Any architecture: NVFP4 weights, activations as they are.
local r = recipe "any-w4a16"
r.name = "any-nvfp4a16"
r.scheme, r.group = "NVFP4A16", nil
return r
