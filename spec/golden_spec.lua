-- Every golden case whose operation nibble has, against what the peers' own code gave, bit for bit
-- (spec/support/golden.lua).
local golden = require "spec.support.golden"

describe("golden", function()
  local ops, by_op, order = golden.operations(), golden.cases()

  local passed, failed, not_covered, missing = 0, 0, 0, {}
  for _, op in ipairs(order) do
    if ops[op] then
      it(("%s (%d)"):format(op, #by_op[op]), function()
        local failures = {}
        for _, entry in ipairs(by_op[op]) do
          local failure, uncovered = golden.run(ops[op], entry)
          if uncovered then
            not_covered = not_covered + 1
            if missing[#missing] ~= op then missing[#missing + 1] = op end
          elseif failure then
            failed = failed + 1
            failures[#failures + 1] = entry.id .. ": " .. failure
          else
            passed = passed + 1
          end
        end
        assert(#failures == 0, table.concat(failures, "\n"))
      end)
    else
      not_covered = not_covered + #by_op[op]
      missing[#missing + 1] = op
    end
  end

  it("closes with the counts", function()
    io.stdout:write(("\ngolden: %d passed, %d failed, %d not covered\n"):format(passed, failed, not_covered))
    io.stdout:write(("not covered: %s\n"):format(#missing > 0 and table.concat(missing, ", ") or "none"))
    assert(passed > 0, "no case of the golden set was run")
  end)
end)
