-- report.style: how the page looks. One palette in two lights; the colours of lines are told apart by people who don't
-- see red or green, and dashes repeat what they say.

-- name = { on light, on dark }
local palette = {
  bg = { "#fbfbfa", "#121417" }, panel = { "#ffffff", "#191c20" }, ink = { "#1a1c1f", "#e8eaed" },
  muted = { "#5a6068", "#a0a7b0" }, rule = { "#e3e5e8", "#2d3238" }, strong = { "#c3c8ce", "#474e57" },
  accent = { "#0b5fa5", "#6cb6f5" }, soft = { "#e8f1f9", "#1b2d3f" }, bad = { "#a83c08", "#ff9a66" },
  good = { "#046b54", "#4fd0a8" },
  k1 = { "#0b5fa5", "#6cb6f5" }, k2 = { "#bd4b07", "#ff9a66" }, k3 = { "#04785d", "#4fd0a8" }, k4 = { "#a3407f", "#e993d0" },
  k5 = { "#7d6100", "#e2bd45" }, k6 = { "#1780a6", "#86e0f5" }, k7 = { "#3c4148", "#cdd2d9" }, k8 = { "#7148bd", "#b9a0f7" },
  h1 = { "#082b57", "#eef6fd" }, h2 = { "#0f4a86", "#bcdbf6" }, h3 = { "#2b6fb0", "#86b9e6" }, h4 = { "#5a95c9", "#5594ca" },
  h5 = { "#90b9dd", "#376d9d" }, h6 = { "#bfd7ec", "#264c70" }, h7 = { "#e2edf7", "#1c334a" },
}

local function light(n)
  local names, out = {}, {}
  for name in pairs(palette) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do out[i] = "--" .. name .. ":" .. palette[name][n] end
  return table.concat(out, ";")
end

-- The picture of the chosen pair of figures, and its labels.
local function switches()
  local out = {}
  for _, x in ipairs { "bits", "bytes" } do
    for _, y in ipairs { "ppl", "ratio", "kl" } do
      out[#out + 1] = ("#x-%s:checked~#y-%s:checked~.groups .v-%s-%s"):format(x, y, x, y)
    end
  end
  local chosen, focus = {}, {}
  for _, id in ipairs { "x-bits", "x-bytes", "y-ppl", "y-ratio", "y-kl" } do
    chosen[#chosen + 1] = ("#%s:checked~.switches label[for=%s]"):format(id, id)
    focus[#focus + 1] = ("#%s:focus-visible~.switches label[for=%s]"):format(id, id)
  end
  return table.concat(out, ",") .. "{display:block}\n" .. table.concat(chosen, ",")
    .. "{background:var(--ink);color:var(--bg)}\n" .. table.concat(focus, ",") .. "{outline:2px solid var(--accent);outline-offset:2px}\n"
end

-- Lines: colour, and a dash of their own.
local function lines()
  local dashes = { "none", "8 4", "2 4", "11 4 2 4", "18 4", "4 3", "9 3 2 3 2 3", "1 5" }
  local out = {}
  for i = 1, 8 do
    out[i] = (".k%d{stroke:var(--k%d);stroke-dasharray:%s}"):format(i, i, dashes[i])
    if i < 8 then out[i] = out[i] .. (".h%d{stroke:var(--h%d)}"):format(i, i) end
  end
  return table.concat(out, "\n")
end

local rules = [==[
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
  "Noto Sans","DejaVu Sans",sans-serif;font-variant-numeric:tabular-nums}
header,main,footer{max-width:1180px;margin:0 auto;padding:0 24px}header{padding-top:40px;position:relative}
h1{font-size:28px;line-height:1.2;font-weight:650;letter-spacing:-.015em;margin:0 100px 14px 0;overflow-wrap:anywhere}
h2{font-size:19px;font-weight:650;letter-spacing:-.01em;margin:0 0 14px}
h3{font-size:16px;margin:0 0 8px;overflow-wrap:anywhere}h4{font-size:13px;margin:18px 0 6px}p{margin:0 0 8px}
small{font-size:.86em;color:var(--muted)}em{font-style:normal;font-weight:600}section{margin:44px 0}
.answer{font-size:17.5px;line-height:1.5;max-width:46em;overflow-wrap:anywhere}
.answer strong,.answer b{color:var(--accent);font-weight:650}
.facts{list-style:none;display:flex;flex-wrap:wrap;gap:4px 22px;padding:0;margin:14px 0 0;color:var(--muted)}
.facts b{color:var(--ink)}.bad,.facts .worse,.facts .worse b,.bad b{color:var(--bad)}.good{color:var(--good)}
footer{border-top:1px solid var(--rule);margin-top:48px;padding-top:16px;padding-bottom:48px;color:var(--muted);
  font-size:13px}
footer p{max-width:75em}button,select,input{font:inherit;color:inherit}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
#theme{position:absolute;top:40px;right:24px;background:none;border:1px solid var(--strong);border-radius:6px;
  padding:3px 10px;font-size:13px;cursor:pointer;color:var(--muted)}
#theme:hover{color:var(--ink)}
figure{margin:0 0 24px;background:var(--panel);border:1px solid var(--rule);border-radius:10px;padding:16px 18px}
figcaption{margin-bottom:10px;color:var(--muted);overflow-wrap:anywhere}figcaption b{color:var(--ink)}
.pair{display:flex;flex-wrap:wrap;gap:16px 32px;align-items:flex-start}
.pictures{flex:1 1 460px;min-width:0;max-width:640px}svg{display:block;width:100%;height:auto}
svg.symbols{position:absolute;width:0;height:0}svg text{font-size:12px;fill:var(--muted)}svg .e{text-anchor:end}
svg .m{text-anchor:middle}svg .a{fill:var(--ink);font-weight:600}svg .name{font-size:11.5px;fill:var(--ink)}
svg .best{font-weight:700;fill:var(--accent)}svg .reft{font-size:11px}.grid{stroke:var(--rule);fill:none}
.ref{stroke:var(--muted);stroke-dasharray:4 4;fill:none}
.front{fill:none;stroke:var(--accent);stroke-width:1.6;opacity:.55}
.p{fill:var(--panel);stroke:var(--muted);stroke-width:1.4;cursor:pointer}
.p.f{fill:var(--accent);stroke:var(--panel);stroke-width:1}.p.off{opacity:.13}
.p.hot,.p:hover{stroke:var(--ink);stroke-width:2.4}.plot{display:none}
.pick{position:absolute;opacity:0;pointer-events:none}
.switches{display:flex;flex-wrap:wrap;gap:8px 10px;align-items:center;margin-bottom:12px;color:var(--muted)}
.switch{display:inline-flex;border:1px solid var(--strong);border-radius:7px;overflow:hidden;background:var(--panel)}
.switch label{padding:3px 12px;cursor:pointer;font-size:13.5px;color:var(--ink)}
.switch label+label{border-left:1px solid var(--strong)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:3px 16px;padding:0;margin:0 0 12px;font-size:13px;
  color:var(--ink)}
.legend li{display:flex;align-items:center;gap:5px}.note,.legend .note{color:var(--muted);font-size:13px}
svg.key{width:14px;height:14px;flex:none}.key use{fill:var(--muted)}.swatch{width:30px;height:12px;flex:none}
.legend.kinds{flex:1 1 180px;flex-direction:column;gap:5px;margin:26px 0 0}
.legend output{margin-left:auto;color:var(--muted);padding-left:10px}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}.swatch .line{stroke-width:2.4}
.lines:hover .line{opacity:.4}.lines .line:hover{opacity:1;stroke-width:3}.heat{min-width:720px}
.heat path{stroke-width:18}.key path{stroke-width:14}.heat .n{text-anchor:end;fill:var(--ink)}
.readout{display:block;min-height:1.6em;color:var(--muted);font-size:13px}.none{color:var(--muted);display:none}
.scroll{overflow-x:auto;container-type:inline-size;border-radius:10px}
#results .scroll,#changes .scroll{border:1px solid var(--rule);background:var(--panel)}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:13.5px;line-height:1.35}
th,td{padding:6px 9px;text-align:left;border-bottom:1px solid var(--rule);vertical-align:top;font-weight:400;
  white-space:nowrap;unicode-bidi:isolate}
tbody tr:last-child>*{border-bottom:0}
thead th{color:var(--muted);font-size:12.5px;vertical-align:bottom;background:var(--panel)}
thead th.num,#table td:nth-child(n+5),.changes td:nth-child(n+5),.fronts td,.modules td:nth-child(n+3){
  text-align:right}
thead button{background:none;border:0;padding:0;cursor:pointer;color:inherit}thead button:hover{color:var(--ink)}
[aria-sort] button{color:var(--ink);font-weight:650}[aria-sort=ascending] button::after{content:" ↑"}
[aria-sort=descending] button::after{content:" ↓"}thead th{position:sticky;top:0;z-index:2}
.tall{overflow:auto;max-height:max(420px,85vh)}
#table th:first-child,.changes th:first-child{position:sticky;left:0;background:var(--panel);z-index:1}
#table thead th:first-child{z-index:3}
#table tbody th,#table td:nth-child(2),#table td:nth-child(3){max-width:22em;overflow:hidden;text-overflow:ellipsis}
#table tbody tr:hover>*,.changes tbody tr:hover>*{background:var(--soft)}
#table tr.detail:hover>*,#table tr.detail>*{background:var(--bg)}
#table .detail .modules th,#table .detail .modules td{position:static;background:none;max-width:none;overflow:visible}
#table .modules td:nth-child(2){text-align:left}.r{font-weight:600}
button.r{background:none;border:0;padding:0;text-align:left;cursor:pointer;max-width:100%;overflow:hidden;
  text-overflow:ellipsis;vertical-align:bottom}
button.r::before{content:"›";display:inline-block;width:.8em;color:var(--muted)}
button.r[aria-expanded=true]::before{transform:rotate(90deg)}button.r:hover{color:var(--accent)}
.fr{color:var(--accent);font-size:10px;vertical-align:2px}tr.ref .r{font-weight:400;font-style:italic}
tr.failed td{color:var(--muted)}tr.failed summary,tr.missed td:nth-child(4){color:var(--bad);cursor:pointer}
#changes .facts{margin:0 0 12px}#changes details{margin-top:10px}
#changes summary{cursor:pointer;color:var(--muted);margin-bottom:8px}td.message{text-align:left!important}
td p,.message{white-space:pre-wrap;overflow-wrap:anywhere;max-width:28em;min-width:16em;margin:4px 0 0;
  color:var(--ink)}
.fronts{flex:1 1 300px;min-width:0;max-height:400px;overflow:auto}
.fronts caption{text-align:left;color:var(--muted);font-size:13px;padding-bottom:6px}
.fronts th,.fronts td,.modules th,.modules td{padding:3px 8px}
.fronts tbody th{max-width:19em;overflow:hidden;text-overflow:ellipsis}.fronts .best>*{background:var(--soft)}
.fronts .best th{font-weight:650}tr.worse .change{color:var(--bad)}tr.better .change{color:var(--good)}
.changes td small:first-of-type{margin-left:2px}small.bad{color:var(--bad)}small.good{color:var(--good)}
.changes td:nth-child(4){white-space:normal;min-width:11em}
.tools{display:flex;flex-wrap:wrap;gap:8px 18px;align-items:center;margin-bottom:12px;font-size:13.5px}
.tools:empty{display:none}
.tools input[type=search]{border:1px solid var(--strong);border-radius:7px;background:var(--panel);padding:5px 11px;
  min-width:300px}
.chips{display:flex;flex-wrap:wrap;gap:6px;align-items:center;color:var(--muted);border:0;margin:0;padding:0;
  min-width:0}
.chips legend{float:left;padding:0;margin-right:6px}
.chip{border:1px solid var(--strong);border-radius:99px;background:var(--panel);padding:2px 11px;cursor:pointer;
  font-size:13px;color:var(--ink);max-width:18em;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.chip[aria-pressed=true]{background:var(--ink);color:var(--bg);border-color:var(--ink)}
.count{color:var(--muted);margin-left:auto}.detail>td{padding:0;white-space:normal}
.card{position:sticky;left:0;width:100cqw;padding:18px 20px 22px;font-size:13.5px;white-space:normal}
.card .pair>div{flex:1 1 320px;min-width:0}.card .pair>div+div{flex-grow:1.5}.card h4:first-child{margin-top:0}
.card .legend.kinds{flex-direction:row;gap:3px 14px;margin:8px 0 0}
dl{display:grid;grid-template-columns:auto 1fr;gap:2px 16px;margin:0}dt{color:var(--muted)}
dd{margin:0;overflow-wrap:anywhere}
pre{background:var(--panel);border:1px solid var(--rule);border-radius:7px;padding:10px 12px;overflow:auto;
  max-height:300px;margin:0;font:12.5px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;
  white-space:pre-wrap;overflow-wrap:anywhere;tab-size:2}
.modules{width:100%}.modules td:first-child{white-space:normal;overflow-wrap:anywhere}
.card .long{max-height:420px;overflow:auto}
select{border:1px solid var(--strong);border-radius:7px;background:var(--panel);padding:3px 8px;max-width:22em}
@media (max-width:640px){
  header,main,footer{padding-left:14px;padding-right:14px}header{padding-top:24px}#theme{top:22px;right:14px}
  h1{font-size:23px}.answer{font-size:16px}section{margin:34px 0}figure{padding:12px}
  .pictures,.fronts{flex-basis:100%}svg text{font-size:17.5px}svg .name{display:none}svg .reft{font-size:15px}
  .heat text{font-size:12px!important}.m1>*>tr>:nth-child(2),.t1>*>tr>:nth-child(3){display:none}
  #table tbody th{max-width:10.5em}.card{padding:14px}.legend.kinds{flex-direction:row;margin-top:4px}
  .legend output{margin-left:0}.card .pair>div,.legend.kinds{flex-basis:100%}
  .tools input[type=search]{min-width:0;width:100%}.modules :is(td,th):is(:nth-child(2),:nth-child(5)){display:none}
}
@media print{
  body{font-size:11px}#theme,.tools,.switches{display:none}header,main,footer{max-width:none;padding:0}
  .scroll,.fronts,.card .long{overflow:visible;max-height:none}thead th,tbody th{position:static!important}
  figure,tr{break-inside:avoid}h2{break-after:avoid}section{margin:20px 0}
  table,thead th{font-size:9px}th,td{padding:3px 4px}.card{width:auto}
  .modules :is(td,th):is(:nth-child(2),:nth-child(5)){display:none}
  #table tbody th,#table td{max-width:none}.heat{min-width:0}
  .heat path,.key path,.p,.line{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
]==]

return table.concat {
  ":root{color-scheme:light dark;", light(1), "}\n",
  "@media (prefers-color-scheme:dark){:root{", light(2), "}}\n",
  ":root[data-theme=light]{color-scheme:light;", light(1), "}\n:root[data-theme=dark]{color-scheme:dark;", light(2), "}\n",
  "@media print{:root:root{color-scheme:light;", light(1), "}}\n",
  rules, switches(), lines(), "\n",
}
