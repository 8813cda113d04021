-- The bugs that scripts/cuda-mutations plants: each names text that stands once in its source. The bugs themselves take
-- an hour; that their texts follow the sources is seen at every run of the specs.

-- s with the first `old` replaced | nil, why
local function planted(s, old, new)
  local from, to = s:find(old, 1, true)
  if not from then return nil, "nowhere" end
  if s:find(old, to + 1, true) then return nil, "twice" end
  return s:sub(1, from - 1) .. new .. s:sub(to + 1)
end

describe("planted bugs", function()
  for path in io.popen("ls scripts/cuda-mutations.d/*.lua"):lines() do
    it("of " .. path:match "[^/]+$" .. " fit their sources", function()
      local plan, wrong = dofile(path), {}
      for spec in plan.spec:gmatch "%S+" do assert.truthy(io.open(spec), spec) end
      for _, bug in ipairs(plan.bugs) do
        local source = assert(io.open(bug[2], "rb"))
        local text, why = source:read "*a", nil
        source:close()
        for i = 3, #bug, 2 do
          if text then text, why = planted(text, bug[i], bug[i + 1]) end
        end
        if why then wrong[#wrong + 1] = ("%s: %s in %s"):format(bug[1], why, bug[2]) end
      end
      assert.same({}, wrong)
    end)
  end
end)
