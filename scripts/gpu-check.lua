-- gpu-check: the stages of scripts/gpu-check.d one after the other, and the document of what they found (scripts/gpu-check
-- starts this; CUDA kernels run in processes of their own, never in this one).
--
-- A stage is a file scripts/gpu-check.d/NN-name.lua that returns {title =, seconds =, emulated_seconds =} (its time) and
--   cases(ctx) -> array of {name, run = function(ctx) -> row}, each run in a child process, or
--   run(ctx, add): in this process; add(row) for each thing found; returns {status =, why =} where "skipped" or "failed"
--   python = "what": baselines.py's cases of that name after its own, which leave it python_seconds of the time
--   finish(ctx, rows): after its cases, in this process: changes rows
-- A row has name and status "passed", "failed" or "skipped" (with why); the rest is its own. A stage's status may also be
-- "cut": its time was over, what it found until then stands. What ctx holds:
--   root, build     folders of the tree and the build
--   emulated        true with --emu: no timings
--   small           small shapes: on the emulator, under compute-sanitizer, and with --small
--   only            with --only: cases of kernels whose name has this pattern
--   once            in children for ncu: each call once
--   seed            of all random data; --seed repeats it
--   document        what was found so far
--   baselines       folder with other kernels for baselines.py, or nil
--   seconds         the time of this stage
local nffi = require "nibble.ffi"
local checkpoint = require "nibble.checkpoint"
local json = require "nibble.json"

local root = arg[0]:match "^(.*)/scripts/[^/]*$" or "."
local here = root .. "/scripts/gpu-check.d/"
package.path = here .. "?.lua;" .. root .. "/?.lua;" .. package.path
local results = require "results"
local children = require "children"
local tools = require "tools"

local function fail(text, ...)
  io.stderr:write("gpu-check: ", text:format(...), "\n")
  os.exit(2)
end

-- ---- options -------------------------------------------------------------------

local flags = { emu = true, table = true, small = true, once = true }
local valued = { out = true, continue = true, stages = true, seconds = true, baselines = true, seed = true, revision = true, child = true,
                 results = true, only = true }
local options = {}
do
  local i = 1
  while i <= #arg do
    local name, value = arg[i]:match "^%-%-([%a-]+)=?(.*)$"
    if flags[name] then options[name] = true
    elseif valued[name] then
      if value == "" then i, value = i + 1, arg[i + 1] end
      options[name] = value or fail("--%s needs a value", name)
    elseif options.child and tonumber(arg[i]) then options.from = tonumber(arg[i])
    else
      fail("unknown option %s; known: --emu --out FILE --continue FILE --stages a,b --seconds N --baselines DIR --seed N --revision REV "
        .. "--only PATTERN --small --table", arg[i])
    end
    i = i + 1
  end
end

for _, name in ipairs { "seed", "seconds" } do
  if options[name] and not tonumber(options[name]) then fail("--%s needs a number, found %s", name, options[name]) end
end

if options.table then
  io.write(require("readme_table").text(options.results or root .. "/" .. results.FOLDER, root))
  os.exit(0)
end

-- ---- stages ----------------------------------------------------------------------

local function stage_files()
  local list, files = {}, io.popen(("ls '%s'"):format(here))
  for file in files:lines() do
    local name = file:match "^%d%d%-([%a-]+)%.lua$"
    if name then list[#list + 1] = { name = name, path = here .. file } end
  end
  files:close()
  return list
end

local wanted
if options.stages then
  wanted = {}
  for name in options.stages:gmatch "[^,]+" do wanted[name] = true end
end
local stages, names = {}, {}
for _, file in ipairs(stage_files()) do
  names[#names + 1] = file.name
  if not wanted or wanted[file.name] then stages[#stages + 1] = file end
  if wanted then wanted[file.name] = nil end
end
if wanted and next(wanted) then fail("there is no stage %s; there are %s", next(wanted), table.concat(names, ", ")) end
if #stages == 0 then fail("--stages names none; there are %s", table.concat(names, ", ")) end

local ctx = { root = root, build = os.getenv "NIBBLE_BUILD" or root .. "/build", emulated = options.emu or false,
              small = options.emu or options.small or false, once = options.once, only = options.only, baselines = options.baselines }

-- ---- a child -----------------------------------------------------------------------

if options.child then
  ctx.seed = tonumber(options.seed)
  for _, file in ipairs(stages) do
    if file.name == options.child then os.exit(children.serve(dofile(file.path).cases(ctx), options.from or 1, ctx)) end
  end
end

-- ---- the document ------------------------------------------------------------------

local function line_of(command)
  local p = io.popen(command .. " 2>/dev/null")
  local line = p:read "*l"
  p:close()
  return line
end

local function fresh_seed()
  local f = assert(io.open("/dev/urandom", "rb"))
  local a, b, c = f:read(3):byte(1, 3)
  f:close()
  return a * 65536 + b * 256 + c + 1
end

local devices, why = require("nibble.cuda").devices()
if devices and not devices[1].usable then devices, why = nil, devices[1].why end
if not devices then fail("%s; --emu runs the same on the emulator", why) end
local device = devices[1]
-- NB_GPU_CHECK_PRETEND: specs let the emulator pass for a GPU.
if device.emulated ~= ctx.emulated and not os.getenv "NB_GPU_CHECK_PRETEND" then
  fail("NB_CUDA_DRIVER names the emulator: --emu runs the check on it")
end

local git = ("git -C '%s' "):format(root)
local revision = options.revision or line_of(git .. "rev-parse --short=12 HEAD") or "unknown"
local document = {
  __order = { "schema", "status", "complete", "emulated", "small", "only", "revision", "dirty", "began", "seconds", "seed", "device",
              "stages", "sources" },
  schema = results.SCHEMA, status = "running", complete = false, emulated = ctx.emulated, small = ctx.small, only = ctx.only,
  revision = revision,
  began = os.date "!%Y-%m-%dT%H:%M:%SZ", seconds = 0, seed = tonumber(options.seed) or fresh_seed(), device = device,
  stages = json.array {}, sources = results.sources(root),
}
if line_of(git .. "rev-parse HEAD") then document.dirty = line_of(git .. "status --porcelain") ~= nil end

-- An earlier run's document of the same sources on the same device: its stages stay, but for those that run now.
local earlier_seconds = 0
if options.continue then
  local old, msg = json.decode(checkpoint.read_file(options.continue) or "")
  if type(old) ~= "table" then fail("--continue: %s is no document of gpu-check's: %s", options.continue, msg or "it is not one") end
  for _, key in ipairs { "schema", "emulated", "small", "only" } do
    if old[key] ~= document[key] then fail("--continue: %s was another kind of check (%s)", options.continue, key) end
  end
  if old.device.model ~= device.model then fail("--continue: %s is of %s, here is %s", options.continue, old.device.model, device.model) end
  local changed = results.changed(old, root)[1]
  if changed then fail("--continue: %s was changed since %s was written", changed, options.continue) end
  local now = {}
  for _, stage in ipairs(stages) do now[stage.name] = true end
  for _, stage in ipairs(old.stages) do
    if not now[stage.name] then table.insert(document.stages, stage) end
  end
  document.seed, document.began, earlier_seconds = tonumber(options.seed) or old.seed, old.began, old.seconds
end
ctx.document, ctx.seed = document, document.seed

local function default_path()
  local kind = ctx.emulated and "emulated" or ctx.small and "small" or (options.stages or ctx.only) and "partial"
  if kind then return ("%s/gpu-check-%s.json"):format(ctx.build, kind) end
  local short = device.model:lower():gsub("^nvidia ", ""):gsub("[^%w]+", "-"):gsub("%-$", "")
  return ("%s/%s/%s-%s-%s.json"):format(root, results.FOLDER, short, document.began:sub(1, 10), revision:sub(1, 7))
end
local path = options.out or options.continue or default_path()

local begun, written = nffi.C.nb_now(), 0
local function write()
  document.seconds = earlier_seconds + nffi.C.nb_now() - begun
  local ok, msg = results.write(path, document)
  if not ok then fail("%s", msg) end
  written = nffi.C.nb_now()
end
if path == default_path() then checkpoint.mkdir(path:match "^(.*)/") end

-- ---- running a stage ---------------------------------------------------------------

local function count(rows)
  local n = { passed = 0, failed = 0, skipped = 0 }
  for _, row in ipairs(rows) do n[row.status] = n[row.status] + 1 end
  return n
end

local function run_stage(file)
  local stage = dofile(file.path)
  local rows = json.array {}
  local entry = { __order = { "name", "status", "why", "seconds", "rows" }, name = file.name, status = "running", rows = rows }
  table.insert(document.stages, entry)
  print(("%s: %s"):format(file.name, stage.title))
  local start = nffi.C.nb_now()
  ctx.seconds = tonumber(options.seconds) or ctx.emulated and stage.emulated_seconds or stage.seconds

  local function add(row)
    row.__order = { "name", "status", "why", "seconds" }
    row.status = row.status or "passed"
    rows[#rows + 1] = row
    if row.status == "failed" then print(("  FAILED  %s: %s"):format(row.name, row.why)) end
    if nffi.C.nb_now() - written > 2 then write() end
  end

  -- Cases in children, for what is left of the time, but for `reserved` seconds.
  local function serve(command, reserved)
    local left = ctx.seconds - reserved - (nffi.C.nb_now() - start)
    return children.run { command = command, seconds = left, case_seconds = stage.case_seconds, add = add }
  end

  local function run()
    if stage.run then return stage.run(ctx, add) end
    local python = stage.python and not ctx.emulated
    local cut = serve(tools.child(ctx, file.name), python and stage.python_seconds or 0)
    if python then
      local from = ctx.baselines and { "--dir", ctx.baselines } or {}
      local others = serve({ "python3", here .. "baselines.py", stage.python, unpack(from) }, 0)
      cut = cut or others
    end
    if stage.finish then stage.finish(ctx, rows) end
    return cut and { status = "cut", why = cut }
  end
  local ok, verdict = pcall(run)
  if not ok and verdict == "interrupted" then
    write()
    error(verdict, 0)
  end
  if not ok then verdict = { status = "failed", why = tostring(verdict) } end

  local n = count(rows)
  entry.status = n.failed > 0 and "failed" or verdict and verdict.status or "passed"
  entry.why = verdict and verdict.why
  entry.seconds = nffi.C.nb_now() - start
  print(("  %s%s: %d passed, %d failed, %d skipped (%.1f s)"):format(entry.status, entry.why and " (" .. entry.why .. ")" or "",
    n.passed, n.failed, n.skipped, entry.seconds))
  write()
end

io.stdout:setvbuf "line"
print(("gpu-check on %s: revision %s, seed %d, into %s"):format(device.model, revision, document.seed, path))
write()
for _, file in ipairs(stages) do run_stage(file) end

local failed = 0
for _, stage in ipairs(document.stages) do failed = failed + ((stage.status == "failed" or stage.status == "cut") and 1 or 0) end
document.status, document.complete = failed > 0 and "failed" or "passed", true
write()
print(("%s, %.0f s: %s"):format(document.status, document.seconds, path))
os.exit(failed > 0 and 1 or 0)
