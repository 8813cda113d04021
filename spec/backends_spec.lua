-- The oracle's engine, over invented consumers: order, reasons, logs, explicit choice, changes (ORC-03 to ORC-13,
-- AWQ-20).
local backends = require "nibble.backends"

-- One MoE table: A (two classes) and B refuse by what each test scripts, C is the last resort, D must be asked for.
local function consumer(o)
  o = o or {}
  return {
    name = "invented", packages = { there = true },
    tables = { {
      name = "fake MoE", kind = "moe", requirement = "T-1", staged = true, when = { { "kind_of_weight", "int" } },
      order = o.order or { "A", "B", "C" }, front = o.front, orders = o.orders, clamp = o.clamp, twins = o.twins,
      fallback = o.fallback, none_on = o.none_on, quant = { block_shape = "group" },
      rows = {
        { name = "A", requirement = "T-2", checks = { { "platform", "cuda" } }, classes = {
          { name = "monolithic", class = "AMono", format = "standard", monolithic = true,
            checks = { { "routing", "sigmoid" } } },
          { name = "modular", class = "AModular", format = "standard", takes = { "lora" }, checks = { { "bits", 4 } } },
        } },
        { name = "B", class = "BExperts", format = "batched", checks = o.b or { { "group", 64 } } },
        { name = "C", class = "CExperts", format = "standard", takes = o.takes
          or { "ungated", "hash_routing", "lora", "batch_invariance" },
          checks = o.c or {} },
        { name = "D", class = "DExperts", format = "standard", checks = { { "package", "missing" } } },
      },
      explicit = { { "a", "A" }, { "bee", "B" }, { "c", "C" }, { "d", "D" } },
    } },
  }
end

local function query(o)
  local q = { consumer = "invented", kind = "moe", device = "sm_80", hidden = 256, intermediate = 128, experts = 8,
              weight = { type = "int", bits = 4, group = 128, symmetric = true } }
  for k, v in pairs(o or {}) do q[k] = v end
  return q
end

local function use(o) backends.add(consumer(o)) end

local function snapshot(t)
  if type(t) ~= "table" then return tostring(t) end
  local keys, out = {}, {}
  for k in pairs(t) do keys[#keys + 1] = tostring(k) end
  table.sort(keys)
  for _, k in ipairs(keys) do out[#out + 1] = k .. "=" .. snapshot(t[k] == nil and t[tonumber(k)] or t[k]) end
  return "{" .. table.concat(out, ",") .. "}"
end

local function reason(q)
  for _, r in ipairs(assert(backends.reasons(q))) do
    if r.backend == "C" then return r.reason end
  end
end

describe("backends: the engine", function()
  before_each(function() use() end)

  it("ORC-05: asks every class of every backend in order and takes the first yes", function()
    local r = assert(backends.select(query()))
    assert.same({ "A", "AModular", 1, 3, false }, { r.backend, r.class, r.position, r.of, r.monolithic })
    assert.same({ "A monolithic" }, { r.rejected[1].backend .. " " .. r.rejected[1].variant })
    assert.matches("takes the routing sigmoid, found renormalize", r.rejected[1].reason)
    assert.equal("T-2", r.rejected[1].requirement)
    r = assert(backends.select(query { routing = { method = "sigmoid" } }))
    assert.same({ "AMono", true, 0 }, { r.class, r.monolithic, #r.rejected })
    r = assert(backends.select(query { device = "cpu" }))
    assert.equal("C", r.backend)
    assert.same({ "A", "A", "B" }, { r.rejected[1].backend, r.rejected[2].backend, r.rejected[3].backend })
    use { order = { "C", "A", "B" } }
    assert.equal("C", assert(backends.select(query())).backend)
  end)

  it("ORC-05: each yes is told once at info, each no once at debug, with backend and reason", function()
    local told = {}
    local function sink(level, message) told[#told + 1] = level .. " " .. message end
    for _ = 1, 3 do assert(backends.select(query { device = "cpu" }, { log = sink })) end
    assert.equal(3, #told) -- A's two classes have one reason
    assert.matches("^debug .*backend A .*needs CUDA, found the CPU", told[1])
    assert.matches("^debug .*backend B .*takes the group sizes 64, found 128", told[2])
    assert.matches("^info .*backend C$", told[3])
    local again = {}
    assert(backends.select(query { device = "cpu" }, { log = function(_, m) again[#again + 1] = m end }))
    assert.equal(3, #again)
  end)

  it("ORC-06: no match is an error that lists every backend with its reason", function()
    use { c = { { "bits", 8 } } }
    local r, msg, code, rejected = backends.select(query { device = "cpu" }, { change = false })
    assert.is_nil(r)
    assert.equal("eunsupported", code)
    assert.matches("^no fake MoE backend supports the deployment configuration: A %(monolithic%): needs CUDA", msg)
    assert.matches("B: takes the group sizes 64, found 128; C: takes weights of bits 8, found 4$", msg)
    assert.equal(4, #rejected)
  end)

  it("ORC-07: the message of an unsupported backend, with a reason and without", function()
    assert.equal("the fake MoE backend A does not support this deployment: it needs SM 90",
      backends.unsupported("fake MoE", "A", "needs SM 90"))
    assert.equal("the fake MoE backend A does not support this deployment", backends.unsupported("fake MoE", "A"))
  end)

  it("ORC-08: a backend's classes; an unknown backend is an error naming it", function()
    assert.same({ "AMono", "AModular" }, backends.classes("invented", "fake MoE", "A"))
    assert.error_matches(function() backends.classes("invented", "fake MoE", "Z") end,
      "unknown fake MoE backend Z; known: A, B, C, D")
  end)

  it("ORC-09: the first refusal in the order of the features is the reason", function()
    -- Everything is wrong at once; mending one feature after another shows the next reason.
    use { takes = {}, c = { { "multiple", "hidden", 512 }, { "logits", "bf16" }, { "routing", "sigmoid" },
      { "no_eplb" },
      { "weights", "int4" }, { "activation_fn", "silu" }, { "platform", "cuda" } } }
    local q = query { device = "cpu", gated = false, activation_fn = "gelu", eplb = true, hidden = 256,
      format = "batched",
      weight = { type = "int", bits = 8, group = 128 }, routing = { hash = true, method = "softmax", logits = "f32" },
      batch_invariant = true, lora = true }
    local order = {}
    local function step(field, value)
      order[#order + 1] = reason(q)
      if field == "routing" then
        q.routing = value
      else
        q[field] = value
      end
    end
    step("device", "sm_80")
    step("gated", true)
    step("activation_fn", "silu")
    step("weight", { type = "int", bits = 4, group = 128 })
    step("eplb", false)
    step("routing", { method = "softmax", logits = "f32" })
    step("routing", { method = "sigmoid", logits = "f32" })
    step("routing", { method = "sigmoid", logits = "bf16" })
    step("hidden", 512)
    step("format", "standard")
    step("batch_invariant", false)
    step("lora", false)
    assert.same({
      "needs CUDA, found the CPU", "takes no non-gated MLP", "takes the activation functions silu, found gelu",
      "takes weights of int4, found int8", "takes no balancing of experts across ranks (EPLB)", "takes no hash routing",
      "takes the routing sigmoid, found softmax", "takes router logits of bf16, found f32 with the routing sigmoid",
      "needs the hidden size of a multiple of 512, found 256", "serves standard activations, found batched",
      "is not batch invariant", "takes no LoRA",
    }, order)
    assert.is_nil(reason(q))
  end)

  it("ORC-09: routes changed after routing are refused by monolithic classes only", function()
    local q = query { routing = { method = "sigmoid", changed = true } }
    local r = assert(backends.select(q))
    assert.equal("AModular", r.class)
    assert.equal("routes by itself, so routes cannot be changed after routing", r.rejected[1].reason)
  end)

  it("ORC-03: each format has its own backend", function()
    local q = query { weight = { type = "int", bits = 4, group = 64 }, format = "batched" }
    local r = assert(backends.select(q))
    assert.same({ "B", "batched" }, { r.backend, r.format })
    assert.equal("serves standard activations, found batched", r.rejected[2].reason)
    assert.error_matches(function() assert(backends.select(query { format = "packed" })) end,
      "expected standard or batched")
  end)

  it("ORC-11: an explicit backend is mapped, checked alone and never falls through", function()
    local r = assert(backends.select(query { backend = "C" }))
    assert.same({ "C", 0, 1 }, { r.backend, #r.rejected, r.position })
    local none, msg, code, rejected = backends.select(query { backend = "bee" })
    assert.is_nil(none)
    assert.equal("eunsupported", code)
    assert.matches("the fake MoE backend B does not support this deployment: it takes the group sizes 64, found 128",
      msg)
    assert.equal(1, #rejected)
    none, msg, code = backends.select(query { backend = "best" })
    assert.is_nil(none)
    assert.equal("einval", code)
    assert.equal("backend best is unknown to the table fake MoE; expected one of a, bee, c, d", msg)
    assert.equal("B", backends.explicit("invented", "fake MoE", "BEE"))
  end)

  it("ORC-11: what is not in the order can be asked for only", function()
    assert.same({ "A", "B", "C" }, backends.priority { consumer = "invented", table = "fake MoE", device = "cpu" })
    assert.equal("D", assert(backends.select(query { backend = "d", packages = { missing = true } })).backend)
    local _, msg = backends.select(query { backend = "d" }, { change = false })
    assert.matches("needs the package missing, which is not installed", msg)
  end)

  it("CTM-NVFP4-11, CTM-FP8-13: a batched query swaps in the twin of what was asked for", function()
    use { twins = { A = "B" } }
    local q = query { backend = "a", format = "batched", weight = { type = "int", bits = 4, group = 64 } }
    assert.equal("B", assert(backends.select(q)).backend)
  end)

  it("CTM-NVFP4-11: a clamp removes what does not apply it, and is an error for one asked for by name", function()
    use { clamp = { "C" } }
    local r = assert(backends.select(query { clamp = 7 }))
    assert.equal("C", r.backend)
    assert.equal("does not apply the SwiGLU clamp (limit 7)", r.rejected[1].reason)
    local none, msg = backends.select(query { clamp = 7, backend = "a" })
    assert.is_nil(none)
    assert.equal("the model clamps SwiGLU at 7, which the backend a does not apply: use c", msg)
    assert.equal("A", assert(backends.select(query())).backend)
  end)

  it("ORC-02: orders and moves to the front depend on the query", function()
    use { orders = { { when = { { "platform", "cpu" } }, "C" } },
      front = { { when = { { "capability", exact = { 90 } }, { "platform", "cuda" } }, "C" } } }
    local function order(device) return backends.priority { consumer = "invented", table = "fake MoE",
      device = device } end
    assert.same({ "A", "B", "C" }, order "sm_80")
    assert.same({ "C", "A", "B" }, order "sm_90")
    assert.same({ "C" }, order "cpu")
  end)

  it("C-05: where a table has a fallback it runs with a warning, told once; strict raises instead", function()
    use { c = { { "bits", 8 } }, fallback = { name = "plain", warning = "falling back to plain kernels" } }
    local told = {}
    local function sink(level, m) if level == "warning" then told[#told + 1] = m end end
    local r
    for _ = 1, 2 do r = assert(backends.select(query { device = "cpu", name = "mlp.0" }, { log = sink })) end
    assert.same({ "plain", true, 4, 1 }, { r.backend, r.fallback, #r.rejected, #told })
    assert.matches("^falling back to plain kernels for layer mlp.0: A", told[1])
    assert.is_nil((backends.select(query { device = "cpu", strict = true })))
    assert.is_nil((backends.select(query { device = "cpu", backend = "bee" })))
  end)

  it("CTM-FP8-12: where a table allows none, no match is no error", function()
    use { c = { { "bits", 8 } }, none_on = { "cpu" } }
    local r = assert(backends.select(query { device = "cpu" }))
    assert.same({ "NONE", true, 4 }, { r.backend, r.none, #r.rejected })
    assert.is_nil((backends.select(query { weight = { type = "int", bits = 2, group = 128 } })))
  end)

  it("AWQ-21: a backend disabled by its name or its class says so", function()
    local r = assert(backends.select(query { disabled = { "AModular", "a" } }))
    assert.equal("C", r.backend)
    assert.equal("is disabled by name", r.rejected[2].reason)
    for _, name in ipairs { "a", "A" } do -- its name takes all classes out
      r = assert(backends.select(query { disabled = { name } }))
      assert.same({ "is disabled by name", "is disabled by name" }, { r.rejected[1].reason, r.rejected[2].reason })
    end
  end)

  it("ORC-21: the query is never changed", function()
    for _, q in ipairs { query { tp = 2, intermediate_full = 256,
                                 weight = { type = "int", bits = 4, group = 64, actorder = "group", symmetric = false,
                                   format = "awq" } },
                         query { device = "cpu", backend = "bee", routing = { method = "x" }, disabled = { "C" } } } do
      local before = snapshot(q)
      backends.select(q)
      backends.reasons(q)
      assert.equal(before, snapshot(q))
    end
  end)

  it("AWQ-36: the description tells bits, group, zero-points, scales, block shape and bias", function()
    local d = assert(backends.select(query { bias = true })).quant
    assert.same({ bits = 4, type = "uint4b8", group = 128, zero_points = false, scales = "group",
      block_shape = { 0, 128 },
                  bias = true, activations = "none", weight_only = true }, d)
    d = assert(backends.select(query { weight = { type = "int", bits = 4, group = 64, symmetric = false } })).quant
    assert.same({ "uint4", true, { 0, 64 } }, { d.type, d.zero_points, d.block_shape })
  end)

  it("gives every backend's verdict, also below the chosen one, and what else would do", function()
    local list = assert(backends.reasons(query()))
    assert.equal(4, #list)
    assert.same({ false, true, false, true }, { list[1].ok, list[2].ok, list[3].ok, list[4].ok })
    assert.same({ "C" }, assert(backends.select(query())).also)
  end)

  it("refuses wrong questions in a sentence", function()
    local function message(o)
      local _, msg = backends.select(query(o))
      return msg
    end
    assert.matches('unknown consumer invent; did you mean "invented"%?; known: .*invented$',
      message { consumer = "invent" })
    assert.matches("device \"tpu\" is unknown: expected sm_75 to sm_120, cuda, cpu, xpu, rocm or a gfx name",
      message { device = "tpu" })
    assert.matches("name the one that is meant, as sm_80", message { device = "cuda" })
    assert.matches("kind conv: expected linear or moe", message { kind = "conv" })
    assert.matches("weight type \"int4b7\"", message { weight = { type = "int4b7" } })
    local _, msg = backends.select { consumer = "invented", kind = "moe", device = "cpu", tp = 8,
      intermediate_full = 100,
      hidden = 64, weight = { bits = 4 } }
    assert.equal("intermediate = 100 does not divide among 8 tensor-parallel ranks", msg)
    assert.matches("^invented has no table for linear layers$", message { kind = "linear" })
    assert.matches("^invented has no table for nvfp4 weights, group 16 %(fake MoE: takes weights of kind int, "
      .. "found float%)$",
      message { weight = { type = "float", bits = 4, group = 16 } })
    assert.error_matches(function() backends.select "x" end, "a query is a table")
    _, msg = backends.explicit("invented", "fake", "a")
    assert.matches("no table fake", msg)
  end)

  it("looks tables over when they are added", function()
    local function add(change)
      local data = consumer()
      change(data.tables[1])
      return function() backends.add(data) end
    end
    assert.error_matches(add(function(t) t.rows[2].checks = { { "colour", "red" } } end),
      'backend B: there is no predicate "colour"')
    assert.error_matches(add(function(t) t.order = { "A", "Q" } end), 'there is no backend "Q"')
    assert.error_matches(add(function(t) t.rows[2].name = "A" end), "the backend A is there twice")
    assert.error_matches(add(function(t) t.explicit[1] = { "q", "Q" } end), 'there is no backend "Q"')
  end)
end)

describe("backends: the smallest change", function()
  before_each(function() use() end)

  it("none where nothing helps: a CPU is not traded for a GPU", function()
    assert.is_nil(assert(backends.select(query { device = "cpu" })).change)
  end)

  it("tries the smallest edit first, then two together, and names what they let in", function()
    backends.add { name = "invented", tables = { { name = "t", kind = "linear", when = {}, rows = {
      { name = "fast", checks = { { "multiple", "n", 128 }, { "symmetric" } } }, { name = "slow" } } } } }
    local linear = { consumer = "invented", kind = "linear", device = "cpu", n = 11000, k = 4096,
      weight = { bits = 4, group = 128 } }
    local r = assert(backends.select(linear))
    assert.same({ "slow", "pad N from 11000 to 11008", "fast" }, { r.backend, r.change, r.better.backend })
    linear.weight.symmetric = false
    r = assert(backends.select(linear))
    assert.equal("pad N from 11000 to 11008 and symmetric weights (no zero-points)", r.change)
    linear.n = 11008
    assert.equal("symmetric weights (no zero-points)", assert(backends.select(linear)).change)
    assert.equal("fast", assert(backends.select(assert(backends.select(linear)).better.query)).backend)
  end)

  it("says with a refusal what would work, and lets itself be switched off", function()
    use { c = { { "group", 32 } }, order = { "C" } }
    local _, msg, _, rejected = backends.select(query())
    assert.matches("; it would work with: group 32 instead of 128$", msg)
    assert.same({ "group 32 instead of 128", "C" }, { rejected.change, rejected.better.backend })
    _, msg = backends.select(query(), { change = false })
    assert.not_matches("it would work", msg)
  end)

  it("offers each kind of edit", function()
    local function change(checks, o)
      backends.add { name = "invented", tables = { { name = "t", kind = "linear", when = {}, rows = {
        { name = "fast", class = "Fast", checks = checks }, { name = "slow" } } } } }
      local q = { consumer = "invented", kind = "linear", device = "sm_80", n = 4096, k = 4096,
        weight = { bits = 4, group = 64 } }
      for k, v in pairs(o or {}) do q[k] = v end
      local r = assert(backends.select(q))
      if r.better then assert.equal(r.better.backend, assert(backends.select(r.better.query)).backend) end
      return r.change
    end
    assert.equal("dtype f16 instead of bf16", change { { "input", "f16" } })
    assert.equal("group -1 instead of 64", change { { "group", -1 } })
    assert.equal("pad K from 4100 to 4352", change({ { "multiple", "k", 256 } }, { k = 4100 }))
    assert.equal("no act-order", change({ { "no_actorder" } }, { weight = { bits = 4, group = 64,
      actorder = "group" } }))
    assert.equal("install fastlib", change { { "package", "fastlib" } })
    assert.equal("enable Fast", change({}, { disabled = { "Fast" } }))
    assert.equal("compressed-tensors instead of the awq layout",
      change({ { "not_layout", "awq" } }, { weight = { bits = 4, group = 64, format = "awq" } }))
    assert.equal("sm_90 instead of sm_80", change { { "capability", exact = { 90, 100 } } })
    assert.equal("sm_75 instead of sm_80", change { { "capability", exact = { 75 } } })
    assert.equal("tp 2 instead of 4", change({ { "multiple", "k", 128 } },
      { k = false, k_full = 11008, parallel = "row", tp = 4 }))
    -- Every rank's part of N gets the multiple.
    assert.equal("pad N from 4000 to 4096",
      change({ { "multiple", "n", 512 } }, { n = false, n_full = 4000, parallel = "column", tp = 8 }))
    assert.is_nil(change { { "platform", "xpu" } })
  end)
end)

describe("backends: lines for a person", function()
  it("chosen, rejected by priority with reasons and requirements, then the change", function()
    use { order = { "A", "B", "C" } }
    local lines = backends.text(backends.select(query { device = "cpu",
      weight = { type = "int", bits = 4, group = 128 } }))
    assert.equal("invented, fake MoE, cpu: C, 3rd of 3", lines[1])
    assert.equal("  no  A (monolithic)  needs CUDA, found the CPU  [T-2]", lines[2])
    assert.equal("  no  B               takes the group sizes 64, found 128  [T-1]", lines[4])
  end)

  it("a refusal, a fallback and no backend", function()
    use { c = { { "group", 32 } }, order = { "C" } }
    local lines = backends.text(backends.select(query()))
    assert.same({ "refused: no fake MoE backend supports the deployment configuration",
                  "  no  C  takes the group sizes 32, found 128  [T-1]", "  change: group 32 instead of 128 -> C" },
                    lines)
    lines = backends.text(backends.select(query { consumer = "nobody" }))
    assert.equal(1, #lines)
    assert.matches("^refused: unknown consumer nobody", lines[1])
    use { c = { { "bits", 8 } }, order = { "C" }, fallback = { name = "plain", warning = "w" } }
    assert.equal("invented, fake MoE, sm_80: plain, a fallback", backends.text(backends.select(query()))[1])
    use { c = { { "bits", 8 } }, order = { "C" }, none_on = { "cuda" } }
    assert.equal("invented, fake MoE, sm_80: no backend", backends.text(backends.select(query()))[1])
  end)
end)
