-- output: the folder that a run writes into: whether it may be used, what it holds
-- already, and leaving nothing behind when a run can't be mended.
local checkpoint = require "nibble.checkpoint"
local json = require "nibble.json"

-- journal: of a run in one piece; parts: the folder of a run in parts (convert_parts).
local M = { journal = ".nibble-journal", parts = ".nibble-parts", certificate = "nibble.json" }

-- ---- places -------------------------------------------------------------------

-- The absolute path without links and dots, also of what doesn't exist yet.
local function absolute(path)
  local found = checkpoint.real(path)
  if found then return found end
  local parent, leaf = path:gsub("/+$", ""):match "^(.-)/*([^/]*)$"
  if leaf == "" then return path end
  parent = absolute(parent == "" and (path:sub(1, 1) == "/" and "/" or ".") or parent)
  if leaf == "." then return parent end
  if leaf == ".." then return parent:match "^(.+)/[^/]*$" or "/" end
  return parent:gsub("/$", "") .. "/" .. leaf
end

local function within(path, dir) return path == dir or path:sub(1, #dir + 1) == dir:gsub("/$", "") .. "/" end

--- apart(dir, ck) -> true | nil, msg, code: a run copies all of the model's folder: neither may hold the other.
function M.apart(dir, ck)
  if checkpoint.exists(ck.path) ~= "dir" then return true end
  local out, model = absolute(dir), absolute(ck.path)
  local how = out == model and "is" or within(out, model) and "lies inside" or within(model, out) and "holds"
  if not how then return true end
  return nil, ("%s %s the model's folder %s, which is never written to; choose another folder"):format(dir, how, ck.path), "einval"
end

-- ---- what a folder holds ---------------------------------------------------------

--- look(dir, ck, id) -> "new" | "resume" | "complete", certificate | nil, msg, code
-- ck: the model that is read; id: the plan's.
function M.look(dir, ck, id)
  local ok, msg, code = M.apart(dir, ck)
  if not ok then return nil, msg, code end
  local kind = checkpoint.exists(dir)
  if not kind then return "new" end
  if kind ~= "dir" then return nil, ("%s is a file; give a folder for the output"):format(dir), "eio" end
  if checkpoint.exists(dir .. "/" .. M.journal) then return "resume" end
  local entries
  entries, msg, code = checkpoint.list(dir)
  if not entries then return nil, msg, code end
  local certificate = checkpoint.read_file(dir .. "/" .. M.certificate)
  if certificate then
    local c = json.decode(certificate)
    if type(c) == "table" and c.plan == id then return "complete", c end
    return nil, ("%s holds the finished output of another plan; choose another folder or remove it"):format(dir), "eio"
  end
  if checkpoint.exists(dir .. "/" .. M.parts) then return "resume" end
  if #entries > 0 then
    return nil, ("%s exists and holds other files (%s%s); choose another folder or empty it"):format(dir, entries[1],
      #entries > 1 and (" and %d more"):format(#entries - 1) or ""), "eio"
  end
  return "new"
end

--- make(dir) -> the folders that were made for it, outermost first | nil, msg, code
function M.make(dir)
  local made, path = {}, dir
  while path ~= "" and not checkpoint.exists(path) do
    table.insert(made, 1, path)
    path = path:match "^(.*[^/])/+[^/]*$" or ""
  end
  local ok, msg, code = checkpoint.mkdir(dir)
  if ok then return made end
  M.unmake(made)
  return nil, msg, code
end

--- unmake(made): removes those of these folders that are empty.
function M.unmake(made)
  for i = #made, 1, -1 do os.remove(made[i]) end
end

--- clear(dir, names, made): removes what a run wrote (names in dir, whole or partial) and then the
-- folders that it made, if nothing else is in them.
function M.clear(dir, names, made)
  for _, name in ipairs(names) do
    checkpoint.remove_file(dir .. "/" .. name)
    checkpoint.remove_file(dir .. "/" .. name .. ".partial")
    local folder = name:match "^(.*)/"
    while folder do
      os.remove(dir .. "/" .. folder)
      folder = folder:match "^(.*)/"
    end
  end
  M.unmake(made)
end

return M
