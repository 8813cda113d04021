-- Allocations that fail at the n-th call (DESIGN 7), for many n: an error or nil, msg; never a crash, a leak,
-- or an output that looks finished and isn't.
local nb = require "nibble"
local nffi = require "nibble.ffi"
local checkpoint = require "nibble.checkpoint"
local files = require "spec.support.files"
local C = nffi.C

local model = "spec/models/parity/llama"
local root, made

local function digest(dir)
  local p = io.popen(("cd %q && find . -type f | sort | xargs sha256sum"):format(dir))
  local text = p:read "*a"
  p:close()
  return text
end

local function fresh()
  made = made + 1
  return ("%s/%d"):format(root, made)
end

local function settle()
  jit.flush()
  collectgarbage() collectgarbage()
  return tonumber(C.nb_live_bytes())
end

-- How many allocations f makes, and f's results without failures.
local function count(f)
  local many = 2 ^ 40
  C.nb_debug_fail_alloc(many)
  local results = { pcall(f) }
  local left = tonumber(C.nb_debug_fail_left())
  C.nb_debug_fail_alloc(0)
  assert(results[1], results[2])
  return many - left, unpack(results, 2)
end

-- Every n up to 12, then some 40 more up to the last (NIBBLE_EVERY_ALLOCATION=1: every n): f must fail by a sentence about memory, or not at all.
local function each_failure(f, after)
  settle()
  f()
  local live, total = settle(), count(f)
  assert.is_true(total > 0)
  local n, failures = 1, 0
  while n <= total do
    C.nb_debug_fail_alloc(n)
    local ok, result, msg = pcall(f, n)
    C.nb_debug_fail_alloc(0)
    if not ok or result == nil then
      failures = failures + 1
      assert.matches("out of memory", tostring(ok and msg or result), ("allocation %d of %d"):format(n, total))
    end
    if after then after(n, ok and result ~= nil) end
    result, msg = nil, nil -- luacheck: ignore
    local now = settle()
    assert.is_true(now <= live, ("allocation %d of %d: %d bytes live, %d before"):format(n, total, now, live))
    n = (n < 12 or os.getenv "NIBBLE_EVERY_ALLOCATION") and n + 1 or math.floor(n + math.max(1, total / 40))
  end
  assert.is_true(failures > 0)
end

setup(function() root, made = files.temporary(), 0 end)
teardown(function() os.execute("rm -rf " .. root) end)

describe("failing allocations", function()
  it("while a checkpoint is opened and looked at", function()
    each_failure(function()
      local ck, msg = nb.open(model)
      if not ck then return nil, msg end
      local list, why = ck:modules()
      if not list then return nil, why end
      return ck:weight "model.layers.0.mlp.up_proj"
    end)
  end)

  -- An output is unfinished, or whole and right; and the same call goes on to the end.
  local function each_write(start)
    local whole = fresh()
    assert(start(whole))
    local expected, dir = digest(whole), nil
    each_failure(function()
      dir = fresh()
      return start(dir)
    end, function(n, done)
      local certified = checkpoint.exists(dir .. "/nibble.json") and not checkpoint.exists(dir .. "/.nibble-journal")
      if done then assert.is_truthy(certified) end
      if not certified and n % 4 == 0 then assert(start(dir)) end
      if certified or n % 4 == 0 then assert.equal(expected, digest(dir)) end
      os.execute("rm -rf " .. dir)
    end)
  end

  it("while a recipe is planned and run", function()
    each_write(function(dir)
      local ck, msg = nb.open(model)
      if not ck then return nil, msg end
      local recipe = assert(nb.recipe { name = "memory", scheme = "W4A16", group = 32, method = "mse" })
      local plan, why = nb.plan(recipe, ck)
      if not plan then return nil, why end
      return plan:run(dir)
    end)
  end)

  it("while a checkpoint is converted", function()
    local source = fresh()
    local recipe = assert(nb.recipe { name = "awq", scheme = "W4A16_ASYM", group = 32, output = { format = "awq" } })
    assert(assert(nb.plan(recipe, assert(nb.open(model)))):run(source))
    each_write(function(dir)
      local ck, msg = nb.open(source)
      if not ck then return nil, msg end
      return nb.convert.to(ck, "compressed-tensors", dir)
    end)
  end)

  it("while a model is evaluated", function()
    local ids = {}
    for i = 1, 15 do ids[i] = i end
    local expected
    each_failure(function()
      local ck, msg = nb.open(model)
      if not ck then return nil, msg end
      local r, why = nb.eval.run { model = ck, ids = nb.tensor("i32", { 15 }, ids), context = 16 }
      if not r then return nil, why end
      expected = expected or r.nll
      assert(r.nll == expected, "another result")
      return r.nll
    end)
  end)
end)
