-- select.layers: a checkpoint's modules as the layers that a consumer makes of them: qkv_proj, gate_up_proj, mixtures
-- of experts; what tensor parallelism leaves of each on one rank.
local text = require "nibble.text"
local match = require "nibble.match"

local M = {}

-- What each rank gets of a linear layer, by the last part of its name: rows of the output (column parallel) or of
-- the input (row parallel); what is not named here is whole on every rank.
local row = { o_proj = true, down_proj = true, w2 = true, out_proj = true, c_proj = true, dense = true, fc2 = true,
  dense_4h_to_h = true, wo = true }
local column = { q_proj = true, k_proj = true, v_proj = true, qkv_proj = true, gate_proj = true, up_proj = true,
  gate_up_proj = true, w1 = true, w3 = true, w13 = true, lm_head = true, query_key_value = true, c_attn = true,
  c_fc = true, fc1 = true, dense_h_to_4h = true, wqkv = true }

local default_fused = {
  { "q_proj", "k_proj", "v_proj", as = "qkv_proj" }, { "gate_proj", "up_proj", as = "gate_up_proj" },
  { "w1", "w3", as = "w13" },
}

--- layers.structure(config) -> fused groups, the routers' name endings: of the architecture that config.json names.
function M.structure(config)
  local arch = config and require("nibble.models").of(config)
  return arch and arch.fused or default_fused, arch and arch.router or {}
end

-- The three projections of an expert by either naming -> first gate, up, down.
local expert_parts = {
  gate_proj = 1, up_proj = 2, down_proj = 3, w1 = 1, w3 = 2, w2 = 3,
}

-- "a.experts.7.gate_proj" -> "a.experts", 7, "gate_proj"
local function expert_of(name)
  local block, index, leaf = name:match "^(.*%f[^.%z]experts)%.(%d+)%.([^.]+)$"
  if block and expert_parts[leaf] then return block, tonumber(index), leaf end
end

local function is_head(name) return name == "lm_head" or name:match "%.lm_head$" ~= nil end

local function add_expert(out, blocks, rec, block, index, leaf)
  local layer = blocks[block]
  if not layer then
    layer = { name = block, kind = "moe", members = {}, experts = 0, parts = {} }
    blocks[block], out[#out + 1] = layer, layer
  end
  layer.members[#layer.members + 1] = rec
  layer.experts = math.max(layer.experts, index + 1)
  layer.parts[expert_parts[leaf]] = layer.parts[expert_parts[leaf]] or rec
end

-- Hidden and intermediate size of a mixture from its first expert: gate and up are [I, H], down is [H, I].
local function measure_experts(layer)
  local down, up = layer.parts[3], layer.parts[2] or layer.parts[1]
  layer.hidden = down and down.n or up and up.k
  layer.intermediate_full = down and down.k or up and up.n
  layer.gated = layer.parts[1] ~= nil and layer.parts[2] ~= nil
  layer.projections = {}
  for i = 1, 3 do
    if layer.parts[i] then layer.projections[#layer.projections + 1] = text.leaf(layer.parts[i].name) end
  end
end

-- The fused layer that a module belongs to, when all its siblings are there: "a.qkv_proj", group.
local function fused_of(name, groups, by_name)
  local parent, leaf = text.split_name(name)
  for _, group in ipairs(groups) do
    for _, member in ipairs(group) do
      if member == leaf then
        for _, sibling in ipairs(group) do
          if not by_name[parent .. "." .. sibling] then return nil end
        end
        return parent .. "." .. group.as, group, parent
      end
    end
  end
end

-- n of this rank of one output: heads that are fewer than ranks are kept whole on several.
local function part_of(n, tp, head_dim)
  if n % tp == 0 and (not head_dim or n / tp >= head_dim) then return n / tp end
  if head_dim and n % head_dim == 0 and tp % (n / head_dim) == 0 then return head_dim end
end

local function positive(v) return type(v) == "number" and v >= 1 and v < math.huge and v or nil end

-- Values of a head by config.json | nil; absent, null and what is no number are the same.
local function head_size(config)
  local hidden, heads = positive(config.hidden_size), positive(config.num_attention_heads)
  return positive(config.head_dim) or hidden and heads and hidden / heads
end

--- layers.shard(layer, tp [, config]) -> layer with n, k (or intermediate) of one rank | nil, msg
-- Sizes that do not divide among the ranks are told with both numbers.
function M.shard(layer, tp, config)
  local function refuse(what, size)
    return nil, ("%s: %s = %d does not divide among %d tensor-parallel ranks"):format(layer.name, what, size, tp)
  end
  if layer.kind == "moe" then
    if not layer.intermediate_full then return nil, layer.name .. ": the experts' sizes are not known" end
    layer.intermediate = layer.intermediate_full / tp
    if layer.intermediate % 1 ~= 0 then return refuse("the intermediate size", layer.intermediate_full) end
    return layer
  end
  if not layer.n_full then return layer end
  layer.n, layer.k = layer.n_full, layer.k_full
  local leaf = text.leaf(layer.name)
  layer.parallel = row[leaf] and "row" or column[leaf] and "column" or nil
  if tp == 1 then return layer end
  if layer.parallel == "row" then
    layer.k = layer.k_full / tp
    if layer.k % 1 ~= 0 then return refuse("K", layer.k_full) end
  elseif layer.parallel == "column" then
    layer.n = 0
    local head = leaf == "qkv_proj" and head_size(config or {})
    for _, size in ipairs(layer.outputs) do
      local part = part_of(size, tp, head or nil)
      if not part then return refuse("N", size) end
      layer.n = layer.n + part
    end
  end
  return layer
end

local function add_fused(out, made, name, group, parent, by_name)
  if made[name] then return end
  local layer = { name = name, kind = "linear", members = {}, outputs = {}, n_full = 0, fused = true }
  for i, leaf in ipairs(group) do
    local rec = by_name[parent .. "." .. leaf]
    layer.members[i], layer.outputs[i] = rec, rec.n
    layer.n_full, layer.k_full = layer.n_full + rec.n, rec.k
  end
  made[name], out[#out + 1] = layer, layer
end

--- layers.of(records, {fuses =, experts =, config =}) -> array of layers, in the records' order, and member name -> layer
-- A layer: {name, kind = "linear" | "lm_head" | "moe" | "router" | what the record says, members = {records}, n_full,
-- k_full, outputs = {sizes} | hidden, intermediate_full, experts, projections}.
function M.of(records, options)
  local groups, routers = M.structure(options.config)
  local by_name, out, blocks, made = {}, {}, {}, {}
  for _, rec in ipairs(records) do
    if rec.n then by_name[rec.name] = rec end
  end
  local function router(name)
    for _, ending in ipairs(routers) do
      if name:sub(-#ending - 1) == "." .. ending then return true end
    end
  end
  for _, rec in ipairs(records) do
    local block, index, leaf = expert_of(rec.name)
    local name, group, parent
    if options.fuses and rec.kind == "linear" and not block then
      name, group, parent = fused_of(rec.name, groups, by_name)
    end
    if (options.fuses or options.experts) and block then add_expert(out, blocks, rec, block, index, leaf)
    elseif name then add_fused(out, made, name, group, parent, by_name)
    else
      local kind = rec.kind
      if kind == "linear" and is_head(rec.name) then kind = "lm_head" end
      if kind == "linear" and router(rec.name) then kind = "router" end
      out[#out + 1] = { name = rec.name, kind = kind, members = { rec }, n_full = rec.n, k_full = rec.k,
        outputs = { rec.n } }
    end
  end
  local by_member = {}
  for _, layer in ipairs(out) do
    if layer.kind == "moe" then measure_experts(layer) end
    for _, rec in ipairs(layer.members) do by_member[rec.name] = layer end
    by_member[layer.name] = by_member[layer.name] or layer
  end
  return out, by_member, match.fused_map(groups)
end

return M
