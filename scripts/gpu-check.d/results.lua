-- results: files of what scripts/gpu-check found: the hashes of the sources that a result holds for, writing one, the
-- newest one that the README may show, and what has changed since.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local json = require "nibble.json"
local checkpoint = require "nibble.checkpoint"
local C = nffi.C

local M = { SCHEMA = 1, FOLDER = "cuda/results" }

-- What a result depends on: everything of cuda/ and the CPU's functions that kernels are held to.
local WHERE = "cuda core/layout core/quant core/compute/marlin* core/nibble.h"
local NOT = { "^cuda/results/", "^core/quant/difference", "^core/quant/error" }

--- hash_of(path) -> 32 hex digits (XXH3) of a file | nil
function M.hash_of(path)
  local text = checkpoint.read_file(path)
  if not text then return nil end
  local h, hex = C.nb_hash_new(), ffi.new "char[33]"
  C.nb_hash_update(h, text, #text)
  C.nb_hash_hex(h, hex)
  C.nb_hash_free(h)
  return ffi.string(hex)
end

--- sources(root) -> {[path] = hash}
function M.sources(root)
  local out, files = {}, io.popen(("cd '%s' && find %s -type f 2>/dev/null | LC_ALL=C sort"):format(root, WHERE))
  for path in files:lines() do
    local counts = true
    for _, pattern in ipairs(NOT) do counts = counts and not path:match(pattern) end
    if counts then out[path] = M.hash_of(root .. "/" .. path) end
  end
  files:close()
  return out
end

--- changed(document, root) -> sorted paths that are no longer what they were when the document was written
M.changed = nffi.interpreted(function(document, root)
  local now, out = M.sources(root), {}
  for path, hash in pairs(document.sources) do
    if now[path] ~= hash then out[#out + 1] = path end
  end
  for path in pairs(now) do
    if not document.sources[path] then out[#out + 1] = path end
  end
  table.sort(out)
  return out
end)

-- A row's numbers with the six digits that a measurement has at most.
local function rounded(value)
  if type(value) == "number" and value ~= math.floor(value) then return tonumber(("%.6g"):format(value)) end
  if type(value) ~= "table" then return value end
  local out = {}
  for key, v in pairs(value) do out[key] = rounded(v) end
  return out
end
jit.off(rounded)

-- The document with a row on a line, so that two of them can be compared line by line.
local text_of = nffi.interpreted(function(document)
  local rows = {}
  local function row_on_a_line(mark) return rows[tonumber(mark)] end
  local copy, stages = {}, json.array {}
  for key, value in pairs(document) do copy[key] = value end
  for i, stage in ipairs(document.stages) do
    local marks = json.array {}
    for j, row in ipairs(stage.rows) do
      rows[#rows + 1] = json.encode(rounded(row))
      marks[j] = "\1row " .. #rows
    end
    stages[i] = {}
    for key, value in pairs(stage) do stages[i][key] = value end
    stages[i].rows = marks
  end
  copy.stages = stages
  return (json.encode(copy, { indent = 1 }):gsub('"\\u0001row (%d+)"', row_on_a_line)) .. "\n"
end)

--- write(path, document) -> true | nil, msg: the old file or the new one, never a part.
function M.write(path, document) return checkpoint.write_file(path, text_of(document)) end

--- stage(document, name) -> the stage | nil
function M.stage(document, name)
  for _, stage in ipairs(document.stages) do
    if stage.name == name then return stage end
  end
end

--- unfit(document) -> why the README may not show it | nil
function M.unfit(document)
  if type(document) ~= "table" or document.schema ~= M.SCHEMA or type(document.stages) ~= "table"
    or type(document.sources) ~= "table" or type(document.device) ~= "table" then
    return "it is not a results file of this nibble"
  end
  if document.emulated or document.device.emulated then return "it comes from the emulator" end
  if document.small then return "its shapes are small" end
  if document.only then return "it ran only some cases" end
  if not document.complete then return "it was cut off" end
  for _, name in ipairs { "correctness", "benchmarks" } do
    local stage = M.stage(document, name)
    if not stage then return "its stage " .. name .. " did not run" end
    if name == "correctness" and stage.status ~= "passed" then return "its correctness stage " .. stage.status end
    if name == "benchmarks" and stage.status == "failed" then return "its benchmarks failed" end
  end
  return nil
end

--- newest(folder) -> document, file name | nil; notes {"FILE: why it isn't shown"}: by its `began`.
function M.newest(folder)
  local best, best_name, notes = nil, nil, {}
  for _, name in ipairs(checkpoint.list(folder) or {}) do
    if name:match "%.json$" then
      local document = json.decode(checkpoint.read_file(folder .. "/" .. name) or "")
      local why = M.unfit(document)
      if why then notes[#notes + 1] = name .. ": " .. why
      elseif not best or document.began > best.began then best, best_name = document, name end
    end
  end
  return best, best_name, notes
end

return M
