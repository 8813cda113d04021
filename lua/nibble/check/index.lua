-- check.index: files, headers and index of a checkpoint, both ways (FORMATS 1).
local checkpoint = require "nibble.checkpoint"

-- What opening finds odd, by what its sentence says.
local odd = {
  { "metadata%.total_size", rule = "index-total", fix = "write the index again from the files' headers", repair = { kind = "index" } },
  { "lies beside", rule = "stray-file", fix = "remove the one that is stale", repair = { kind = "stray-file" } },
  { "numbered shards, but no", rule = "index-absent", fix = "write an index from the files' headers", repair = { kind = "index" } },
}

local function files(context, add)
  for _, f in ipairs(context.ck.findings or {}) do
    f.source = f.source or "safetensors"
    if f.tensor then context.explained[f.tensor:match "^(.*)%.[^.]*$" or f.tensor] = true end
    add(f)
  end
  for _, warning in ipairs(context.ck.warnings) do
    for _, kind in ipairs(odd) do
      if warning:find(kind[1]) then
        add { rule = kind.rule, severity = "warning", says = (warning:gsub("^%S*/", "")), fix = kind.fix, repair = kind.repair,
          source = "safetensors" }
      end
    end
  end
end

-- Weight files that the checkpoint doesn't have among its own.
local function stray(context, add)
  local ck, own = context.ck, {}
  if checkpoint.exists(ck.path) ~= "dir" then return end
  for _, file in ipairs(ck.files) do own[file] = true end
  for _, name in ipairs(checkpoint.list(ck.path) or {}) do
    if name:match "%.safetensors$" and not own[name] and not (ck.index and name == "model.safetensors") then
      add { severity = "note", file = name, key = "",
        says = ("%s is no part of the checkpoint%s"):format(name, ck.index and (": %s doesn't name it"):format(ck.index)
          or "; loaders that take every .safetensors file take it too"), fix = "move it out of the folder",
        repair = { kind = "stray-file" } }
    end
  end
end

-- model-00001-of-00003 without -00002-: the index may be right, and the numbers still say that something is gone.
local function gaps(context, add)
  local seen, total, stem = {}, nil, nil
  for _, file in ipairs(context.ck.files) do
    local s, i, n = file:match "^(.*)%-(%d+)%-of%-(%d+)%.safetensors$"
    if not i or (stem and (s ~= stem or n ~= total)) then return end
    seen[tonumber(i)], stem, total = true, s, n
  end
  for i = 1, math.min(tonumber(total) or 0, 100000) do
    local name = ("%s-%s-of-%s.safetensors"):format(stem, ("%0" .. #total .. "d"):format(i), total)
    if not seen[i] and checkpoint.exists(context.ck.dir .. "/" .. name) ~= "file" and not context.ck.findings then
      add { severity = "warning", file = name, key = "", says = ("the shards' numbers leave out %s, though the index names no tensor of "
        .. "it"):format(name), fix = "make sure that nothing is missing, and number the shards without gaps" }
    end
  end
end

local function tied(context, add)
  local config = context.config
  if not config or config.tie_word_embeddings ~= true then return end
  for _, name in ipairs { "lm_head", "language_model.lm_head", "model.lm_head" } do
    if context.by_name[name] then
      context.explained[name] = true
      add { severity = "warning", module = name, says = "tie_word_embeddings is true, but the checkpoint has a head of its own: loaders "
        .. "skip it or load it over the embedding", fix = "leave the head out, or set tie_word_embeddings to false",
        repair = { kind = "tie" } }
    end
  end
end

local frameworks = { pt = true, tf = true, flax = true, mlx = true }

local function metadata(context, add)
  local said = context.ck.metadata
  if next(said) ~= nil and not frameworks[said.format] then
    add { severity = "warning", file = context.ck.files[1], says = ("__metadata__ has no format that loaders know (%s)"):format(
      tostring(said.format)), fix = 'write "format": "pt" into __metadata__', repair = { kind = "metadata" }, source = "transformers" }
  end
end

return {
  { id = "files", about = "damaged, missing and doubled files, tensors and index entries", run = files },
  { id = "stray-file", about = ".safetensors files that belong to no index", run = stray },
  { id = "shard-numbers", about = "gaps in the shards' numbers", run = gaps },
  { id = "metadata-format", about = "__metadata__ without a format, at which loaders stop", run = metadata },
  { id = "tied-head", about = "a stored head though it is tied to the embedding", run = tied },
}
