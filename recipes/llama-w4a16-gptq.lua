-- The Llama policy, written as a GPTQ checkpoint: groups of 32, with zero-points.
local r = recipe "llama-w4a16"
r.name = "llama-w4a16-gptq"
r.group, r.symmetric = 32, false
r.rules = {}
r.output.format = "gptq_v2"
return r
