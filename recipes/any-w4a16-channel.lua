-- Any architecture: 4-bit weights, one scale an output channel.
local r = recipe "any-w4a16"
r.name = "any-w4a16-channel"
r.group = -1
return r
