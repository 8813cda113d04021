-- Experts of AWQ checkpoints in memory, and their forward pass in float32.
local nb = require "nibble"
local moe = require "nibble.moe"
local layer = require "nibble.methods.layer"
local ck = require "spec.support.awq"

local M = {}

--- experts{experts=, hidden=, intermediate=, group=, gated=true, bias=false, …} -> {[e] = {w1=, w2=, w3=}, o}
-- e from 0; each an AWQ matrix (support/awq.lua) with its bias.
function M.experts(o)
  local out = { o = o }
  local function matrix(n, k)
    local m = ck.matrix { n = n, k = k, group = o.group, bits = o.bits, dtype = o.dtype, scales = o.scales or ck.floats }
    m.bias = o.bias and ck.floats(o.dtype or "bf16", { n }, -1, 1)
    return m
  end
  for e = 0, o.experts - 1 do
    out[e] = { w1 = matrix(o.intermediate, o.hidden), w2 = matrix(o.hidden, o.intermediate),
               w3 = o.gated ~= false and matrix(o.intermediate, o.hidden) or nil }
  end
  return out
end

--- layer(set, options) -> a MoE layer of these experts' sizes.
function M.layer(set, options)
  local o = set.o
  return layer.new(setmetatable(options or {}, { __index = { name = "mlp.experts", kind = "moe", dtype = o.dtype or "bf16",
    experts = o.experts, hidden = o.hidden, intermediate = o.intermediate, gated = o.gated, bias = o.bias,
    disable_inplace = true } }))
end

--- load(L, set): every expert's tensors, as a checkpoint gives them.
function M.load(L, set)
  for e = 0, set.o.experts - 1 do
    for _, shard in ipairs { "w1", "w2", "w3" } do
      local m, w = set[e][shard], shard == "w2" and "w2" or "w13"
      for _, name in ipairs(m and { "qweight", "qzeros", "scales", "bias" } or {}) do
        if m[name] and L:get(w .. "_" .. name) then L:load_expert(w .. "_" .. name, m[name], shard, e) end
      end
    end
  end
  return L
end

--- forward(set, x, weights, ids [, options of moe.forward]) -> y: the dequantized reference.
function M.forward(set, x, weights, ids, options)
  local function run(m, rows) return ck.product(rows, m.w, m.bias or nil) end
  return moe.forward(x, setmetatable({
    ids = ids, weights = weights, experts = set.o.experts,
    w13 = function(e, rows)
      local gate = run(set[e].w1, rows)
      if not set[e].w3 then return gate end
      return gate, run(set[e].w3, rows)
    end,
    w2 = function(e, rows) return run(set[e].w2, rows) end,
  }, { __index = options or {} }))
end

--- routes(tokens, top, experts) -> weights f32 [T,k], ids i32 [T,k]: different experts for each token.
function M.routes(tokens, top, experts)
  local ids = nb.tensor("i32", { tokens, top })
  for t = 1, tokens do
    local first = math.random(0, experts - 1)
    for j = 1, top do ids:set({ t, j }, (first + j - 1) % experts) end
  end
  return ck.floats("f32", { tokens, top }, 0.1, 1), ids
end

--- close(want, found, share): every element within that share of the largest.
function M.close(want, found, share)
  local r = nb.compare(want, found)
  local bound = share * want:stats().absmax
  if r.odd > 0 or r.max_abs > bound then error(("differs by %g, at most %g is allowed"):format(r.max_abs, bound), 2) end
end

return M
