-- The command line: what it prints where, its statuses, its suggestions (DESIGN 5).
local nb = require "nibble"
local command = require "spec.support.command"

local MODEL = "spec/models/tiny-llama"

local function ok(args)
  local r = command.run(args)
  assert.equal(0, r.status, r.err)
  return r.out, r.err
end

-- A mistake: status 2, nothing on stdout, one line on stderr.
local function refused(expected, args)
  local r = command.run(args)
  assert.equal(2, r.status, r.err)
  assert.equal("", r.out)
  assert.matches("^nibble: [^\n]*\n$", r.err)
  assert.matches(expected, r.err)
end

describe("command line", function()
  it("tells its version and, for each command, its use from the same data that parses it", function()
    assert.equal("nibble " .. nb.version .. "\n", ok { "--version" })
    local help = ok { "--help" }
    for _, name in ipairs { "inspect", "plan", "run", "convert", "eval", "doctor", "bench" } do
      assert.matches("\n  " .. name .. " +%l", help)
      assert.matches("^usage: nibble " .. name, (ok { name, "--help" }))
      assert.equal(ok { name, "--help" }, (ok { "help", name }))
    end
    assert.matches("%-%-out DIR +the folder", (ok { "run", "--help" }))
  end)

  it("suggests the command, the option, the model that was meant", function()
    refused('unknown command "inspcet"; did you mean "inspect"', { "inspcet", MODEL })
    refused('unknown command "zzzzzz"; nibble %-%-help lists them', { "zzzzzz" })
    refused('inspect has no option %-%-jsno; did you mean "%-%-json"', { "inspect", MODEL, "--jsno" })
    refused("unknown option %-%-verison; did you mean \"%-%-version\"", { "--verison" })
    refused("no such model, script or command: models/none", { "models/none" })
    refused("models/none doesn't exist", { "inspect", "models/none" })
  end)

  it("says what an option or argument lacks", function()
    refused("inspect needs MODEL; usage: nibble inspect MODEL %[PATTERN%]", { "inspect" })
    refused('inspect doesn\'t take "c"; usage', { "inspect", "a", "b", "c" })
    refused("run needs %-%-out DIR", { "run", "recipe", "model" })
    refused("%-%-out needs a value", { "run", "recipe", "model", "--out" })
    refused('%-%-context expects a whole number of at least 2 and at most %d+, found "1"', { "eval", MODEL, "--context", "1" })
    refused('%-%-threads expects a whole number of at least 1.*, found "x"', { "inspect", MODEL, "--threads=x" })
    refused('%-%-threads expects a whole number of at least 1.*, found "0"', { "--threads", "0", "-e", "0" })
    refused("%-%-json takes no value", { "inspect", MODEL, "--json=yes" })
    refused("eval needs either %-%-text FILE or %-%-ids FILE", { "eval", MODEL })
    refused('%-%-set expects key=value, found "group"', { "plan", "recipes/llama-w4a16.lua", MODEL, "--set", "group" })
    refused("%-e needs a piece of Lua", { "-e" })
  end)

  it("inspects: the checkpoint's line, layers that are alike as one, totals", function()
    local out = ok { "inspect", MODEL }
    assert.matches("^tiny%-llama  safetensors  39 tensors  4.2 M params  bf16  8.0 MiB\n", out)
    assert.matches("\nmodel.layers.{0..3}.mlp.down_proj +×4  bf16 +256×768 +16.00  1.5 MiB\n", out)
    assert.matches("\nlm_head +bf16 +2048×256", out)
    assert.matches("\ntotal: 39 modules, 4.2 M params +16.00  8.0 MiB\n$", out)
    local _, lines = ok({ "inspect", MODEL, "--all" }):gsub("\n", "")
    assert.equal(1 + 1 + 39 + 1, lines)
    local some = ok { "inspect", MODEL, "*.0.mlp.*" }
    assert.matches("\nmodel.layers.0.mlp.up_proj", some)
    assert.matches("\ntotal: 3 modules", some)
    refused("no module of .* matches nothing%.%*", { "inspect", MODEL, "nothing.*" })
  end)

  it("prints one JSON document and nothing else with --json", function()
    local doc = assert(nb.json.decode((ok { "inspect", MODEL, "--json" })))
    assert.equal(39, #doc.modules)
    assert.equal("llama", doc.model_type)
    assert.equal(8393216, doc.bytes)
    local by = {}
    for _, m in ipairs(doc.modules) do by[m.name] = m end
    local m = by["model.layers.3.mlp.down_proj"]
    assert.same({ 256, 768, "bf16", "plain", "linear" }, { m.shape[1], m.shape[2], m.dtype, m.format, m.kind })
    assert.equal(m.bytes, m.tensors.weight.bytes)
    local doctor = assert(nb.json.decode((ok { "doctor", "--json" })))
    assert.equal(nb.version, doctor.version)
  end)

  it("runs pieces of Lua: chunks as they are, expressions with their value, parts by name", function()
    assert.equal("", (ok { "-e", "x = 1" }))
    assert.equal("2\n", (ok { "-e", "1 + 1" }))
    assert.equal("3\n", (ok { "-e", "print(... + 1)", "2" }))
    assert.equal("table\tfunction\n", (ok { "-e", "print(type(nibble), type(open))" }))
    refused("^nibble: %-e:1: unexpected symbol near '%)'", { "-e", ")" })
    refused("^nibble: %-e:1: boom", { "-e", "error 'boom'" })
    local r = command.run({ "-e", "error 'boom'" }, { before = "NIBBLE_DEBUG=1" })
    assert.matches("stack traceback", r.err)
  end)

  it("runs scripts with their arguments and the module", function()
    local path = os.tmpname()
    local f = assert(io.open(path .. ".lua", "w"))
    f:write 'local a = ...\nprint(nibble.version, arg[0]:match "%.lua$", arg[2], a)\nif a == "fail" then error "no" end'
    f:close()
    assert.equal(nb.version .. "\t.lua\ttwo\tone\n", (ok { path .. ".lua", "one", "two" }))
    local r = command.run { path .. ".lua", "fail" }
    assert.equal(2, r.status)
    assert.matches(":3: no\n$", r.err)
    os.remove(path)
    os.remove(path .. ".lua")
    refused("cannot open none.lua", { "none.lua" })
  end)

  it("says when its output cannot be written", function()
    if not io.open "/dev/full" then return pending "/dev/full is not here" end
    local err = os.tmpname()
    local status = os.execute(("%s inspect %s >/dev/full 2>%s"):format(command.program, MODEL, err))
    local f = assert(io.open(err))
    assert.equal("nibble: cannot write the output: No space left on device\n", f:read "*a")
    f:close()
    os.remove(err)
    assert.equal(2, status / 256)
  end)

  it("takes --threads before or after the command", function()
    local threads = 'print(require("nibble.ffi").C.nb_threads())'
    assert.equal("1\n", (ok { "--threads", "1", "-e", threads }))
    assert.equal("3\n", (ok { "--threads=3", "-e", threads }))
    local doc = nb.json.decode((ok { "doctor", "--json", "--threads", "1" }))
    assert.equal(1, doc.cpu.threads)
  end)

  it("ends with 130 and says so when it is interrupted", function()
    local r = command.run { "-e", 'error("interrupted", 0)' }
    assert.equal(130, r.status)
    assert.equal("nibble: interrupted\n", r.err)
    local sleepy = 'local ffi = require "ffi" ffi.cdef "int raise(int);" ffi.C.raise(2) '
      .. 'jit.off() for i = 1, 1e8 do local x = i end'
    r = command.run { "-e", sleepy }
    assert.equal(130, r.status)
    assert.equal("nibble: interrupted\n", r.err)
  end)

  it("reports progress on a line per 10 % where stderr is no terminal", function()
    local lines = {}
    local file = { write = function(_, ...) lines[#lines + 1] = table.concat { ... } end, flush = function() end }
    local progress = require "nibble.repl.progress"
    local terminal = progress.terminal
    progress.terminal = function() return false end
    local report, finish = progress.new(file)
    for i = 1, 40 do
      report { done = i, total = 40, bytes = i * 1e8, total_bytes = 4e9, seconds = i / 10,
               name = ("model.layers.%d.mlp.down_proj"):format(i) }
    end
    finish()
    assert.equal(10, #lines)
    assert.equal("nibble:  10%  4/40 down_proj.4  1.0 GB/s  ETA 3.6s\n", lines[1])
    assert.equal("nibble: 100%  40/40 down_proj.40  1.0 GB/s\n", lines[10])
    progress.terminal = function() return true end
    lines = {}
    report = progress.new(file)
    report { done = 500, unit = "tokens", share = 0.5, seconds = 2 }
    assert.equal("\r\27[K████▌     500 tokens  250 tokens/s  ETA 2.0s", table.concat(lines))
    progress.terminal = terminal
    assert.equal("████████▌", progress.bar(141 / 150, 9):gsub(" ", ""), "94 % of nine cells")
  end)
end)

describe("units", function()
  it("are read as people read them", function()
    local units = require "nibble.units"
    assert.same({ "0 B", "1023 B", "1.0 KiB", "15.3 GiB" },
      { units.bytes(0), units.bytes(1023), units.bytes(1024), units.bytes(15.3 * 2 ^ 30) })
    assert.same({ "512", "8.2 G" }, { units.count(512), units.count(8.19e9) })
    assert.same({ "0.4s", "12s", "1m12s", "2h05m" },
      { units.seconds(0.4), units.seconds(12), units.seconds(72), units.seconds(7500) })
  end)
end)
