-- Any architecture: 8-bit weights in groups of 128.
local r = recipe "any-w4a16"
r.name = "any-w8a16"
r.scheme = "W8A16"
return r
