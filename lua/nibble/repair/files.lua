-- repair.files: files that contradict each other: the index and the headers, weights beside the index, metadata (FORMATS 1).
local checkpoint = require "nibble.checkpoint"
local text = require "nibble.text"

-- ---- the index -----------------------------------------------------------------------------

local now_words = {
  ["index-stale"] = "the entry is left out", ["index-wrong-file"] = "the entry names the file that holds it",
  ["index-unlisted"] = "listed", ["index-total"] = "the sum of the tensors' bytes", ["index-damaged"] = "written from the headers",
}

-- Modules that config.json means and of which no tensor is left.
local function lost_modules(view)
  local out, here = {}, {}
  for _, t in ipairs(view.tensors) do here[text.split_name(t.name)] = true end
  for module in pairs(view:expected()) do out[module] = not here[module] end
  return out
end
require("nibble.ffi").interpreted(lost_modules)

local function index(view, _, report)
  local lost
  for _, f in ipairs(view.findings) do
    if f.repair and f.repair.kind == "index" then
      report.change { tensor = f.tensor, file = not f.tensor and f.file or nil, was = f.says, now = now_words[f.rule]
        or "written from the headers" }
      local module = f.rule == "index-stale" and text.split_name(f.tensor)
      if module and not view.by_name[f.tensor] then
        lost = lost or lost_modules(view) -- the index entry was the last that was known of it
        if lost[module] then
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

-- Weights that loaders would take for the checkpoint's: another whole, or shards of another numbering. Files of other
-- names (adapters) go along.
local function stray(view, _, report)
  local own = {}
  for _, file in ipairs(view.files) do own[file] = true end
  for _, name in ipairs(checkpoint.list(view.dir) or {}) do
    if name:match "%.safetensors$" and not own[name] then
      if name == "model.safetensors" or name:find "%-%d+%-of%-%d+%.safetensors$" then
        report.change { file = name, was = ("weights beside %s, which %s"):format(view.survey.index or view.files[1],
          view.survey.index and "doesn't name it" or "is the checkpoint"), now = "left out" }
      else
        view.other_files[#view.other_files + 1] = name
      end
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

return {
  { kind = "index", about = "stale, missing and wrong entries of the index; its total_size; tensors that are there twice", run = index,
    always = true },
  { kind = "stray-file", about = "weights that loaders would take for the checkpoint's own", run = stray, always = true },
  { kind = "metadata", about = '__metadata__ without format', run = metadata },
}
