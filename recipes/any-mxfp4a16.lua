-- Any architecture: MXFP4 weights, activations as they are.
local r = recipe "any-w4a16"
r.name = "any-mxfp4a16"
r.scheme, r.group = "MXFP4A16", nil
return r
