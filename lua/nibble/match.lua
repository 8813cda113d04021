-- match: which entries of a quantization config mean a module, by its dotted name. Skip lists (AutoAWQ,
-- FP8), targets and ignore lists (compressed-tensors), lists of quantized layers (GPTQ), and what they
-- say of a layer that a consumer makes of several modules (qkv_proj of q, k and v).
--
-- fused: {qkv_proj = {"q_proj", "k_proj", "v_proj"}, …}, a fused layer's last name part -> its shards'.
local regex = require "nibble.regex"
local text = require "nibble.text"

local M = {}

--- match.modes: how a skip list's entry is compared with a name (AWQ-11).
M.modes = { "substring", "exact", "suffix" }

local compare = {
  substring = function(entry, name) return name:find(entry, 1, true) ~= nil end,
  exact = function(entry, name) return entry == name end,
  suffix = function(entry, name) -- at a dot: "proj" is no suffix of "q_proj"
    return entry == name or name:sub(-#entry - 1) == "." .. entry
  end,
}

-- The first entry that means the name, or nil.
local function first(entries, name, test)
  for _, entry in ipairs(entries) do
    if test(entry, name) then return entry end
  end
end

--- match.shards(name, fused) -> array of the shards' full names | nil when the name is of no fused layer.
-- Only the last part of the name is replaced. (AWQ-12)
function M.shards(name, fused)
  local parent, leaf = text.split_name(name)
  if leaf == "" then parent, leaf = "", name end
  local parts = fused and fused[leaf]
  if not parts then return nil end
  local out = {}
  for i, part in ipairs(parts) do out[i] = parent == "" and part or parent .. "." .. part end
  return out
end

-- Whether all shards agree: answer, entry | nil, msg, code. says(shard) -> entry or nil.
local function agree(name, shards, says, yes, no)
  local with, without, entry
  for _, shard in ipairs(shards) do
    local e, msg = says(shard)
    if msg then return nil, msg, "eformat" end
    if e then with, entry = with or shard, entry or e else without = without or shard end
  end
  if with and without then
    return nil, ("%s: %s is %s and %s is %s, but a fused layer's shards must share one precision; "
      .. "name all of %s or none"):format(name, text.leaf(with), yes, text.leaf(without), no,
        table.concat(shards, ", ")), "eformat"
  end
  return with ~= nil, entry
end

--- match.skipped(name, entries, {mode = "substring", fused =, moe = false}) -> true, entry | false | nil, msg, code
-- A skip list. A fused layer's own name wins; else all its shards must agree. A mixture-of-experts block
-- (moe, or in exact mode "experts" in the name) has no shards: in exact mode it is skipped when an entry
-- with "experts" holds its name. An empty entry, which would match everything, is refused. (AWQ-11 to AWQ-13)
function M.skipped(name, entries, options)
  local o = options or {}
  local mode = o.mode or "substring"
  local test = compare[mode]
  if not test then
    error(("skip mode %q%s"):format(tostring(mode), text.did_you_mean(mode, M.modes)), 2)
  end
  for i, entry in ipairs(entries) do
    if type(entry) ~= "string" or entry == "" then
      return nil, ("the skip list's entry %d is %s; it would match everything, take it out"):format(i,
        entry == "" and "empty" or "no name: " .. tostring(entry)), "eformat"
    end
  end
  local hit = first(entries, name, test)
  if hit then return true, hit end
  local shards = not o.moe and M.shards(name, o.fused)
  if shards then
    return agree(name, shards, function(shard) return first(entries, shard, test) end, "skipped", "not")
  end
  if mode == "exact" and (o.moe or name:find("experts", 1, true)) then
    hit = first(entries, name, function(entry, n)
      return entry:find("experts", 1, true) ~= nil and entry:find(n, 1, true) ~= nil
    end)
    if hit then return true, hit end
  end
  return false
end

-- ---- compressed-tensors' entries ------------------------------------------------

local compiled = {}

-- The regular expression of "re:…" | nil when it is none | nil, msg
local function pattern_of(target)
  local source = target:match "^re:(.*)$"
  if not source then return nil end
  local known = compiled[source]
  if known == nil then
    local r, msg = regex.compile(source)
    known = { r = r, msg = msg }
    compiled[source] = known
  end
  return known.r, known.msg
end

--- match.name(target, name) -> true | false | nil, msg: "re:" and a regular expression, matched at the
-- name's start, or the whole name. (CTM-SEL-02)
function M.name(target, name)
  local r, msg = pattern_of(target)
  if msg then return nil, msg end
  if not r then return target == name end
  return r:match(name)
end

--- match.module(target, name, class) -> true | false | nil, msg: by name, or the class's exact name.
function M.module(target, name, class)
  if target == class then return true end
  return M.name(target, name)
end

-- The first target that means the name | nil | nil, msg
local function first_target(targets, name)
  for _, target in ipairs(targets) do
    local yes, msg = M.name(target, name)
    if yes == nil then return nil, msg end
    if yes then return target end
  end
end

-- The first target that the class's name holds, whatever the case | nil, msg
local function first_class(targets, class)
  for _, target in ipairs(targets) do
    if target:sub(1, 3) == "re:" then
      local yes, msg = M.name(target, class)
      if yes == nil then return nil, msg end
      if yes then return target end
    elseif class:lower():find(target:lower(), 1, true) then
      return target
    end
  end
end

-- The fused layer's shards when each of them has a target: the first shard's.
local function fused_target(targets, name, fused)
  local hit
  for i, shard in ipairs(M.shards(name, fused) or {}) do
    local target, msg = first_target(targets, shard)
    if msg then return nil, msg end
    if not target then return nil end
    if i == 1 then hit = target end
  end
  return hit
end

--- match.target(targets, name, {class =, fused =}) -> target, how ("name" | "shards" | "class") | nil | nil, msg, code
-- By name, then by every shard of a fused layer, then by the class, whose name holds it. (CTM-SEL-02)
function M.target(targets, name, options)
  local o = options or {}
  local hit, msg = first_target(targets, name)
  if hit then return hit, "name" end
  if not msg then hit, msg = fused_target(targets, name, o.fused) end
  if hit then return hit, "shards" end
  if not msg and o.class then hit, msg = first_class(targets, o.class) end
  if hit then return hit, "class" end
  if msg then return nil, msg, "eunsupported" end
end

--- match.ignored(name, entries, fused) -> true, entry | false | nil, msg, code
-- compressed-tensors' ignore list; of a fused layer that isn't named itself all shards or none. (CTM-SEL-02)
function M.ignored(name, entries, fused)
  local shards = M.shards(name, fused)
  if shards and not first(entries, name, compare.exact) then
    return agree(name, shards, function(shard) return first_target(entries, shard) end, "ignored", "not")
  end
  local hit, msg = first_target(entries, name)
  if msg then return nil, msg, "eunsupported" end
  return hit ~= nil, hit
end

-- ---- GPTQ's list of quantized layers ----------------------------------------------

local function flattened(list, out)
  for _, v in ipairs(list) do
    if type(v) == "table" then flattened(v, out) else out[#out + 1] = v end
  end
  return out
end

--- match.listed(name, layers, fused) -> true, entry | false | nil, msg, code
-- modules_in_block_to_quantize, a list or a list of lists: a module is quantized when an entry is a part
-- of its name; an empty list means all. A fused layer's shards must agree.
function M.listed(name, layers, fused)
  local flat = flattened(layers, {})
  if #flat == 0 then return true end
  local shards = M.shards(name, fused)
  local function says(n) return first(flat, n, compare.substring) end
  if shards then return agree(name, shards, says, "quantized", "not") end
  local hit = says(name)
  return hit ~= nil, hit
end

--- match.layer_names(names, groups) -> array: what consumers call the layers that they make of these modules: the merged
-- ones of the fused groups ("….qkv_proj") and the mixtures of experts ("….experts").
function M.layer_names(names, groups)
  local out, seen = {}, {}
  local function add(name)
    if not seen[name] then out[#out + 1], seen[name] = name, true end
  end
  for _, name in ipairs(names) do
    local prefix, leaf = name:match "^(.-)([^.]*)$"
    local block = prefix:match "^(.*%f[^.%z]experts)%.%d+%.$"
    if block then add(block) end
    for _, group in ipairs(not block and groups or {}) do
      for _, member in ipairs(group) do
        if member == leaf then add(prefix .. group.as) end
      end
    end
  end
  return out
end

--- match.with_layers(names, groups) -> the names and those of match.layer_names.
function M.with_layers(names, groups)
  local out = {}
  for _, list in ipairs { names, M.layer_names(names, groups) } do
    for _, name in ipairs(list) do out[#out + 1] = name end
  end
  return out
end

--- match.fused_map(groups) -> fused: of {{"q_proj", "k_proj", "v_proj", as = "qkv_proj"}, …}, as nibble.models
-- tells them.
function M.fused_map(groups)
  local out = {}
  for _, group in ipairs(groups) do out[group.as] = { unpack(group) } end
  return out
end

return M
