-- repair.files: files that contradict each other: the index and the headers, weights beside the index, metadata, side
-- files beside config.json (FORMATS 1).
local checkpoint = require "nibble.checkpoint"
local json = require "nibble.json"
local common = require "nibble.formats.common"
local text = require "nibble.text"

-- ---- the index -----------------------------------------------------------------------------

local now_words = {
  ["index-stale"] = "the entry is left out", ["index-wrong-file"] = "the entry names the file that holds it",
  ["index-unlisted"] = "listed", ["index-total"] = "the sum of the tensors' bytes", ["index-damaged"] = "written from the headers",
}

local function index(view, _, report)
  local by
  for _, f in ipairs(view.findings) do
    if f.repair and f.repair.kind == "index" then
      report.change { tensor = f.tensor, file = not f.tensor and f.file or nil, was = f.says, now = now_words[f.rule]
        or "written from the headers" }
      local module = f.rule == "index-stale" and text.split_name(f.tensor)
      if module and not view.by_name[f.tensor] then
        by = by or view:expected() -- its index entry was the last that was known of it
        if by[module] then
          report.cannot(("%s is in no file, and config.json means %s: its weights are lost, get %s again"):format(f.tensor, module,
            f.file))
        end
      end
    end
  end
  local unlisted = {}
  for _, t in ipairs(view.tensors) do
    if t.unlisted and not unlisted[t.file] then
      unlisted[t.file] = true
      report.change { file = t.file, was = "a shard by its number, which the index doesn't name", now = "its tensors are listed" }
    end
  end
  for _, d in ipairs(view.survey.doubled) do
    report.change { tensor = d.name, was = ("in two files with the same bytes, one of them %s"):format(d.file), now = "in one" }
  end
  if not view.survey.index and #view.files > 1 then
    report.change { file = "model.safetensors.index.json", was = ("missing beside %d numbered shards"):format(#view.files),
      now = "written from the headers" }
  end
end

local function stray(view, _, report)
  local own = {}
  for _, file in ipairs(view.files) do own[file] = true end
  for _, name in ipairs(checkpoint.list(view.dir) or {}) do
    if name:match "%.safetensors$" and not own[name] then
      report.change { file = name, was = ("weights beside %s, which %s"):format(view.survey.index or view.files[1],
        view.survey.index and "doesn't name it" or "is the checkpoint"), now = "left out" }
    end
  end
end

local function metadata(view, _, report)
  local bare = {}
  for _, file in ipairs(view.files) do
    if view.survey.parts[file].metadata.format == nil then bare[#bare + 1] = file end
  end
  if #bare == 0 then return end
  view.metadata.format = view.metadata.format or "pt"
  report.change { file = bare[1], was = ("no format in __metadata__%s"):format(#bare > 1 and (" (and in %d more files)"):format(#bare - 1)
    or ""), now = ('format "%s"'):format(view.metadata.format), why = "transformers reads it" }
end

-- ---- side files ----------------------------------------------------------------------------------

local aliases = { w_bit = "bits", q_group_size = "group_size", exclude_modules = "ignore" }

-- A side file's keys as config.json spells them; ModelOpt's lie one deeper.
local function spelled(config)
  local inner, out = type(config.quantization) == "table" and config.quantization or config, {}
  for key, value in pairs(common.null_free(inner)) do out[aliases[key] or key] = value end
  return out
end

-- The first key that both have with different values.
local function disagreement(a, b)
  a, b = spelled(a), spelled(b)
  for _, key in ipairs(json.keys(a)) do
    if b[key] ~= nil and json.encode(a[key]) ~= json.encode(b[key]) and key ~= "meta" and key ~= "producer" then
      return ("%s = %s"):format(key, json.encode(b[key])), ("%s = %s"):format(key, json.encode(a[key]))
    end
  end
end

local function side_files(view, _, report)
  local q = view.quantization
  if not q or not q.source:find "^config%.json" then return end
  local _, faults = view:modules()
  for _, name in ipairs(checkpoint.quant_files) do
    local side = view.texts[name] and json.decode(view.texts[name])
    local was, is
    if view.texts[name] and type(side) ~= "table" then was, is = "no JSON object", "the config" end
    if type(side) == "table" then was, is = disagreement(q.config, side) end
    if was and (#faults > 0 or faults.config) then
      report.cannot(("%s says %s and config.json says %s, which its tensors contradict (%s); mend config.json first"):format(name,
        was, is, faults.config or faults[1].unreadable))
    elseif was then
      local keeps = q.config.quant_method == "gptq" and name == "quantize_config.json"
      view:set_text(name, keeps and json.encode(q.config, { indent = 2 }) .. "\n" or nil)
      report.change { file = name, was = was, now = keeps and is .. ", as config.json" or "left out",
        why = "config.json says " .. is .. ", and the tensors fit it" }
    end
  end
end

return {
  { kind = "index", about = "stale, missing and wrong entries of the index; its total_size; tensors that are there twice", run = index,
    always = true },
  { kind = "stray-file", about = "weight files that are no part of the checkpoint are left out", run = stray, always = true },
  { kind = "metadata", about = '__metadata__ without format', run = metadata },
  { kind = "side-file", about = "quantize_config.json and the like that contradict config.json", run = side_files },
}
