-- The smallest change that the oracle offers does what it says: it is made by its words, and the table asked again.
local backends = require "nibble.backends"
local support = require "spec.support.backends"
local with, weight, linear = support.with, support.weight, support.linear

-- The query with a change made by its words alone, as a person would.
local function obey(q, words)
  local r = with(q)
  r.weight = with(q.weight)
  for part in (words .. " and "):gmatch "(.-) and " do
    local what, size = part:match "^pad (.-) from %d+ to (%d+)$"
    local group = part:match "^group (%-?%d+) instead"
    if what then
      local field = ({ N = "n", K = "k", ["the intermediate size"] = "intermediate" })[what]
      r[field], r[field .. "_full"] = nil, tonumber(size)
    elseif group then
      r.weight.group, r.weight.strategy = tonumber(group), tonumber(group) > 0 and "group" or "channel"
    elseif part:match "^tp " then r.tp = tonumber(part:match "^tp (%d+)")
    elseif part:match "^dtype " then r.dtype = part:match "^dtype (%w+)"
    elseif part:match "^symmetric" then
      r.weight.symmetric = true
      if part:match "compressed%-tensors" then r.weight.format = "compressed-tensors" end
    elseif part == "no act-order" then r.weight.actorder = nil
    elseif part:match "^compressed%-tensors" then r.weight.format = "compressed-tensors"
    elseif part:match "^install " then r.packages = with(r.packages or {}, { [part:match "^install (.*)$"] = true })
    elseif part:match "^sm_" then r.device = part:match "^(sm_%d+)"
    else error("what does this change mean: " .. part) end
  end
  return r
end

describe("the change that is offered", function()
  local state = 12345
  local function random(list)
    state = (state * 1103515245 + 12345) % 2147483648
    return list[math.floor(state / 65536) % #list + 1]
  end

  local function any_query()
    local kind = random { "linear", "linear", "moe" }
    local q = { consumer = random { "vllm-0.33", "vllm-0.33", "document-era", "pymllm", "inc-cuda", "inc-xpu" },
      kind = kind,
                device = random { "sm_75", "sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "xpu", "rocm", "cpu" },
                dtype = random { "bf16", "f16" }, tp = random { 1, 2, 4, 8 }, bias = random { false, false, true },
                format = random { "standard", "standard", "batched" } }
    q.weight = { type = "int", bits = random { 4, 4, 4, 8, 3 }, group = random { 128, 64, 32, 16, 256, -1 },
      symmetric = random { true, false },
                 actorder = random { false, false, "group" } or nil, format = random { "awq", "gptq",
                   "pack-quantized" } }
    if random { 1, 2, 3, 4 } == 1 then
      q.weight = { type = "float", bits = 8, strategy = "block", block = { 128, 128 } }
      q.activation = { type = "float", bits = 8, strategy = "group", group = 128 }
    elseif random { 1, 2, 3, 4, 5 } == 1 then
      q.weight = { type = "float", bits = 4, strategy = "tensor_group", group = 16 }
    end
    if kind == "linear" then
      q.parallel = random { "row", "column" }
      q.k_full, q.n_full = random { 4096, 11008, 3584, 18944, 2048 }, random { 4096, 11008, 11000, 18944, 1000 }
    else
      q.hidden, q.intermediate_full, q.experts = random { 2048, 4096, 2880 }, random { 768, 1408, 1536, 14336 },
        random { 8, 128 }
    end
    return q
  end

  it("leads to the better backend when it is made, in hundreds of queries", function()
    local offered, kinds = 0, {}
    for _ = 1, 700 do
      local q = any_query()
      local r, _, _, rejected = backends.select(q)
      local change, better = (r or rejected).change, (r or rejected).better
      if change then
        offered = offered + 1
        for part in (change .. " and "):gmatch "(.-) and " do kinds[part:match "^%a+"] = true end
        for _, changed in ipairs { obey(q, change), better.query } do
          local after = assert(backends.select(changed, { change = false }))
          assert.equal(better.backend, after.backend)
          assert.is_falsy(after.fallback)
          if r and r.position then
            local place = {}
            for i, name in ipairs(backends.priority(with(q, { table = r.table }))) do place[name] = i end
            assert.is_true(place[after.backend] < r.position)
          end
        end
      end
    end
    assert.is_true(offered > 100, offered .. " changes were offered")
    for _, kind in ipairs { "pad", "group", "tp", "symmetric", "sm", "dtype", "install" } do assert.is_true(kinds[kind],
      kind) end
  end)

  it("is worded for a person", function()
    local r = assert(backends.select(linear { device = "sm_90", n = 11000 }))
    assert.equal("pad N from 11000 to 11008", r.change)
    r = assert(backends.select(linear { device = "sm_90", weight = weight { group = 32 } }))
    assert.equal("group 128 instead of 32", r.change)
    r = assert(backends.select(linear { consumer = "document-era", weight = weight { symmetric = false,
      format = "awq" }, k = false,
                                        k_full = 11008, parallel = "row", tp = 4 }))
    assert.equal("tp 2 instead of 4", r.change)
    r = assert(backends.select(linear {}))
    assert.equal("sm_90 instead of sm_80", r.change)
    -- Machete is behind a kernel for fp8 input only, which no change of the weights lets in.
    assert.is_nil(assert(backends.select(linear { device = "sm_90" })).change)
  end)
end)
