-- checks: what cases of the correctness stage share: a device's result against the CPU's byte for byte, over and over, in
-- memory that held rubbish before.
local ffi = require "ffi"
local tensor = require "nibble.tensor"
local data = require "data"

local M = {}

-- NB_GPU_CHECK_WRONG=PATTERN: cases whose name matches must fail: a bit of their expected result is turned.
local function expected_of(name, list)
  local wrong = os.getenv "NB_GPU_CHECK_WRONG"
  if wrong and name:find(wrong) then
    local p = ffi.cast("uint8_t *", list[1].data)
    p[list[1]:bytes() - 1] = bit.bxor(p[list[1]:bytes() - 1], 1)
  end
  return list
end

local function runs(ctx) return ctx.emulated and 2 or 20 end

--- same(case) -> case: run: device(inputs) gives the bytes of cpu(inputs), 20 times
-- case: name; inputs(ctx) -> table; both functions give one tensor or several. Between runs the outputs' memory is filled
-- with 0xa5 and 0xff (NaN) in turn.
function M.same(case)
  function case.run(ctx)
    local inputs = case.inputs(ctx)
    local expected = expected_of(case.name, { case.cpu(inputs) })
    for run = 1, runs(ctx) do
      for _, t in ipairs(expected) do data.poison(t:bytes(), run % 2 == 0 and 0xff or 0xa5) end
      local found = { case.device(inputs) }
      if not found[1] then error(found[2], 0) end
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
    return { elements = elements, runs = runs(ctx) }
  end
  return case
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
