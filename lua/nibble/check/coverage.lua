-- check.coverage: what is quantized that consumers build unquantized, and what is left out that should be there: heads,
-- embeddings, routers, towers, experts, layers for speculative decoding.
local oracle = require "nibble.check.oracle"
local text = require "nibble.text"

local function embeddings(context, add)
  if not context.facts.oracle then return end
  for _, rec in ipairs(context.modules) do
    if (rec.scheme or rec.unreadable) and text.leaf(rec.name):find("embed", 1, true) and not context.explained[rec.name] then
      context.explained[rec.name] = true
      add { module = rec.name, says = "the embedding is quantized, and the consumer builds it unquantized", fix = "leave embeddings "
        .. "float, and name them in the ignore list" }
    end
  end
end

local function heads(context, add)
  oracle.tell(context, add, "head", function(r)
    return { says = "the head is quantized, and " .. r.says, fix = "leave the head float, or let the config name it (lm_head = true, "
      .. 'or a target "re:.*lm_head")' }
  end)
end

local function routers(context, add)
  oracle.tell(context, add, "router", function()
    return { says = "the router is quantized, and the consumer builds it unquantized", fix = "leave routers float: they are "
      .. "small, and choose the experts" }
  end)
end

local function towers(context, add)
  for _, rec in ipairs(context.modules) do
    if rec.scheme and oracle.is_tower(rec.name) and not context.explained[rec.name] then
      add { severity = "warning", module = rec.name, key = "", says = "a tower's module is quantized, and many models' towers are "
        .. "built unquantized", fix = "leave the tower float, and name it in the ignore list" }
    end
  end
end

-- Experts of architectures whose config nibble doesn't know: numbers and projections that others have.
local function experts(context, add)
  if context.arch then return end
  local blocks, order = {}, {}
  for _, rec in ipairs(context.modules) do
    local block, index, leaf = rec.name:match "^(.*%f[^.%z]experts)%.(%d+)%.([^.]+)$"
    if block then
      local b = blocks[block]
      if not b then
        b = { has = {}, leaves = {}, last = -1 }
        blocks[block], order[#order + 1] = b, block
      end
      b.has[index .. "." .. leaf], b.leaves[leaf] = true, true
      b.last = math.max(b.last, tonumber(index))
    end
  end
  for _, block in ipairs(order) do
    local b = blocks[block]
    for e = 0, math.min(b.last, 65535) do
      for leaf in pairs(b.leaves) do
        if not b.has[e .. "." .. leaf] then
          add { module = ("%s.%d.%s"):format(block, e, leaf), key = "", says = "other experts of the layer have it, and this one doesn't",
            fix = "get the files again, or quantize again with every expert" }
        end
      end
    end
  end
end
require("nibble.ffi").interpreted(experts)

local function speculative(context, add)
  local c = context.config
  local more = c and c.num_nextn_predict_layers
  local layers = c and c.num_hidden_layers
  if type(more) ~= "number" or more < 1 or type(layers) ~= "number" or context.partial then return end
  for _, rec in ipairs(context.modules) do
    local layer = tonumber(rec.name:match "%.layers%.(%d+)%.")
    if (layer and layer >= layers) or rec.name:find("mtp", 1, true) or rec.name:find("nextn", 1, true) then return end
  end
  add { severity = "warning", file = "config.json", says = ("num_nextn_predict_layers is %d, and no file has those layers: speculative "
    .. "decoding with them fails"):format(more), source = "config.json",
    fix = "copy them from the model, or set num_nextn_predict_layers to 0" }
end

return {
  { id = "embedding-quantized", about = "embeddings quantized though the consumer builds them unquantized", consumer = true,
    run = embeddings },
  { id = "head-quantized", about = "a quantized head that the config doesn't name", consumer = true, run = heads },
  { id = "router-quantized", about = "quantized routers", consumer = true, run = routers },
  { id = "tower-quantized", about = "quantized vision and audio towers", run = towers },
  { id = "experts-incomplete", about = "experts and projections that others of the layer have", run = experts },
  { id = "mtp-missing", about = "layers for speculative decoding that config.json means", run = speculative },
}
