-- The report in a real browser: it sorts, filters, unfolds, keeps its state in the address, says nothing on the console, fits
-- a narrow window, and hostile names run nothing. Pictures to look at: build/report-light.png, -dark, -narrow, -against.
local nb = require "nibble"
local browser = require "spec.support.browser"
local results = require "spec.support.results"

local build = os.getenv "NIBBLE_BUILD" or "build"

-- In every probe: the recipes of the visible rows, in their order.
local helpers = [[
  const $ = (s) => document.querySelector(s), $$ = (s) => [...document.querySelectorAll(s)];
  const recipes = () => $$("#table tbody tr[id]").filter((r) => !r.hidden).map((r) => r.querySelector(".r").textContent);
  const tick = () => new Promise((r) => setTimeout(r, 20));
  const head = (field) => $('#table th[data-field="' + field + '"]');
]]

describe("report in a browser", function()
  local sweep = results.sweep { layers = 24 }
  sweep[7].modules[3].sqnr_db = math.huge
  local page = nb.report.html(sweep, { title = "Sweep of tiny-llama" })

  local function probe(script, o)
    local value, said = browser.probe(o and o.page or page, helpers .. script, o)
    assert.same({}, said)
    assert.is_nil(type(value) == "table" and value.error or nil)
    return value
  end

  -- Recipes by a figure of theirs; those without one last, in the page's order.
  local function by(field, falling)
    local rows = require("nibble.report.rows").new(sweep)
    local with, without = {}, {}
    for _, row in ipairs(rows) do table.insert(row[field] and with or without, row) end
    table.sort(with, function(a, b)
      if a[field] ~= b[field] then return (a[field] < b[field]) ~= (falling or false) end
      return a.i < b.i
    end)
    local out = {}
    for _, list in ipairs { with, without } do
      for _, row in ipairs(list) do out[#out + 1] = row.recipe end
    end
    return out
  end

  teardown(browser.close)

  it("would tell of a script that fails", function()
    local _, said = browser.probe("<!doctype html><body><script>nothing.here()</script></body>", "return 1")
    assert.matches("nothing is not defined", table.concat(said))
  end)

  it("sorts by click and by key, says so to those who hear it, and puts what has no figure last", function()
    local r = probe [[
      const out = { before: recipes() };
      head("kl").querySelector("button").click(); out.kl = recipes(); out.aria = head("kl").getAttribute("aria-sort");
      head("kl").querySelector("button").click(); out.falling = recipes(); out.aria2 = head("kl").getAttribute("aria-sort");
      head("sqnr").querySelector("button").click(); out.sqnr = recipes(); out.others = $$("[aria-sort]").length;
      head("bits").querySelector("button").focus(); out.focused = document.activeElement.textContent;
      out.tags = $$("#table thead th").map((th) => th.querySelector("button").type);
      out.address = location.hash;
      return out;]]
    assert.same(by("kl"), r.kl)
    assert.equal("ascending", r.aria)
    assert.same(by("kl", true), r.falling)
    assert.equal("descending", r.aria2)
    assert.same(by("sqnr", true), r.sqnr)
    assert.equal(1, r.others)
    assert.equal("bits/weight", r.focused)
    assert.equal(13, #r.tags)
    assert.equal("#sort=sqnr&dir=desc", r.address)
  end)

  it("filters by words and by scheme, in the table and in the pictures", function()
    local r = probe [[
      const out = {}, box = $("input[type=search]");
      const type = (text) => { box.value = text; box.dispatchEvent(new Event("input")); };
      type("W4A16 G64"); out.words = recipes();
      out.dim = $$(".v-bits-ppl .p:not(.off)").length;
      type("failed"); out.failed = recipes(); out.count = $(".count").textContent;
      type(""); const chip = $$(".chip").find((c) => c.textContent === "W4A16"); chip.click();
      out.chip = recipes(); out.pressed = chip.getAttribute("aria-pressed"); out.address = location.hash;
      $$(".chip").find((c) => c.textContent === "W2A16").click(); out.two = recipes().length;
      chip.click(); out.one = recipes();
      return out;]]
    assert.same({ "w4a16-g64" }, r.words)
    assert.equal(1, r.dim)
    assert.same({ "w4a16-gptq" }, r.failed)
    assert.equal("1 of 14 results", r.count)
    assert.same({ "w4a16-g32", "w4a16-g64", "w4a16", "w4a16-channel" }, r.chip)
    assert.equal("true", r.pressed)
    assert.equal("#scheme=W4A16", r.address)
    assert.equal(5, r.two)
    assert.same({ "w2a16" }, r.one)
  end)

  it("opens as its address says, and follows it", function()
    local r = probe([[
      const out = { recipes: recipes(), sort: head("bits").getAttribute("aria-sort"), x: $("#x-bytes").checked, y: $("#y-kl").checked,
        open: $$("tr.detail").length, filter: $("input[type=search]").value, theme: document.documentElement.dataset.theme,
        shown: $$(".plot").filter((p) => getComputedStyle(p).display !== "none").map((p) => p.getAttribute("class")) };
      location.hash = "#filter=w2"; await tick(); out.next = recipes(); out.closed = $$("tr.detail").length; out.y2 = $("#y-ppl").checked;
      location.hash = "#sort=__proto__&dir=x&open=r0,r99,rx&x=none&theme=evil&toString=1&__proto__=2"; await tick(); out.wrong = recipes().length;
      location.hash = "#model=%25&scheme=%25E0"; await tick(); out.none = recipes().length;
      return out;]], { fragment = "sort=bits&dir=desc&filter=w4&x=bytes&y=kl&open=r6&theme=dark" })
    assert.same({ "w4a16-g32", "w4a16-g64", "w4a16", "w4a16-channel", "w4a16-gptq" }, r.recipes)
    assert.same({ "descending", true, true, 1, "w4", "dark" }, { r.sort, r.x, r.y, r.open, r.filter, r.theme })
    assert.same({ "plot v-bytes-kl" }, r.shown)
    assert.same({ "w2a16" }, r.next)
    assert.same({ 0, true, 14, 0 }, { r.closed, r.y2, r.wrong, r.none })
  end)

  it("unfolds a recipe: its text, where it ran, its worst modules, its error by layer", function()
    local r = probe [[
      const line = $$("#table tbody tr").find((t) => t.querySelector(".r").textContent === "w4a16");
      const button = line.querySelector("button.r"); button.click();
      const card = line.nextElementSibling, out = { expanded: button.getAttribute("aria-expanded"), text: card.textContent };
      out.source = card.querySelector("pre").textContent;
      out.worst = [...card.querySelectorAll(".modules tbody tr")].map((t) => t.cells[0].textContent + " " + t.cells[2].textContent);
      out.lines = [...card.querySelectorAll("svg.lines .line")].map((p) => p.getAttribute("d").split("L").length);
      const all = card.querySelector("details"); all.open = true; await tick();
      out.all = all.querySelectorAll(".modules tbody tr").length; out.exact = all.textContent.includes("exact");
      button.click(); out.gone = $$("tr.detail").length; out.address = location.hash;
      $(".plot.first .p.f").dispatchEvent(new MouseEvent("click", { bubbles: true })); out.bymark = $$("tr.detail").length;
      const choice = $("figure.layers select"), before = $("figure.layers .line").getAttribute("d");
      choice.value = choice.options[choice.options.length - 1].value; choice.dispatchEvent(new Event("change"));
      out.redrawn = before !== $("figure.layers .line").getAttribute("d");
      return out;]]
    local result = sweep[8]
    local modules = {}
    for _, m in ipairs(result.modules) do
      if m.sqnr_db then modules[#modules + 1] = m end
    end
    table.sort(modules, function(a, b) return a.sqnr_db < b.sqnr_db end)
    assert.equal("true", r.expanded)
    assert.equal(result.recipe_text, r.source)
    assert.equal(("%s %.2f"):format(modules[1].name, modules[1].sqnr_db), r.worst[1])
    assert.equal(8, #r.worst)
    assert.same({ 24, 24, 24, 24, 24, 24, 24 }, { unpack(r.lines) })
    assert.equal(169, r.all)
    for _, text in ipairs { "AMD EPYC 9654", "65504 predicted", "3.60 times smaller" } do assert.is_truthy(r.text:find(text, 1, true), text) end
    assert.same({ 0, "", 1, true }, { r.gone, r.address, r.bymark, r.redrawn })
  end)

  it("draws the same lines with and without its script", function()
    local r = probe [[ return { lines: $$("figure.layers .line").map((p) => p.getAttribute("d")).filter((d) => d),
      ticks: $$("figure.layers .y").map((t) => t.textContent) }; ]]
    local figure = page:match '<figure class="layers".-</figure>'
    local lines, ticks = {}, {}
    for d in figure:match("<svg class=\"lines.-</svg>"):gmatch 'class="line k%d" data%-kind="%d+" d="([^"]+)"' do lines[#lines + 1] = d end
    for t in figure:gmatch 'class="t e y"[^>]*>([^<]*)' do ticks[#ticks + 1] = t end
    for i, d in ipairs(lines) do -- the script knows hundredths of a decibel
      local mine, its = {}, {}
      for v in d:gmatch "[%d.]+" do mine[#mine + 1] = tonumber(v) end
      for v in r.lines[i]:gmatch "[%d.]+" do its[#its + 1] = tonumber(v) end
      assert.equal(#mine, #its)
      for k = 1, #mine do assert.is_true(math.abs(mine[k] - its[k]) < 0.3, d .. "\n" .. r.lines[i]) end
    end
    assert.equal(7, #lines)
    assert.same(ticks, { unpack(r.ticks) })
  end)

  it("runs nothing that a name holds", function()
    local evil = "</script><img src=x onerror='document.title=1'><script>document.title=2</script>\"'"
    local r = results.result { recipe = evil, bits = 4, scheme = "W4A16", model = "m/" .. evil, text = evil }
    r.host, r.recipe_text, r.modules[1].name, r.modules[2].scheme = evil, evil, evil, evil
    r.modules[3].name = "model.layers.0." .. evil
    local hostile = nb.report.html({ r, results.failed { recipe = evil .. "2", message = evil } }, { title = evil, against = { r } })
    local out = probe([[
      for (const b of $$("button.r")) b.click();
      for (const d of $$("details")) d.open = true;
      await tick();
      return { title: document.title, images: $$("img").length, scripts: $$("script").length, cards: $$(".card").length,
        head: $(".card h3").textContent, source: $(".card pre").textContent };]], { page = hostile })
    assert.same({ evil, 0, 3, 2, evil }, { out.title, out.images, out.scripts, out.cards, out.source })
    assert.is_truthy(out.head:find(evil, 1, true))
  end)

  it("fits a window of 400 pixels, follows the system's dark, and changes light by its button", function()
    local measure = [[ const wide = $$("body *").filter((e) => !e.closest(".scroll, pre, .fronts, .long") && e.getBoundingClientRect().right
        > innerWidth + 1).map((e) => e.tagName + "." + e.className); ]]
    local r = probe(measure .. [[ $("button.r").click(); return { width: innerWidth, page: document.documentElement.scrollWidth, wide,
      back: getComputedStyle(document.body).backgroundColor }; ]], { width = 400, height = 900 })
    assert.is_true(r.page <= r.width, r.page .. " " .. table.concat(r.wide, " "))
    assert.same({}, { unpack(r.wide) })
    assert.equal("rgb(251, 251, 250)", r.back)
    r = probe([[ const back = () => getComputedStyle(document.body).backgroundColor, out = [back()];
      for (let i = 0; i < 3; i++) { $("#theme").click(); out.push(back()); } return out; ]], { dark = true })
    assert.same({ "rgb(18, 20, 23)", "rgb(251, 251, 250)", "rgb(18, 20, 23)", "rgb(18, 20, 23)" }, { unpack(r) })
  end)

  it("stands an empty sweep, one of failures, and a thousand results", function()
    probe("return 1", { page = nb.report.html {} })
    local r = probe("$('button.r').click(); return recipes().length;", { page = nb.report.html { results.failed { recipe = "a", message = "b" } } })
    assert.equal(1, r)
    local two = results.sweep { models = { "a", "b" } }
    r = probe([[ $$("#table tbody tr").find((t) => t.cells[1].textContent === "b" && t.textContent.includes("w4a16-g64"))
      .querySelector("button.r").click(); return $(".card .modules td").textContent; ]], { page = nb.report.html(two) })
    assert.equal("model.layers.2.mlp.down_proj", r)
    r = probe([[ head("ppl").querySelector("button").click(); $$("button.r")[5].click(); return recipes().length; ]],
      { page = nb.report.html(results.many(1000, 36)) })
    assert.equal(1000, r)
  end)

  it("works with what is left where modules had to be left out", function()
    local most = nb.report.most_bytes
    local seen, small = {}, page
    for _ = 1, 4 do -- each page one byte too large for the next
      nb.report.most_bytes = #small - 1
      small = nb.report.html(sweep, { title = "Sweep of tiny-llama" })
      local r = probe([[ $$("button.r")[3].click(); const box = $("svg.heat").getBoundingClientRect();
        const at = { clientX: box.left + box.width * 0.5, clientY: box.top + 10, bubbles: true };
        $("svg.heat").dispatchEvent(new PointerEvent("pointermove", at));
        return { says: $("footer").textContent.match(/leaves out ([^.]*)/)[1], lines: $$(".card svg.lines .line[d*=L]").length,
          read: $("figure.heats .readout").textContent }; ]], { page = small })
      seen[#seen + 1] = { r.says, r.lines, r.read ~= "" }
    end
    nb.report.most_bytes = most
    assert.same({ { "the squared error of each module", 7, true }, { "the bytes, scheme and squared error of each module", 7, true },
      { "the modules (each layer's worst one is kept)", 1, true }, { "the modules", 0, false } }, seen)
  end)

  it("gives pictures to look at", function()
    local path = build .. "/report-page.html"
    local against = results.sweep { layers = 24, seed = 2 }
    against[8].figures.ppl = against[8].figures.ppl * 0.98
    for name, o in pairs {
      light = { height = 2600, fragment = "open=r9" }, dark = { height = 2600, dark = true }, narrow = { width = 400, height = 3600 },
      against = { height = 2200, against = against },
    } do
      assert(nb.report.write(path, sweep, { title = "Sweep of tiny-llama", against = o.against, against_name = "last week" }))
      o.picture = ("%s/report-%s.png"):format(build, name)
      os.remove(o.picture)
      local _, said = browser.open(path, o)
      assert.same({}, said)
      local f = assert(io.open(o.picture, "rb"))
      assert.equal("\137PNG", f:read(4))
      assert.is_true(f:seek "end" > 50000, name .. " is nearly empty")
      f:close()
    end
  end)
end)
