-- coverage-systems: which spec shows which requirement of the systems. `luajit scripts/coverage-systems.lua`
-- prints a line for each number of spec/systems.txt: its subject and the tests that cite it in their name
-- ("MRL-42 to MRL-44" cites all three). Exit status 1 when one has none.
-- `--break` breaks the code in the ways that spec/mutations.lua lists, one after the other in a copy of the tree,
-- and asks that a test that cites the requirement fails each time.

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
  local f = io.popen(command .. " 2>&1")
  local text = f:read "*a"
  f:close()
  return text
end

local function write(path, text)
  local f = assert(io.open(path, "w"))
  f:write(text)
  f:close()
end

-- Does a test that cites the number fail in busted's report?
local function noticed(text, number)
  for name in text:gmatch "[^\n]+" do
    for _, n in ipairs(numbers_in(name)) do if n == number then return true end end
  end
  return false
end

local function break_all()
  local dir = run "mktemp -d":gsub("%s+$", "")
  run(("cp -r lua spec core recipes scripts Makefile .busted '%s/'"):format(dir))
  run(("cp -r '%s' '%s/build'"):format(os.getenv "NIBBLE_BUILD" or "build", dir))
  local survived, count = 0, 0
  for _, m in ipairs(dofile "spec/mutations.lua") do
    count = count + 1
    local f = assert(io.open(m.file))
    local source = f:read "*a"
    f:close()
    local at, to = source:find(m.from, 1, true)
    assert(at, ("%s: %q is not in %s any more"):format(m.number, m.from, m.file))
    write(dir .. "/" .. m.file, source:sub(1, at - 1) .. m.to .. source:sub(to + 1))
    local native = m.file:match "^core/"
    local built = native and run(("make -C '%s' build/libnibble.so"):format(dir)) or ""
    local text = run(("cd '%s' && NIBBLE_BUILD=build busted %s"):format(dir, m.spec))
    local failed = not built:find "error:" and noticed(text:match "\n(Failure.*)" or text:match "\n(Error.*)" or "", m.number)
    if not failed then survived = survived + 1 end
    print(("%-13s %-44s %s"):format(m.number, m.file, failed and "noticed by " .. m.spec or "NOT NOTICED by " .. m.spec))
    write(dir .. "/" .. m.file, source)
    if native then run(("make -C '%s' build/libnibble.so"):format(dir)) end
  end
  run(("rm -rf '%s'"):format(dir))
  print(("broken %d times, noticed %d times"):format(count, count - survived))
  return survived == 0
end

local ok
if arg[1] == "--break" then ok = break_all() else ok = report() end
os.exit(ok and 0 or 1)
