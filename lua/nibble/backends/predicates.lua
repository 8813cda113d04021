-- backends.predicates: the small checks that the consumers' tables are made of. A check in a table
-- is an array, its name first: {"capability", min = 90}, {"group", -1, 64, 128}, {"multiple", "n", 64}.
--
-- Each predicate is {stage, says = words for a list of rules, check = function(q, c) -> reason | nil};
-- the reason goes on from "the backend …". Stages are the order in which a MoE backend's checks are asked (ORC-09):
-- 1 device, 2 non-gated MLP, 3 activation function, 4 weights and activations, 5 parallel config, 6 hash
-- routing, 7 routes changed, 8 routing method, 9 dtype of the router's logits, 10 sizes, 11 activation
-- format, 12 batch invariance, 13 LoRA.
local M = {}

local platforms = { cuda = "CUDA", rocm = "ROCm", xpu = "XPU", cpu = "the CPU" }

local function has(list, x, from)
  for i = from or 1, #list do if list[i] == x then return true end end
  return false
end

local function join(list, from, last)
  local out = {}
  for i = from or 1, #list do out[#out + 1] = tostring(list[i]) end
  if #out > 1 and last then
    local tail = table.remove(out)
    return table.concat(out, ", ") .. " " .. last .. " " .. tail
  end
  return table.concat(out, ", ")
end

-- The members of c from its second on are what is taken; value is what was found.
local function among(c, value, what)
  if has(c, value, 2) then return nil end
  return ("takes %s %s, found %s"):format(what, join(c, 2, "or"), tostring(value))
end

local function list_of(what) return function(c) return what .. " " .. join(c, 2) end end

-- ---- device (stage 1) ------------------------------------------------------------

M.platform = { stage = 1, says = function(c)
  local out = {}
  for i = 2, #c do out[#out + 1] = platforms[c[i]] end
  return "on " .. join(out, 1, "or")
end, check = function(q, c)
  if has(c, q.platform, 2) then return nil end
  local out = {}
  for i = 2, #c do out[#out + 1] = platforms[c[i]] end
  return ("needs %s, found %s"):format(join(out, 1, "or"), platforms[q.platform])
end }

local function capability_text(c)
  if c.below then return ("SM %d to %d"):format(c.min, c.below - 1) end
  if c.min then return ("SM %d or above"):format(c.min) end
  local out = {}
  for _, sm in ipairs(c.exact or {}) do out[#out + 1] = tostring(sm) end
  for _, family in ipairs(c.family or {}) do out[#out + 1] = ("%dx"):format(family / 10) end
  return "SM " .. join(out, 1, "or")
end

-- min = 75 (and below = 100); or exact = {90} and family = {100, 120} (100 to 109, 120 to 129). Devices without one
-- pass.
M.capability = { stage = 1, says = capability_text, check = function(q, c)
  local sm = q.capability
  if q.platform ~= "cuda" then return nil end
  if c.min and sm >= c.min and sm < (c.below or math.huge) then return nil end
  if c.exact and has(c.exact, sm) then return nil end
  if c.family and has(c.family, math.floor(sm / 10) * 10) then return nil end
  return ("needs %s, found SM %d"):format(capability_text(c), sm)
end }

-- {"absent", reason}: a kernel that is not there at all, whatever is asked.
M.absent = { stage = 1, says = function() return "not there yet" end, check = function(_, c) return c[2] end }

M.chip = { stage = 1, says = list_of "chips", check = function(q, c)
  if q.platform ~= "rocm" or has(c, q.chip, 2) then return nil end
  return ("needs the chip %s, found %s"):format(join(c, 2, "or"), q.chip or "no gfx name")
end }

M.package = { stage = 1, says = list_of "package", check = function(q, c)
  if q.packages[c[2]] then return nil end
  return ("needs the package %s, which is not installed"):format(c[2])
end }

-- Arm has its own two primitives for 4-bit weights with 8-bit activations; elsewhere nothing is asked. (CTM-W4A8-02)
M.arm_primitives = { stage = 1, says = function() return "on Arm, the dynamic 4-bit primitives" end,
  check = function(q, c)
  if q.arch ~= "arm" or q.packages.dynamic_4bit then return nil end
  return ("needs the dynamic 4-bit primitives (pack and matmul), which %s %s lacks: use a newer build"):format(c[2],
    q.versions and q.versions[c[2]] or "of an unknown version")
end }

-- ---- the MLP (stages 2, 3) -----------------------------------------------------------

M.gated = { stage = 2, says = function() return "gated MLPs" end, check = function(q)
  if not q.gated then return "takes no non-gated MLP" end
end }

M.activation_fn = { stage = 3, says = list_of "activation functions",
  check = function(q, c) return among(c, q.activation_fn, "the activation functions") end }

-- ---- weights and activations (stage 4) ---------------------------------------------------

M.weights = { stage = 4, says = list_of "weights",
  check = function(q, c) return among(c, q.weight.key, "weights of") end }

-- {"schemes", {"fp8 tensor", "fp8 tensor static"}, …}: weights and activations together; a pair's second "any" takes
-- all. "fp8 block" stands for every block shape.
local function pairs_text(c)
  local out = {}
  for i = 2, #c do out[#out + 1] = c[i][2] == "any" and c[i][1] or c[i][1] .. " x " .. c[i][2] end
  return join(out, 1, "or")
end
M.schemes = { stage = 4, says = pairs_text, check = function(q, c)
  local w, a = q.weight.key, q.activation_key
  local every_block = q.weight.block and "fp8 block"
  for i = 2, #c do
    local p = c[i]
    local capability = not p.capability or not M.capability.check(q, p.capability)
    if (p[1] == w or p[1] == every_block) and (p[2] == a or p[2] == "any") and capability then return nil end
  end
  return ("takes %s, found %s x %s"):format(pairs_text(c), w, a)
end }

M.type = { stage = 4, says = list_of "types", check = function(q, c) return among(c, q.weight.scalar, "the types") end }

-- with = {…} where there are zero-points, without = {…} where there are none.
M.type_by_zero_points = { stage = 4, says = function(c)
  return ("types %s with zero-points, %s without"):format(join(c.with), join(c.without))
end, check = function(q, c)
  local allowed = q.weight.zero_points and c.with or c.without
  if has(allowed, q.weight.scalar) then return nil end
  return ("takes the types %s %s zero-points, found %s"):format(join(allowed, 1, "or"),
    q.weight.zero_points and "with" or "without", q.weight.scalar)
end }

M.bits = { stage = 4, says = list_of "bits",
  check = function(q, c) return among(c, q.weight.bits, "weights of bits") end }

M.kind_of_weight = { stage = 4, says = list_of "weights",
  check = function(q, c) return among(c, q.weight.type, "weights of kind") end }

-- {"bits_symmetric", 4, 8}: symmetric weights of these widths.
M.bits_symmetric = { stage = 4, says = function(c) return "symmetric " .. join(c, 2) .. " bits" end,
  check = function(q, c)
  if q.weight.symmetric and has(c, q.weight.bits, 2) then return nil end
  return ("takes symmetric weights of %s bits only, found %d bits, %s"):format(join(c, 2, "or"), q.weight.bits,
    q.weight.symmetric and "symmetric" or "asymmetric")
end }

M.symmetric = { stage = 4, says = function() return "no zero-points" end, check = function(q)
  if q.weight.zero_points then return "takes no zero-points" end
end }

M.zero_points = { stage = 4, says = function() return "zero-points" end, check = function(q)
  if not q.weight.zero_points then return "needs zero-points, found symmetric weights" end
end }

M.no_bias = { stage = 4, says = function() return "no bias" end, check = function(q)
  if q.bias then return "takes no bias" end
end }

M.no_actorder = { stage = 4, says = function() return "no act-order" end, check = function(q)
  if q.weight.actorder then return "takes no act-order" end
end }

M.actorder_whole_k = { stage = 4, says = function() return "act-order only with the whole K" end, check = function(q)
  if q.weight.actorder and q.k ~= q.k_full then
    return ("takes act-order only with the whole K on each rank, found %d of %d"):format(q.k, q.k_full)
  end
end }

M.actorder_in_groups = { stage = 4, says = function() return "act-order only with groups" end, check = function(q)
  local g = q.weight.group
  if not q.weight.actorder then return nil end
  local cut = q.intermediate ~= q.intermediate_full -- w2 then counts as a part of more groups
  if g == -1 or g >= (q.k_full or math.huge) or g >= (q.hidden or math.huge) or not cut and g >= (q.intermediate or math.huge) then
    return "takes act-order with more than one group only"
  end
end }

-- Sorting by group and 8-bit input cannot go together: the repack kernel has no such case. (C-28, MRL-32)
M.actorder_wide_input = { stage = 4, says = function() return "act-order only with 16-bit input" end,
  check = function(q)
  if q.weight.actorder and (q.input == "int8" or q.input == "fp8") then
    return ("takes act-order with 16-bit input only, found %s"):format(q.input)
  end
end }

M.layout = { stage = 4, says = list_of "layouts", check = function(q, c)
  if not q.weight.format or has(c, q.weight.format, 2) then return nil end
  return ("takes the layout %s, found %s"):format(join(c, 2, "or"), q.weight.format)
end }

M.only_layout = { stage = 4, says = list_of "layouts", check = function(q, c)
  if has(c, q.weight.format, 2) then return nil end
  return ("takes %s only, found %s: %s"):format(join(c, 2, "or"), q.weight.format or "another format", c.advice)
end }

M.not_layout = { stage = 4, says = list_of "not the layouts", check = function(q, c)
  if has(c, q.weight.format, 2) then return ("takes no weights in the %s layout"):format(q.weight.format) end
end }

M.ggml = { stage = 4, says = list_of "GGML types",
  check = function(q, c) return among(c, q.weight.ggml, "the GGML types") end }

-- {"strategy", "group", "channel"}
M.strategy = { stage = 4, says = list_of "scales by",
  check = function(q, c) return among(c, q.weight.strategy, "scales by") end }

M.activations = { stage = 4, says = list_of "activations",
  check = function(q, c) return among(c, q.activation_key, "activations of") end }

-- {"activations_of", "int", 8}: of a kind and a width, whatever their scales.
M.activations_of = { stage = 4, says = function(c) return ("%s%d activations"):format(c[2], c[3]) end,
  check = function(q, c)
  local a = q.activation
  if not a or (a.type or "int") ~= c[2] or a.bits ~= c[3] then
    return ("takes %s%d activations, found %s"):format(c[2], c[3], q.activation_key)
  end
end }

M.symmetric_activations = { stage = 4, says = function() return "activations without zero-points" end, check = function(q)
  if q.activation and q.activation.symmetric == false then return "takes no activations with zero-points" end
end }

M.wide_input = { stage = 4, says = function() return "16-bit input" end, check = function(q)
  if q.given_input == "int8" or q.given_input == "fp8" then
    return ("takes no 8-bit activations with %s weights, found %s"):format(q.weight.key, q.given_input)
  end
end }

-- What decoding to float32 covers: integers of 2 to 8 bits, and the float formats.
M.decodes = { stage = 4, says = function() return "2- to 8-bit integers, FP8, NVFP4, MXFP4, MXFP8" end,
  check = function(q)
  local w = q.weight
  if w.format == "gguf" then return "takes no GGUF weights yet: only safetensors layouts" end
  local int = w.type == "int"
  if int and (w.bits < 2 or w.bits > 8) then return ("takes integers of 2 to 8 bits, found %d"):format(w.bits) end
  if not int and w.bits ~= 8 and w.bits ~= 4 then return ("takes floats of 4 or 8 bits, found %d"):format(w.bits) end
end }

M.input = { stage = 4, says = list_of "input", check = function(q, c) return among(c, q.input, "input of") end }

M.output = { stage = 4, says = list_of "output", check = function(q, c) return among(c, q.dtype, "output of") end }

-- 8-bit input goes with these types only. (MRL-47)
M.narrow_input_type = { stage = 4, says = list_of "8-bit input with", check = function(q, c)
  if (q.input == "int8" or q.input == "fp8") and not has(c, q.weight.scalar, 2) then
    return ("takes %s input with %s weights only, found %s"):format(q.input, join(c, 2, "or"), q.weight.scalar)
  end
end }

M.group = { stage = 4, says = function(c) return "groups " .. join(c, 2) .. (c.or_full and " or K" or "") end,
  check = function(q, c)
    local g = q.weight.group
    if has(c, g, 2) or (c.or_full and g == q.k_full) then return nil end
    return ("takes the group sizes %s%s, found %d"):format(join(c, 2, c.or_full and nil or "or"),
      c.or_full and (" or the whole K (%s)"):format(tostring(q.k_full)) or "", g)
  end }

M.group_by_input = { stage = 4, says = function(c)
  return ("groups %s (16-bit input), %s (8-bit)"):format(join(c.wide), join(c.narrow))
end, check = function(q, c)
  local narrow = q.input == "int8" or q.input == "fp8"
  local allowed = narrow and c.narrow or c.wide
  if has(allowed, q.weight.group) then return nil end
  return ("takes the group sizes %s with %s input, found %d"):format(join(allowed, 1, "or"), q.input, q.weight.group)
end }

M.group_positive = { stage = 4, says = function() return "group above 0" end, check = function(q)
  if q.weight.group <= 0 then return ("takes groups, not channels: found the group size %d"):format(q.weight.group) end
end }

M.group_multiple = { stage = 4, says = function(c) return ("groups of a multiple of %d"):format(c[2]) end,
  check = function(q, c)
  local g = q.weight.group
  if g ~= -1 and g % c[2] ~= 0 then return ("takes groups of a multiple of %d, found %d"):format(c[2], g) end
end }

-- What 64 rows of a tile divide into, or are divided by.
M.group_tiles = { stage = 4, says = function() return "groups of 32, 64 or a multiple of 128, or one" end, check = function(q)
  local g = q.weight.group
  if g == -1 or g == 32 or g == 64 or g % 128 == 0 or q.k and g >= q.k then return nil end
  return ("takes groups of 32, 64 or a multiple of 128 rows, or one, found %d"):format(g)
end }

-- ---- parallel config, routing (stages 5 to 9) ---------------------------------------------

M.all2all = { stage = 5, says = list_of "all-to-all", check = function(q, c)
  if q.all2all and not has(c, q.all2all, 2) then
    return ("takes the all-to-all %s, found %s"):format(#c > 1 and join(c, 2, "or") or "(none)", q.all2all)
  end
end }

M.not_all2all = { stage = 5, says = list_of "not the all-to-all", check = function(q, c)
  if has(c, q.all2all, 2) then return ("does not work with the all-to-all %s"):format(q.all2all) end
end }

M.no_eplb = { stage = 5, says = function() return "no expert balancing" end, check = function(q)
  if q.eplb then return "takes no balancing of experts across ranks (EPLB)" end
end }

M.no_sequence_parallel = { stage = 5, says = function() return "no sequence parallelism" end, check = function(q)
  if q.sequence_parallel then return "takes no sequence parallelism" end
end }

M.no_expert_parallel = { stage = 5, says = function() return "no expert parallelism" end, check = function(q)
  if q.ep > 1 then return ("takes no expert map: expert parallelism is %d"):format(q.ep) end
end }

M.expert_parallel = { stage = 5, says = function() return "expert parallelism" end, check = function(q)
  if q.ep == 1 then return "is for expert parallelism only" end
end }

M.hash_routing = { stage = 6, says = function() return "no hash routing" end, check = function(q)
  if q.routing.hash then return "takes no hash routing" end
end }

M.changed_routes = { stage = 7, says = function() return "no routes changed after routing" end, check = function(q)
  if q.routing.changed then return "routes by itself, so routes cannot be changed after routing" end
end }

M.routing = { stage = 8, says = list_of "routing",
  check = function(q, c) return among(c, q.routing.method, "the routing") end }

-- {"logits", "bf16", f32_routing = {…}}: f32_routing names the routings that take f32 logits besides.
M.logits = { stage = 9, says = list_of "router logits", check = function(q, c)
  local dtype = q.routing.logits
  if has(c, dtype, 2) or (dtype == "f32" and c.f32_routing and has(c.f32_routing, q.routing.method)) then return nil end
  return ("takes router logits of %s, found %s with the routing %s"):format(join(c, 2, "or"), dtype, q.routing.method)
end }

-- ---- sizes (stage 10) ------------------------------------------------------------------

local names = { n = "N", k = "K", k_full = "the whole K", hidden = "the hidden size",
  intermediate = "the intermediate size", intermediate_full = "the whole intermediate size" }

-- {"multiple", "n", 64}; what is not known passes.
M.multiple = { stage = 10, says = function(c) return ("%s of a multiple of %d"):format(names[c[2]], c[3]) end,
  check = function(q, c)
    local size = q[c[2]]
    if size and size % c[3] ~= 0 then
      return ("needs %s of a multiple of %d, found %d%s"):format(names[c[2]], c[3], size, c.advice and ": " .. c.advice
        or "")
    end
  end }

-- GGUF: K of whole blocks of the weight's type.
M.whole_blocks = { stage = 10, says = function() return "K of whole blocks" end, check = function(q)
  local name = q.weight.ggml or ""
  local block = name:match "^[QT]%d_K$" and 256 or name:match "^IQ" and name ~= "IQ4_NL" and 256 or name:match "^TQ"
    and 256
    or name:match "^B?F%d+$" and 1 or name == "NVFP4" and 64 or 32
  local size = q.k or q.hidden
  if size and size % block ~= 0 then
    return ("needs K of a multiple of %d, the block of %s, found %d"):format(block, name, size)
  end
end }

-- {"multiple_of_group", "intermediate", least = 64}: a multiple of max(least, group). actorder = true: in act-order each rank
-- has the scales of all groups, so that the group need only divide the whole of it.
M.multiple_of_group = { stage = 10, says = function(c) return names[c[2]] .. " of a multiple of the group" end,
  check = function(q, c)
    local size, least = q[c[2]], q.tile_padding and 1 or c.least or 1
    if c.actorder and q.weight.actorder then
      return M.group_divides.check(q, { "group_divides", c[2] .. "_full" }) or M.multiple.check(q, { "multiple", c[2], least })
    end
    -- Where the deployment pads tiles, only the group must divide. (MRL-08)
    local unit = math.max(least, q.weight.group)
    if size and size % unit ~= 0 then
      return ("needs %s of a multiple of %d (group %d), found %d"):format(names[c[2]], unit, q.weight.group, size)
    end
  end }

M.group_divides = { stage = 10, says = function(c) return "the group divides " .. names[c[2]] end,
  check = function(q, c)
  local size, g = q[c[2]], q.weight.group
  if size and g > 0 and size % g ~= 0 then
    return ("needs %s of a multiple of the group size %d, found %d"):format(names[c[2]], g, size)
  end
end }

-- The group, or a half, a quarter … of at least 32, divides both sizes of experts, so that scales can be repeated. (AWQ-40)
M.group_halves = { stage = 10, says = function() return "the group or a half of it divides both sizes" end, check = function(q)
  local g, h, i = q.weight.group, q.hidden, q.intermediate
  if g <= 0 or not h or not i then return nil end
  while h % g ~= 0 or i % g ~= 0 do
    g = g / 2
    if g < 32 or g % 1 ~= 0 then
      return ("needs a group, or a half of it from 32 on, that divides %d and %d, found %d"):format(h, i, q.weight.group)
    end
  end
end }

-- Experts' blocks of FP8 scales: whole blocks of columns in the hidden size, of rows in this rank's part of the intermediate size.
M.blocks_divide = { stage = 10, says = function() return "whole blocks" end, check = function(q)
  local b = q.weight.block
  if not b then return nil end
  if q.hidden and q.hidden % b[2] ~= 0 then
    return ("needs the hidden size of a multiple of the block's %d columns, found %d"):format(b[2], q.hidden)
  end
  if q.intermediate and q.intermediate % b[1] ~= 0 then
    return ("needs the intermediate size of a multiple of the block's %d rows, found %d"):format(b[1], q.intermediate)
  end
end }

-- A group must not reach over the edge of a rank's part of K; no padding mends that. actorder = true: in act-order, where
-- each rank has the scales of all groups, it may. (AWQ-21)
M.group_in_rank = { stage = 10, says = function() return "no group over the edge of a rank" end, check = function(q, c)
  local g = q.weight.group
  if c.actorder and q.weight.actorder then return M.group_divides.check(q, { "group_divides", "k_full" }) end
  if q.k and g ~= -1 and g < q.k_full and q.k % g ~= 0 then
    return ("has a group over the edge of a rank: K = %d of this rank is not a multiple of the group size %d"):format(
      q.k, g)
  end
end }

-- Nor may a group or block of what tensor parallelism cuts: K or N of a linear layer, the intermediate size of experts.
M.scales_in_rank = { stage = 10, says = function() return "no group or block over the edge of a rank" end, check = function(q)
  local b, g = q.weight.block or { 1, q.weight.group }, nil
  local function torn(name, unit)
    local size, full = q[name], q[name .. "_full"]
    if size and full and size < full and unit > 1 and unit < full and size % unit ~= 0 then g = { names[name], size, unit } end
  end
  if q.kind == "moe" then torn("intermediate", b[1]) torn("intermediate", b[2])
  else
    torn("n", b[1])
    if not q.weight.actorder then torn("k", b[2]) end
  end
  return g and ("has a group or block over the edge of a rank: %s = %d of this rank is not a multiple of %d"):format(unpack(g))
end }

-- N (or {"packs", "k"}) must fill whole 32-bit words, in which zero-points (codes) are packed.
M.packs = { stage = 10, says = function(c) return names[c[2] or "n"] .. " fills whole words" end, check = function(q, c)
  local pack, size = math.floor(32 / q.weight.bits), q[c[2] or "n"]
  if size and size % pack ~= 0 then
    return ("needs %s of a multiple of %d (32 bits / %d), found %d"):format(names[c[2] or "n"], pack, q.weight.bits, size)
  end
end }

-- The Marlin tiles with act-order, where nothing is padded.
M.tiles_with_actorder = { stage = 10, says = function() return "whole tiles with act-order" end, check = function(q)
  if not q.weight.actorder then return nil end
  return M.multiple.check(q, { "multiple", "n", 64 }) or M.multiple.check(q, { "multiple", "k", 128 })
end }

M.experts_below = { stage = 10, says = function(c) return ("fewer than %d experts"):format(c[2]) end,
  check = function(q, c)
  if q.experts and q.experts >= c[2] then return ("takes fewer than %d experts, found %d"):format(c[2], q.experts) end
end }

M.no_router_weight_on_input = { stage = 10, says = function() return "no router weight on the input" end,
  check = function(q)
  if q.router_weight_on_input then return "takes no router weight on the input" end
end }

-- ---- format and the rest (stages 11 to 13) --------------------------------------------------

M.format = { stage = 11, says = function(c) return c[2] .. " activations" end, check = function(q, c)
  if q.format ~= c[2] then return ("serves %s activations, found %s"):format(c[2], q.format) end
end }

M.batch_invariance = { stage = 12, says = function() return "no batch invariance" end, check = function(q)
  if q.batch_invariant then return "is not batch invariant" end
end }

M.lora = { stage = 13, says = function() return "no LoRA" end, check = function(q)
  if q.lora then return "takes no LoRA" end
end }

return M
