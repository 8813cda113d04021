-- Thousands of small modules: a run's time is told a module, and its memory stays within plan:estimate().
local nb = require "nibble"
local nffi = require "nibble.ffi"
local files = require "spec.support.files"

local MODULES, N, K = 1500, 64, 128

describe("a run of many small modules", function()
  it("stays within the memory that its plan tells", function()
    local dir = files.temporary()
    local tensors, value = {}, nb.tensor("bf16", { N, K })
    for i = 0, N * K - 1 do value:set(i + 1, (i * 37 % 101 - 50) / 64) end
    for i = 1, MODULES do tensors[i] = { name = ("model.layers.0.mlp.experts.%d.up_proj.weight"):format(i), dtype = "bf16", shape = { N, K } } end
    assert(nb.checkpoint.mkdir(dir .. "/in"))
    local w = assert(nb.checkpoint.writer { dir = dir .. "/in", tensors = tensors })
    for _, t in ipairs(tensors) do assert(w:put(t.name, value)) end
    assert(w:finish())
    local plan = assert(nb.plan({ name = "all", scheme = "W4A16" }, assert(nb.open(dir .. "/in"))))
    local bound, t0 = plan:estimate().memory_bytes, nffi.C.nb_now()
    local result = assert(plan:run(dir .. "/out"))
    print(("  %d modules of %dx%d: %.0f us each"):format(MODULES, N, K, (nffi.C.nb_now() - t0) / MODULES * 1e6))
    assert.equal(MODULES, result.proven)
    assert.is_true(tonumber(nffi.C.nb_peak_rss()) <= bound)
    -- One decision, layout and scheme for all of them; each has its own name.
    assert.equal(plan.jobs[1].layout, plan.jobs[2].layout)
    assert.equal(plan.jobs[1].out.scheme, plan.jobs[2].out.scheme)
    assert.equal("model.layers.0.mlp.experts.2.up_proj", plan.jobs[2].out.name)
    files.remove(dir)
  end)
end)
