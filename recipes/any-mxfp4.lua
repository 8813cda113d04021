-- Any architecture: MXFP4 weights and activations.
local r = recipe "any-w4a16"
r.name = "any-mxfp4"
r.scheme, r.group = "MXFP4", nil
return r
