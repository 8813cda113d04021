-- checks: what cases of the correctness stage share: a device's result against the CPU's byte for byte, over and over, in
-- memory that held rubbish before.
local ffi = require "ffi"
local tensor = require "nibble.tensor"
local data = require "data"

local M = {}

--- must_fail(name) -> true for cases that NB_GPU_CHECK_WRONG=PATTERN names: their comparison gets a wrong number.
function M.must_fail(name)
  local wrong = os.getenv "NB_GPU_CHECK_WRONG"
  return wrong and name:find(wrong) ~= nil
end

local function expected_of(name, list)
  if M.must_fail(name) then
    local p = ffi.cast("uint8_t *", list[1].data)
    p[list[1]:bytes() - 1] = bit.bxor(p[list[1]:bytes() - 1], 1)
  end
  return list
end

--- runs(ctx) -> how often a case is run
function M.runs(ctx) return ctx.small and 2 or 20 end

-- Results as an array of tensors, a number as one of its own.
local function listed(...)
  local out = { ... }
  for i, v in ipairs(out) do
    if type(v) == "number" then
      out[i] = tensor.new("f64", { 1 })
      out[i]:set(1, v)
    end
  end
  return out
end

--- same(case) -> case: run: device(inputs) gives the bytes of cpu(inputs), 20 times
-- case: name; inputs(ctx) -> table; both functions give one tensor or number, or several. Between runs the outputs' memory is filled
-- with 0xa5 and 0xff (NaN) in turn.
function M.same(case)
  function case.run(ctx)
    local inputs = case.inputs(ctx)
    local expected = expected_of(case.name, listed(case.cpu(inputs)))
    for run = 1, M.runs(ctx) do
      for _, t in ipairs(expected) do data.poison(t:bytes(), run % 2 == 0 and 0xff or 0xa5) end
      local results = { case.device(inputs) }
      if not results[1] then error(results[2], 0) end
      local found = listed(unpack(results))
      for i, t in ipairs(expected) do
        if ffi.istype(tensor.device_type, found[i]) then
          local here, msg = found[i]:to "cpu"
          found[i]:free()
          found[i] = here or error(msg, 0)
        end
        local why = data.difference(found[i], t)
        if why then error(("%sin run %d %s"):format(#expected > 1 and "result " .. i .. " " or "", run, why), 0) end
      end
    end
    local elements = 0
    for _, t in ipairs(expected) do elements = elements + t:numel() end
    return { elements = elements, runs = M.runs(ctx) }
  end
  return case
end

--- again(ctx, name, call) -> what call() left on the device, in the computer's memory, and how often it was called
-- Raises where a later call leaves other bytes. The result's memory held rubbish before each.
function M.again(ctx, name, call)
  local first
  for run = 1, M.runs(ctx) do
    if first then data.poison(first:bytes(), run % 2 == 0 and 0xff or 0xa5) end
    local there = call()
    local here, msg = there:to "cpu"
    there:free()
    if not here then error(msg, 0) end
    local why = first and data.difference(here, first)
    if why then error(("run %d is not the first one: %s"):format(run, why), 0) end
    first = first or here
  end
  if M.must_fail(name) then first:set(1, first:get(1) + 1e4) end
  return first, M.runs(ctx)
end

-- Half a unit in the last place of the result, relative; what one f32 sum may lose of the sizes that it adds.
local ROUNDING, SUM = { f32 = 2 ^ -24, f16 = 2 ^ -11, bf16 = 2 ^ -8 }, 2 ^ -23

--- sample(n, most) -> at most `most` of 0..n-1: the ends and others spread between
function M.sample(n, most)
  most = math.min(n, most)
  local out = {}
  for i = 1, most do out[i] = most == 1 and 0 or math.floor((i - 1) * (n - 1) / (most - 1)) end
  return out
end

-- The sums of x[i] w[i], of their magnitudes and of their squares.
local function dot(x, w, k)
  local sum, size, squares = 0, 0, 0
  for i = 0, k - 1 do
    local p = x[i] * w[i]
    sum, size, squares = sum + p, size + math.abs(p), squares + p * p
  end
  return sum, size, squares
end

--- product{m =, n =, k =, y =, dtype =, row =, column =, bias =, rounded =, loose =} -> the greatest difference from float64, as a share
-- of its bound. Of 12 rows and 24 columns. row(r), column(c): f64 [k] of x and of the weight; y [m,n] of that dtype; bias [n]
-- or nil. The bound: y is rounded once; sums in f32 of 16 products at a time lose SUM of the sizes of all that they add;
-- rounded: each weight is rounded to dtype before, one way as often as the other: eight deviations of such a sum;
-- loose: what the sums may lose of their sizes besides.
function M.product(p)
  local worst, rows, xs = 0, M.sample(p.m, 12), {}
  for _, row in ipairs(rows) do xs[row] = p.row(row) end
  for _, col in ipairs(M.sample(p.n, 24)) do
    local w, bias = p.column(col), p.bias and p.bias:get(col + 1) or 0
    for _, row in ipairs(rows) do
      local sum, size, squares = dot(xs[row], w, p.k)
      sum, size = sum + bias, size + math.abs(bias)
      local found = p.y:get(row * p.n + col + 1)
      local bound = math.abs(sum) * ROUNDING[p.dtype] + size * SUM * math.max(1, p.k / 16) + 2 ^ -24
        + (p.loose or 0) * size
        + (p.rounded and 8 * ROUNDING[p.dtype] * math.sqrt(squares) or 0)
      local share = math.abs(found - sum) / bound
      if not (share <= 1) then error(("y[%d, %d] is %.9g, expected %.9g ± %.3g"):format(row, col, found, sum, bound), 0) end
      worst = math.max(worst, share)
    end
  end
  return worst
end

--- on_device(inputs) -> the same table with its tensors on the device; other values as they are
function M.on_device(inputs)
  local out = {}
  for name, value in pairs(inputs) do
    out[name] = ffi.istype(tensor.type, value) and assert(require("nibble.cuda").to(value, "cuda")) or value
  end
  return out
end

return M
