-- The report of a sweep: what the page says and holds, that hostile names stay text, that it is small and always the same.
-- A browser opens it in spec/all/report_browser_spec.lua.
local nb = require "nibble"
local files = require "spec.support.files"
local results = require "spec.support.results"

-- Without what the page brings itself: style and script.
local function markup(page)
  return (page:gsub("<style>.-</style>", ""):gsub("<script>.-</script>", ""))
end

local function data_of(page)
  return assert(nb.json.decode(assert(page:match '<script type="application/json" id="data">(.-)</script>')))
end

local function row(page, recipe)
  return (page:match('(<tr id="r%d+"[^\n]-<span class="r" title="' .. recipe:gsub("%p", "%%%0") .. '".-\n)'))
end

-- Every element that must be closed is, in order; attributes are quoted.
local void = { meta = true, link = true, input = true }
local optional = { li = true, td = true, th = true, tr = true, p = true, dt = true, dd = true }
local function well_formed(page)
  local open = {}
  for slash, name, rest in markup(page):gsub("<!doctype html>", ""):gmatch "<(/?)([%a%d]+)([^>]*)>" do
    assert.is_nil(rest:find("<", 1, true), rest)
    if slash == "/" then
      while optional[open[#open]] and open[#open] ~= name do open[#open] = nil end
      assert.equal(open[#open], name)
      open[#open] = nil
    elseif not void[name] and not rest:match "/$" then
      open[#open + 1] = name
    end
  end
  assert.same({}, open)
end

describe("report", function()
  local sweep = results.sweep()
  local page = nb.report.html(sweep, { title = "Sweep one" })

  it("says the answer in a sentence: the fewest bits within 1 % of the unquantized perplexity", function()
    assert.matches("<h1>Sweep one</h1>", page, 1, true)
    assert.matches('<strong>w4a16%-g64</strong> keeps <em>tiny%-llama</em> within 1 %% of the unquantized perplexity '
      .. '%(%d%.%d+, %+0%.%d%d %%%) at the fewest bits: <b>4.56 bits per weight</b>', page)
    assert.matches("<b>13</b> recipes<li><b>1</b> model<li><b>1</b> text<li><b>13</b> jobs done<li><span class=\"bad\"><b>1</b> failed", page, 1, true)
  end)

  it("says so when no recipe is within 1 %, when nothing was compared, when nothing is there", function()
    local only = { sweep[1], sweep[13] }
    assert.matches("No recipe keeps <em>tiny%-llama</em> within 1 %%.- the closest is <strong>w2a16</strong> at 2.44 bits", nb.report.html(only))
    local alone = results.result { recipe = "a", bits = 4, scheme = "W4A16" }
    alone.figures.ppl_against = nil
    assert.matches("<strong>a</strong> has the smallest perplexity, .- the unquantized model was not evaluated", nb.report.html { alone })
    local empty = nb.report.html {}
    assert.matches("The sweep has no results yet.", empty, 1, true)
    assert.is_nil(empty:find('<section id="size">', 1, true))
    well_formed(empty)
  end)

  it("has every figure in the table, to the digits of the data", function()
    local r = sweep[8]
    assert.equal("w4a16", r.recipe)
    local line = row(page, "w4a16")
    for _, text in ipairs { "<td>done", "<td>4.44", ("<td>%.4f"):format(r.figures.ppl), ("<td>%.4f"):format(r.figures.ppl / r.figures.ppl_against),
                            ("<td>%.5f"):format(r.figures.kl), ("<td>%.2f %%"):format(100 * r.figures.top1_agreement),
                            ("<td>%.2f"):format(r.figures.worst_sqnr_db), "<td>4.1 GiB" } do
      assert.is_truthy(line:find(text, 1, true), text .. " in " .. line)
    end
    assert.matches("on the Pareto front", line, 1, true)
    assert.is_nil(row(page, "mxfp4a16"):find("Pareto", 1, true), "w4a16-g64 has as few bits and less perplexity")
    assert.matches('<details><summary>failed</summary><p>gptq needs calibration: the recipe has no calibrate\nadd calibrate', page, 1, true)
  end)

  it("is well-formed, complete without a script, and asks the network for nothing", function()
    well_formed(page)
    well_formed(nb.report.html(results.sweep { models = { "a/m", "b/m" }, texts = { "x.txt", "y.txt" } }, { against = sweep }))
    local bare = markup(page)
    for _, section in ipairs { "size", "results", "layers" } do assert.matches('<section id="' .. section .. '">', bare, 1, true) end
    local _, plots = bare:gsub('<svg class="plot ', "")
    assert.equal(6, plots, "two sizes by three qualities")
    assert.matches('<svg class="lines', bare, 1, true)
    assert.matches('<svg class="heat"', bare, 1, true)
    assert.is_nil(page:find "https?:")
    assert.is_nil(page:find "@import")
    for _, url in page:gmatch "(%a+)=\"([^\"]*)\"" do assert.is_nil(url:match "^//") end
    for url in page:gmatch "url%(([^)]*)" do error("an address in the style: " .. url) end
    for address in bare:gmatch 'href="([^"]*)"' do assert.is_truthy(address:match "^#s%d+$" or address == "data:,", address) end
    assert.matches("default-src 'none'", page, 1, true)
  end)

  it("draws the front as steps through recipes that nothing beats, and a mark for every result", function()
    local plot = page:match '<svg class="plot v%-bits%-ppl.-</svg>'
    local _, marks = plot:gsub("<use ", "")
    assert.equal(12, marks)
    local _, on_front = plot:gsub('class="p f"', "")
    local rows, groups = require("nibble.report.rows").new(sweep)
    assert.equal(#groups[1].front, on_front)
    for _, a in ipairs(groups[1].front) do
      for _, b in ipairs(rows) do
        assert.is_false(not b.reference and b.ppl ~= nil and b.bits <= a.bits and b.ppl < a.ppl, a.recipe .. " is beaten")
      end
    end
    local _, steps = plot:match('class="front" d="([^"]*)"'):gsub("H", "")
    assert.equal(#groups[1].front - 1, steps)
    assert.matches(">unquantized</text>", plot, 1, true)
    local twins = require("nibble.report.rows").front({ { i = 2, bits = 4, ppl = 5 }, { i = 1, bits = 4, ppl = 5 }, { i = 3, bits = 5, ppl = 5 } },
      "bits", "ppl")
    assert.same({ 1, 1 }, { #twins, twins[1].i })
  end)

  it("begins with the unquantized model, then by rising perplexity, failed jobs last", function()
    local list = results.sweep()
    list[5].figures.ppl = 1
    local order = {}
    for name in nb.report.html(list):gmatch '<tr id="r%d+"[^\n]-<span class="r" title="([^"]*)"' do order[#order + 1] = name end
    assert.same({ "unquantized", "w6a16", "w8a16" }, { unpack(order, 1, 3) })
    assert.equal("w4a16-gptq", order[14])
  end)

  it("keeps each model and text to its own picture, and names paths that end alike in full", function()
    local two = nb.report.html(results.sweep { models = { "a/m", "b/m" }, texts = { "x.txt", "y.txt" } })
    local _, figures = two:gsub('<figure class="group">', "")
    assert.equal(4, figures)
    assert.matches("<b>a/m</b> on x.txt<", two, 1, true)
    local ways = results.sweep { failed = false }
    for i, r in ipairs(results.sweep { failed = false }) do ways[13 + i], r.context, r.windows = r, 512, nil end
    local read = nb.report.html(ways)
    assert.matches("</b> on heldout.txt, 32 windows of 2048 tokens<", read, 1, true)
    assert.matches("<em>tiny-llama</em> on heldout.txt, all windows of 512 tokens within", read, 1, true)
    local _, layers = two:gsub('<figure class="layers"', "")
    assert.equal(2, layers)
    assert.same({ 29, 0 }, { #data_of(two).models[1].names, data_of(two).models[2].like })
  end)

  it("packs modules: names once, decibels that read back to what was measured", function()
    local data = data_of(page)
    local place = {}
    for i, field in ipairs(data.fields) do place[field] = i end
    assert.equal(29, #data.models[1].names)
    assert.equal(0, data.rows[1][place.kl] == nb.json.null and 0 or 1)
    for i, r in ipairs(data.rows) do
      if data.texts[r[place.recipe]] == "w4a16" then
        assert.is_true(math.abs(r[place.ppl] - sweep[8].figures.ppl) < 1e-5)
        assert.matches("^<tr id=\"r" .. i .. "\"", row(page, "w4a16"))
        local at = {}
        for k, name in ipairs(data.models[1].names) do at[name] = k end
        local decibels = {}
        for cell in (data.texts[r[place.dbs]] .. ","):gmatch "([^,]*)," do decibels[#decibels + 1] = cell end
        for _, m in ipairs(sweep[8].modules) do
          local cell = decibels[at[m.name]]
          if m.sqnr_db then assert.is_true(math.abs(cell / data.scale - m.sqnr_db) <= 0.00501) else assert.equal("", cell) end
        end
      end
    end
  end)

  it("places figures on round ticks: linear, logarithmic from a factor of six, sizes in their unit, one figure alone", function()
    local axis = require "nibble.report.axis"
    local function ends(a) return { a.ticks[1], a.ticks[#a.ticks], a.log or false } end
    assert.same({ 2, 9, false }, ends(axis.new({ 2.1, 8.9 }, { count = 7 })))
    assert.same({ 10, 1000, true }, ends(axis.new { 9, 1100 }))
    assert.same({ 1e-5, 0.1, true }, ends(axis.new { 1e-5, 0.1 }))
    assert.same({ 0, 1000, false }, ends(axis.new { 0, 1000 }))
    assert.same({ 2 ^ 31, 3 * 2 ^ 31, false }, ends(axis.new({ 2 ^ 31, 6e9 }, { unit = 2 ^ 30, count = 4 })))
    for _, values in ipairs { { 5 }, { 0 }, { -3, -3 }, { 1e-300, 1e300 }, { -1e300, 1e300 }, { 9.2431, 9.24311 } } do
      local a = axis.new(values)
      assert.is_true(#a.ticks >= 1 and #a.ticks <= 12, #a.ticks)
      for _, v in ipairs(values) do
        local at = a.place(v)
        assert.is_true(at >= 0 and at <= 1, v .. " is at " .. at)
      end
      for i = 2, #a.ticks do assert.is_true(a.ticks[i] > a.ticks[i - 1]) end
    end
  end)

  it("finds layers and kinds in names, experts as one kind by their worst", function()
    local layers = require "nibble.report.layers"
    local function module(name, db) return { name = name, sqnr_db = db } end
    local r = { recipe = "r", model = "m", model_name = "m", set = "", modules = { module "model.layers.2.input_layernorm",
      module("model.layers.10.mlp.experts.1.down_proj", 11), module("model.layers.2.mlp.experts.0.down_proj", 9),
      module("model.layers.2.mlp.experts.7.down_proj", 7), module("model.layers.2.mlp.shared.down_proj", 8),
      module("model.layers.2.self_attn.q_proj", 12), module("lm_head", 3), module("visual.blocks.0.qkv", 5) } }
    local m = layers.models({ r })[1]
    assert.same({ "mlp.experts.*.down_proj", "mlp.shared.down_proj", "q_proj", "qkv" }, m.kinds)
    assert.same({ "model.layers.2", "model.layers.10", "visual.blocks.0" }, m.columns)
    local by_kind, worst = layers.by_layer(m, r)
    assert.same({ 7, 11 }, by_kind[1])
    assert.same({ 7, 11, 5 }, worst)
  end)

  it("leaves hostile names as text", function()
    local evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`&\226\128\168\226\128\169\0\27[31m]]>--><!--"
    local r = results.result { recipe = evil, bits = 4, scheme = evil, model = "m/" .. evil, text = evil }
    r.host, r.version, r.recipe_text, r.processor, r.set = evil, evil, evil, evil, { [evil] = evil }
    r.modules[1].name, r.modules[2].scheme, r.figures.worst = "model.layers.0." .. evil, evil, evil
    r.modules[1].name = r.modules[1].name .. ".0.x"
    local failed = results.failed { recipe = evil, message = evil }
    local text = nb.report.html({ r, failed }, { title = evil, against = { failed, r }, against_name = evil })
    well_formed(text)
    assert.is_nil(text:find("<img", 1, true))
    assert.is_nil(text:find("onerror=alert(2)>", 1, true))
    local _, scripts = text:lower():gsub("<script", "")
    assert.equal(2, scripts)
    local _, ends = text:lower():gsub("</script", "")
    assert.equal(2, ends)
    assert.is_nil(text:find "<!%-%-")
    assert.is_nil(text:find "[%z\27]")
    local json = text:match 'id="data">(.-)</script>'
    assert.is_nil(json:find("[<>&]"))
    assert.is_nil(json:find("\226\128[\168\169]"))
    local said = table.concat(data_of(text).texts, " ")
    assert.is_truthy(said:find(evil:gsub("[%z\27]", "�"), 1, true), "and the script reads it as it was")
    assert.equal("&lt;a b=&#39;&quot;&amp;&gt;", require("nibble.report.format").html "<a b='\"&>")
  end)

  it("takes figures that are no numbers, and fields that are missing or of another kind", function()
    local nan, inf = 0 / 0, math.huge
    local list = {}
    for i, v in ipairs { nan, inf, -inf, 0, -1, 1e300, 1e-300, "7", true, nb.json.null, {} } do
      local r = results.result { recipe = "r" .. i, bits = 4, scheme = "W4A16" }
      for _, field in ipairs { "ppl", "kl", "bits_per_weight", "bytes", "worst_sqnr_db", "top1_agreement", "ppl_against" } do r.figures[field] = v end
      r.modules[1].sqnr_db, r.modules[2].mse, r.modules[3].bytes, r.seconds, r.peak_bytes, r.context = v, v, v, v, v, v
      list[i] = r
    end
    for _, field in ipairs { "job", "status", "recipe", "set", "model", "text", "figures", "modules", "message", "recipe_text" } do
      for _, v in ipairs { 1, {}, true, nb.json.null } do
        local r = results.result { recipe = "x" .. field, bits = 4, scheme = "W4A16" }
        r[field] = v
        list[#list + 1] = r
      end
    end
    list[#list + 1] = 7
    list[#list + 1] = { modules = { 1, "two", { name = 3 }, {} } }
    local text = nb.report.html(list, { against = list })
    well_formed(text)
    data_of(text)
    assert.is_nil(markup(text):gsub('class="[^"]*"', ""):find 'd="[^"]*[ni][an][nf]', "no place for nan or inf in a picture")
    assert.matches("<td>nan", row(text, "r1"), 1, true)
    assert.matches("<td>inf", row(text, "r2"), 1, true)
  end)

  it("gives the same bytes for the same results, in whatever order they come", function()
    assert.equal(page, nb.report.html(results.sweep(), { title = "Sweep one" }))
    local turned = {}
    for i = #sweep, 1, -1 do turned[#turned + 1] = sweep[i] end
    assert.equal(page, nb.report.html(turned, { title = "Sweep one" }))
  end)

  it("stays below 5 MB for 1,000 results of 252 modules and says what it left out", function()
    local text = nb.report.html(results.many(1000, 36))
    assert.is_true(#text < 5e6, #text)
    assert.is_nil(page:find "leaves out")
    assert.matches("it leaves out the squared error of each module", text, 1, true)
    local _, lines = text:gsub('<tr id="r', "")
    assert.equal(1000, lines)
    assert.equal(252 + 1, #data_of(text).models[1].names)
  end)

  it("leaves out more of the modules where less fits", function()
    local most = nb.report.most_bytes
    local seen, text = {}, page
    for _ = 1, 5 do -- each page one byte too large for the next
      nb.report.most_bytes = #text - 1
      text = nb.report.html(sweep, { title = "Sweep one" })
      seen[#seen + 1] = text:match "it leaves out ([^<]*)%.</p>"
      well_formed(text)
      data_of(text)
    end
    nb.report.most_bytes = most
    assert.same({ "the squared error of each module", "the bytes, scheme and squared error of each module",
      "the modules (each layer's worst one is kept)", "the modules", "the modules and the recipes' text" }, seen)
    assert.is_nil(text:find("made up", 1, true))
  end)
end)

describe("report against another run", function()
  local function judged(change)
    local old, new = results.sweep { failed = false }, results.sweep { failed = false }
    change(new[8], old[8], new, old)
    local rows = require("nibble.report.rows").new
    local c = require("nibble.report.compare").new(rows(new), (rows(old)))
    return c.items[1], c.counts, nb.report.html(new, { against = old, against_name = "old" })
  end

  it("finds nothing changed where nothing did", function()
    local _, counts, text = judged(function() end)
    assert.same({ worse = 0, mixed = 0, better = 0, new = 0, vanished = 0, same = 13 }, counts)
    assert.matches("Nothing changed", text, 1, true)
  end)

  it("marks what got worse, better, both", function()
    local item, counts, text = judged(function(r) r.figures.ppl = r.figures.ppl * 1.002 end)
    assert.same({ "worse", { "perplexity" }, {} }, { item.kind, item.worse, item.better })
    assert.equal(12, counts.same)
    assert.matches('<tr class="worse">.-w4a16.-<small class="bad">%+0.20 %%</small>', text)
    item = judged(function(r) r.figures.kl = r.figures.kl * 0.9 end)
    assert.same({ "better", { "KL" } }, { item.kind, item.better })
    item = judged(function(r) r.figures.bits_per_weight, r.figures.worst_sqnr_db = 4, 3 end)
    assert.same({ "mixed", { "worst SQNR" }, { "bits" } }, { item.kind, item.worse, item.better })
    item = judged(function(r) r.status, r.message, r.figures = "failed", "no memory", {} end)
    assert.same({ "worse", { "failed" } }, { item.kind, item.worse })
    item = judged(function(r) r.figures.ppl = 0 / 0 end)
    assert.equal("worse", item.kind)
    assert.equal("same", judged(function(r) r.figures.ppl = r.figures.ppl * 1.0001 end).kind)
  end)

  it("knows a job by its recipe's hash, else by its name; others are new or vanished", function()
    local _, counts = judged(function(r) r.recipe = "renamed" end)
    assert.equal(13, counts.same)
    _, counts = judged(function(r) r.recipe_hash = "edited" end)
    assert.equal(13, counts.same)
    _, counts = judged(function(r) r.recipe_hash, r.recipe = "new", "new" end)
    assert.same({ 1, 1, 12 }, { counts.new, counts.vanished, counts.same })
    _, counts = judged(function(r) r.set = { group = 64 } end)
    assert.same({ 1, 1 }, { counts.new, counts.vanished })
    _, counts = judged(function(_, _, new) new[#new + 1] = results.sweep()[8] end)
    assert.same({ 1, 0, 13 }, { counts.new, counts.vanished, counts.same })
  end)
end)

describe("report.write", function()
  it("writes the page, all or nothing", function()
    local dir = files.temporary()
    assert(nb.report.write(dir .. "/report.html", results.sweep(), { title = "A" }))
    assert.equal(nb.report.html(results.sweep(), { title = "A" }), files.read(dir .. "/report.html"))
    local ok, msg, code = nb.report.write(dir .. "/none/report.html", {})
    assert.is_nil(ok)
    assert.equal("eio", code)
    assert.matches("none/report.html", msg, 1, true)
    files.remove(dir)
  end)

  it("refuses what is no array of results, and options that it doesn't know", function()
    assert.has_error(function() nb.report.write("x", "results") end, "report: results must be an array of results, found string")
    assert.has_error(function() nb.report.html({}, { against = 1 }) end, "report: against must be an array of results, found number")
    assert.has_error(function() nb.report.html({}, { titel = "x" }) end, 'report: unknown option "titel"; did you mean "title"?')
  end)
end)

describe("nibble report", function()
  local command = require "spec.support.command"
  local root, now, before

  local function folder(name, list)
    local lines = {}
    for i, r in ipairs(list) do lines[i] = require("nibble.sweep.results").encode(r) .. "\n" end
    assert(require("nibble.checkpoint").mkdir(root .. "/" .. name))
    files.write(root .. "/" .. name .. "/results.jsonl", table.concat(lines))
    return root .. "/" .. name
  end

  setup(function()
    root = files.temporary()
    now, before = folder("now", results.sweep()), folder("before", results.sweep { seed = 2 })
  end)
  teardown(function() files.remove(root) end)

  it("writes the folder's report, named after it, and says where", function()
    local r = command.run { "report", now }
    assert.same({ 0, now .. "/report.html\n", "" }, { r.status, r.out, r.err })
    local text = files.read(now .. "/report.html")
    assert.matches("<title>now</title>", text, 1, true)
    assert.equal(14, select(2, text:gsub('<tr id="r', "")))
    r = command.run { "report", now .. "/", "--out", root .. "/elsewhere.html" }
    assert.equal(0, r.status, r.err)
    assert.equal(text, files.read(root .. "/elsewhere.html"))
  end)

  it("compares with another sweep", function()
    local r = command.run { "report", now, "--against", before, "--out", root .. "/compared.html", "--title", "A & B" }
    assert.equal(0, r.status, r.err)
    local text = files.read(root .. "/compared.html")
    assert.matches("<h1>A &amp; B</h1>", text, 1, true)
    assert.matches("<h2>Against before</h2>", text, 1, true)
    assert.matches('<tr class="worse">', text, 1, true)
  end)

  it("says in a sentence what is no sweep, and where it cannot write", function()
    for said, arguments in pairs {
      ["holds no sweep"] = { "report", root }, ["none"] = { "report", root .. "/none" }, ["compared"] =
        { "report", now, "--against", root .. "/compared" },
      ["none/x.html"] = { "report", now, "--out", root .. "/none/x.html" }, ["report needs DIR"] = { "report" },
    } do
      local r = command.run(arguments)
      assert.equal(2, r.status)
      assert.equal("", r.out)
      assert.matches("^nibble: [^\n]*\n$", r.err)
      assert.is_truthy(r.err:find(said, 1, true), r.err)
    end
  end)
end)
