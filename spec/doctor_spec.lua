-- doctor: what is here, and for what is missing, why.
local doctor = require "nibble.doctor"
local C = require("nibble.ffi").C

describe("doctor", function()
  it("tells processor, threads, memory, libraries and CUDA", function()
    local r = doctor.examine()
    assert.equal(tonumber(C.nb_threads()), r.cpu.threads)
    assert.equal(6, #r.cpu.sets)
    if io.open "/proc/meminfo" then assert.is_true(r.memory.total_bytes > 2 ^ 20) end
    assert.equal("OpenBLAS", r.libraries[1].name)
    assert.is_true(r.libraries[1].found)
    assert.equal("boolean", type(r.cuda.available))
    if not r.cuda.available then assert.matches("CUDA driver", r.cuda.why) end
    assert.matches("\nprocessor +%S", doctor.text(r))
  end)

  it("tells an instruction set that a limit took away from one that isn't there", function()
    C.nb_cpu_limit(0)
    local r = doctor.examine()
    C.nb_cpu_limit(-1)
    for _, s in ipairs(r.cpu.sets) do
      assert.is_false(s.used)
      local name = s.name:gsub("%-", "%%-")
      assert.matches(s.found and name .. " +found, not used %(limited by NB_CPU%)" or name .. " +no", doctor.text(r))
    end
  end)

  it("says why a library is missing, and what for", function()
    local r = doctor.examine()
    r.libraries[2] = { name = "libedit", found = false, why = "not found", use = "line editing" }
    assert.matches("libedit +no: not found; for line editing", doctor.text(r))
  end)
end)
