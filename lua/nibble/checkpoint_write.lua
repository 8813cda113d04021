-- checkpoint_write: writing a checkpoint tensor by tensor, and the journal that
-- lets an interrupted run go on. Reached as checkpoint.writer and .journal.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local json = require "nibble.json"
local tensor = require "nibble.tensor"
local C, check = nffi.C, nffi.check

local M = {}

local INDEX = "model.safetensors.index.json"

-- ---- the writer ------------------------------------------------------------------

local Writer = {}
Writer.__index = Writer

local writer_options = { dir = true, tensors = true, shard_bytes = true, metadata = true, resume = true, only = true }

local function announce(handle, options)
  local metadata = options.metadata or { format = "pt" }
  for _, key in ipairs(json.keys(metadata)) do -- sorted: the same bytes every time
    local value = metadata[key]
    if type(value) ~= "string" then
      error(("writer: metadata.%s must be a string, found %s"):format(key, type(value)), 3)
    end
    local ok, msg, code = check(C.nb_writer_metadata(handle, key, #key, value, #value))
    if not ok then return nil, msg, code end
  end
  for _, t in ipairs(options.tensors) do
    local dtype, shape, ndim = tensor.dtype_id(t.dtype), tensor.shape_of(t.shape, 3)
    local ok, msg, code = check(C.nb_writer_add(handle, t.name, #t.name, dtype, ndim, shape))
    if not ok then return nil, msg, code end
  end
  return true
end

local function begin(handle, options)
  local ok, msg, code = announce(handle, options)
  if not ok then return nil, msg, code end
  if options.resume and options.only ~= 0 then -- it may name files that are about to become partial again
    ok, msg, code = check(C.nb_file_remove(options.dir .. "/" .. INDEX))
    if not ok then return nil, msg, code end
  end
  if options.only then C.nb_writer_only(handle, options.only > 0 and options.only - 1 or 2 ^ 40) end
  return check(C.nb_writer_begin(handle, options.resume and 1 or 0))
end

--- writer{dir=, tensors={{name=, dtype=, shape=}, …}, …} -> writer | nil, msg, code
-- Options: shard_bytes (5e9), metadata ({format="pt"}), resume (false).
-- Files are made at their full size with their whole header, as NAME.partial;
-- tensors lie in the given order (safetensors asks for none), a shard ends before
-- the tensor that would pass shard_bytes (decimal bytes of data). A full disk
-- shows here already, where the file system can reserve room.
-- resume: partial files of an interrupted run with the same header are kept.
-- only: the number of the one file that is written (0: none), for processes that share a checkpoint: w:holds(name)
-- tells which tensors that concerns, and w:finish() leaves the file partial, for a writer of all that resumes.
-- Fields: dir, bytes (of all tensors), files (names in order), resumed (every file was kept).
-- A dir that already holds a checkpoint is refused ("eio").
function M.writer(options)
  for key in pairs(options) do
    if not writer_options[key] then error(("writer: unknown option %q"):format(tostring(key)), 2) end
  end
  if type(options.dir) ~= "string" then
    error("writer: dir must be a path, found " .. type(options.dir), 2)
  end
  if type(options.tensors) ~= "table" then
    error("writer: tensors must be an array of {name, dtype, shape}", 2)
  end
  local out = ffi.new "nb_writer *[1]"
  local ok, msg, code = check(C.nb_writer_new(out, options.dir, options.shard_bytes or 5e9))
  if not ok then return nil, msg, code end
  local handle = ffi.gc(out[0], C.nb_writer_close)
  ok, msg, code = begin(handle, options)
  if not ok then
    C.nb_writer_close(ffi.gc(handle, nil))
    return nil, msg, code
  end
  local w = {
    handle = handle, dir = options.dir, bytes = tonumber(C.nb_writer_bytes(handle)), names = options.tensors,
    files = {}, kept_files = {}, resumed = true, repacks = {}, only = options.only,
  }
  local kept = ffi.new "int[1]"
  for i = 1, tonumber(C.nb_writer_files(handle)) do
    w.files[i] = ffi.string(C.nb_writer_file(handle, i - 1, kept))
    w.kept_files[i] = kept[0] ~= 0
    w.resumed = w.resumed and w.kept_files[i]
  end
  return setmetatable(w, Writer)
end

local function open_handle(w)
  return w.handle or error("writer: it was finished or aborted", 3)
end

--- w:put(name, t [, row0]) -> true | nil, msg, code
-- Rows row0… (1-based, default 1) of the tensor become t's rows. Written in the
-- background: t may be dropped at once, but its contents must not change before
-- w:flush(). Waits while 64 MiB are queued. A full disk or another failure of
-- the system shows in this or the next call and stays. A wrong name, dtype,
-- shape or row is an error.
function Writer.put(w, name, t, row0)
  return check(C.nb_writer_put(open_handle(w), name, #name, t, (row0 or 1) - 1), true)
end

local Repack = {}
Repack.__index = Repack
local hex = ffi.new "char[33]"

--- w:repack(name, words, way) -> repack
-- The tensor becomes what a direct repack (C.NB_AWQ_TO_CT, …) makes of words: made, written, read back from the
-- file, taken the way back and compared with words, strip by strip, by threads that go on with it after this has
-- returned.
function Writer.repack(w, name, words, way)
  nffi.must(C.nb_writer_repack(open_handle(w), name, #name, words, way))
  local r = setmetatable({ writer = w }, Repack)
  table.insert(w.repacks, r)
  return r
end

--- repack:result() -> hash, proven | nil, msg, code: waits for it.
-- hash: of what the file holds (as C.nb_tensor_hash gives it); proven: whether all of it went back to words.
function Repack.result(r)
  while not r.done do -- results come in the order of the calls
    local first = table.remove(r.writer.repacks, 1)
    first.done = true
    local rc, msg, code = check(C.nb_writer_repacked(hex, open_handle(r.writer)))
    if rc then first.hash, first.proven = ffi.string(hex), rc == 1 else first.msg, first.code = msg, code end
  end
  if not r.hash then return nil, r.msg, r.code end
  return r.hash, r.proven
end

--- w:flush() -> true | nil, msg, code: all that was put is in the page cache (safe from kill -9).
function Writer.flush(w) return check(C.nb_writer_flush(open_handle(w)), true) end

--- w:mark() -> a mark after all that was put so far, for w:wait.
function Writer.mark(w) return tonumber(C.nb_writer_mark(open_handle(w))) end

--- w:wait(mark) -> true | nil, msg, code: what was put before the mark is in the page cache; what came
-- after it may still be on its way.
function Writer.wait(w, mark) return check(C.nb_writer_wait(open_handle(w), mark), true) end

--- w:tensor(name) -> tensor | nil, msg, code: a mapped view of what was written so far; flush or wait first.
function Writer.tensor(w, name)
  local t = tensor.type()
  return check(C.nb_writer_tensor(t, open_handle(w), name, #name), t)
end

--- w:file_of(name) -> the name of the file that holds the tensor.
function Writer.file_of(w, name)
  return w.files[tonumber(C.nb_writer_file_of(open_handle(w), name, #name)) + 1]
end

--- w:holds(name) -> whether this writer writes the tensor's file.
function Writer.holds(w, name)
  return not w.only or tonumber(C.nb_writer_file_of(open_handle(w), name, #name)) + 1 == w.only
end

--- w:kept(name) -> true when resume kept the file that holds this tensor: a
-- journal's word that the tensor is written counts only then.
function Writer.kept(w, name)
  return w.kept_files[tonumber(C.nb_writer_file_of(open_handle(w), name, #name)) + 1] == true
end

local function close(w)
  C.nb_writer_close(ffi.gc(w.handle, nil))
  w.handle = nil
end

local function write_index(w)
  local map = {}
  for _, t in ipairs(w.names) do map[t.name] = w:file_of(t.name) end
  local text = json.encode({ metadata = { total_size = w.bytes }, weight_map = map }, { indent = 2 }) .. "\n"
  return check(C.nb_file_write(w.dir .. "/" .. INDEX, text, #text), true)
end

--- w:finish() -> true | nil, msg, code
-- fsync, rename every file to its name, and the index last if there are several.
-- A tensor of which not all rows were put is an error (unless its file was kept by resume).
function Writer.finish(w)
  local ok, msg, code = check(C.nb_writer_finish(open_handle(w)), true)
  if ok and #w.files > 1 and not w.only then ok, msg, code = write_index(w) end
  if ok then close(w) end
  return ok, msg, code
end

--- w:abort() -> true | nil, msg, code: removes the partial files.
function Writer.abort(w)
  local ok, msg, code = check(C.nb_writer_abort(open_handle(w)), true)
  close(w)
  return ok, msg, code
end

--- w:close(): stops writing; the partial files stay, for resume.
function Writer.close(w)
  if w.handle then close(w) end
end

-- ---- the journal ------------------------------------------------------------------

local Journal = {}
Journal.__index = Journal

--- journal(path) -> journal | nil, msg, code
-- An append-only list of text lines with a checksum each. Field lines: the valid
-- ones found on opening and those appended; a torn or damaged tail is cut off. Locked: a second
-- process gets "eio" ("another nibble works in that folder").
function M.journal(path)
  local out = ffi.new "nb_journal *[1]"
  local ok, msg, code = check(C.nb_journal_open(out, path))
  if not ok then return nil, msg, code end
  local j = { handle = ffi.gc(out[0], C.nb_journal_close), path = path, lines = {} }
  for i = 1, tonumber(C.nb_journal_count(j.handle)) do
    local line = C.nb_journal_line(j.handle, i - 1)
    j.lines[i] = ffi.string(line.data, line.bytes)
  end
  return setmetatable(j, Journal)
end

--- j:append(line) -> true | nil, msg, code: once it returns, the line survives kill -9.
function Journal.append(j, line)
  if not j.handle then error("journal: it is closed", 2) end
  local ok, msg, code = check(C.nb_journal_append(j.handle, line, #line), true)
  if ok then table.insert(j.lines, line) end
  return ok, msg, code
end

--- j:close(): unlocks; the file stays.
function Journal.close(j)
  if j.handle then C.nb_journal_close(ffi.gc(j.handle, nil)) end
  j.handle = nil
end

--- j:remove() -> true | nil, msg, code: deletes the file and closes.
function Journal.remove(j)
  local ok, msg, code = check(C.nb_file_remove(j.path), true)
  j:close()
  return ok, msg, code
end

return M
