-- coverage-systems: which spec shows which requirement of the systems. `luajit scripts/coverage-systems.lua`
-- prints a line for each number of spec/systems.txt: its subject and the tests that cite it in their name
-- ("MRL-42 to MRL-44" cites all three). Exit status 1 when one has none.
-- `--break [PATTERN]` breaks the code in the ways that spec/mutations/ lists (whose number matches the Lua pattern),
-- one after the other in copies of the tree, one copy for each core, and asks that a test that cites the
-- requirement fails each time. Exit status 1 when one is not noticed.

-- ---- the requirements and who cites them ----------------------------------------------

local function lines_of(path)
  local f = assert(io.open(path))
  local out = {}
  for line in f:lines() do out[#out + 1] = line end
  f:close()
  return out
end

local order, subject, cited = {}, {}, {}
for _, line in ipairs(lines_of "spec/systems.txt") do
  local number, title = line:match "^(%u[%w-]*%-%d+) (.+)$"
  if number then
    order[#order + 1], subject[number], cited[number] = number, title, {}
  end
end

-- The numbers in a test's name; ranges spelled out.
local function numbers_in(name)
  local out = {}
  for first, a, b in name:gmatch "(%u[%w-]*%-)(%d+) to %u[%w-]*%-(%d+)" do
    for i = tonumber(a) + 1, tonumber(b) - 1 do out[#out + 1] = ("%s%02d"):format(first, i) end
  end
  for number in name:gmatch "%u[%w-]*%-%d%d" do out[#out + 1] = number end
  return out
end

local families = { MRL = true, AWQ = true, ORC = true, INC = true, CTM = true, FWD = true }
local unknown = 0
local files = io.popen "ls spec/*_spec.lua spec/*/*_spec.lua 2>/dev/null"
for file in files:lines() do
  for i, line in ipairs(lines_of(file)) do
    local name = line:match "^%s*it%(?%s*[\"'](.-)[\"'],?%s*function" or line:match "^%s*it%(%(?[\"'](.-)[\"']"
    for _, number in ipairs(name and numbers_in(name) or {}) do
      if cited[number] then
        local at = cited[number]
        if at[#at] ~= file .. ":" .. i then at[#at + 1] = file .. ":" .. i end
      elseif families[number:match "^%u+"] then
        unknown = unknown + 1
        print(("%s:%d: there is no requirement %s"):format(file, i, number))
      end
    end
  end
end
files:close()

local function places(at)
  local shown = {}
  for i = 1, math.min(2, #at) do shown[i] = at[i] end
  return table.concat(shown, "  ") .. (#at > 2 and ("  and %d more"):format(#at - 2) or "")
end

local function report()
  local have, all, missing = { 0, 0 }, { 0, 0 }, {}
  for _, number in ipairs(order) do
    local kind = number:match "^C%-" and 2 or 1
    all[kind] = all[kind] + 1
    if #cited[number] > 0 then have[kind] = have[kind] + 1 else missing[#missing + 1] = number end
    print(("%-13s %-48s %s"):format(number, subject[number], #cited[number] > 0 and places(cited[number]) or "NO SPEC"))
  end
  if #missing > 0 then print("without a spec: " .. table.concat(missing, " ")) end
  print(("coverage: %d of %d requirements, %d of %d contradictions"):format(have[1], all[1], have[2], all[2]))
  return #missing == 0 and unknown == 0
end

-- ---- breaking the code ------------------------------------------------------------------

local function run(command)
  local f = io.popen("{ " .. command .. "; } 2>&1")
  local text = f:read "*a"
  f:close()
  return (text:gsub("%s+$", ""))
end

local function read(path)
  local f = assert(io.open(path))
  local text = f:read "*a"
  f:close()
  return text
end

local function write(path, text)
  local f = assert(io.open(path, "w"))
  f:write(text)
  f:close()
end

-- The mutations whose number matches, in the order of the files: each {number=, file=, from=, to=, spec=}.
local function mutations(pattern)
  local out = {}
  for path in run "ls spec/mutations/*.lua":gmatch "[^\n]+" do
    for _, m in ipairs(dofile(path)) do
      if m.number:find(pattern) then out[#out + 1] = m end
    end
  end
  return out
end

-- Does a test that cites the number fail?
local function noticed(tap, number)
  for name in tap:gmatch "not ok %d+ %- ([^\n]+)" do
    for _, n in ipairs(numbers_in(name)) do if n == number then return true end end
  end
  return false
end

-- One worker: every `step`-th mutation from `first` on, in a copy of the tree. Native code is built before a spec
-- runs whenever its sources changed, so a repaired file is compiled together with the next one broken.
local function worker(pattern, first, step)
  local dir = run "mktemp -d"
  run(("cp -rp lua spec core recipes scripts Makefile .busted '%s/'"):format(dir))
  run(("cp -rp '%s' '%s/build'"):format(os.getenv "NIBBLE_BUILD" or "build", dir))
  local stale = false
  local list = mutations(pattern)
  for i = first, #list, step do
    local m = list[i]
    local source = read(m.file)
    local at, to = source:find(m.from, 1, true)
    local verdict
    if not at then
      verdict = "NOT NOTICED: the text to break is gone: " .. m.from
    else
      write(dir .. "/" .. m.file, source:sub(1, at - 1) .. m.to .. source:sub(to + 1))
      local native = m.file:match "^core/" ~= nil
      local built = (native or stale) and run(("make -C '%s' BUILD=build build/libnibble.so"):format(dir)) or ""
      local tap = run(("cd '%s' && NIBBLE_BUILD=build timeout 300 busted -o TAP %s"):format(dir, m.spec))
      local fails = not built:find "error:" and noticed(tap, m.number)
      verdict = (fails and "noticed by " or "NOT NOTICED by ") .. m.spec
      write(dir .. "/" .. m.file, source)
      stale = native
    end
    print(("%-13s %-44s %s"):format(m.number, m.file, verdict))
    io.stdout:flush()
  end
  run(("rm -rf '%s'"):format(dir))
end

local function break_all(pattern)
  local cores = tonumber(run "nproc") or 1
  local workers = {}
  for i = 1, cores do
    workers[i] = ("OMP_NUM_THREADS=1 luajit '%s' --worker '%s' %d %d &"):format(arg[0], pattern, i, cores)
  end
  local f = io.popen(table.concat(workers, " ") .. " wait")
  local count, survived = 0, 0
  for line in f:lines() do
    print(line)
    count = count + 1
    if not line:find(" noticed by ", 1, true) then survived = survived + 1 end
  end
  f:close()
  local expected = #mutations(pattern)
  print(("broken %d times, noticed %d times"):format(expected, count - survived))
  return expected > 0 and count == expected and survived == 0
end

if arg[1] == "--worker" then
  worker(arg[2], tonumber(arg[3]), tonumber(arg[4]))
  os.exit(0)
end
local ok
if arg[1] == "--break" then ok = break_all(arg[2] or "") else ok = report() end
os.exit(ok and 0 or 1)
