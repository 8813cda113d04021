-- Any architecture: 4-bit weights in groups of 64.
local r = recipe "any-w4a16"
r.name = "any-w4a16-g64"
r.group = 64
return r
