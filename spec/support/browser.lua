-- A real browser without a window: chromium opens a file, runs its scripts, and gives back the page or a picture of it.
local files = require "spec.support.files"

local M = {}

local home -- the browser's own folder, one for all runs

-- Works as root in a container, where /dev/shm is small.
local flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --no-first-run --disable-extensions "
  .. "--disable-background-networking --virtual-time-budget=3000 --enable-logging=stderr --v=0"

--- open(path [, {fragment=, width=, height=, dark=, picture=}]) -> the page's elements as text, {what the console said}
-- picture: writes a PNG there instead, and gives nil. Fails when the browser doesn't start.
function M.open(path, o)
  o = o or {}
  home = home or files.temporary()
  local pwd = io.popen "pwd"
  local url = ("file://%s%s"):format(path:match "^/" and path or pwd:read "*l" .. "/" .. path, o.fragment and "#" .. o.fragment or "")
  pwd:close()
  local out, log = os.tmpname(), os.tmpname()
  local command = ("timeout 120 chromium %s --user-data-dir=%s --window-size=%d,%d %s %s '%s' >%s 2>%s </dev/null"):format(flags, home,
    o.width or 1280, o.height or 900, o.dark and "--force-dark-mode" or "", o.picture and "--screenshot=" .. o.picture or "--dump-dom",
    url, out, log)
  local status = os.execute(command)
  local text, said = files.read(out), {}
  local err = files.read(log)
  for line in err:gmatch "[^\n]+" do
    if line:match "CONSOLE" then said[#said + 1] = line end
  end
  os.remove(out)
  os.remove(log)
  assert(status == 0, "chromium: status " .. tostring(status) .. "\n" .. err)
  return not o.picture and text or nil, said
end

--- probe(page, script, o) -> what `script` (a JavaScript function's body, run in the page when it is up) returned, by
-- way of JSON; {what the console said}.
function M.probe(page, script, o)
  local path = os.tmpname() .. ".html"
  local extra = '<script>addEventListener("load", async () => { const e = document.createElement("pre"); e.id = "probe";\n'
    .. 'try { e.textContent = "@" + JSON.stringify(await (async () => {' .. script .. '\n})()) + "@"; }\n'
    .. 'catch (error) { e.textContent = "@" + JSON.stringify({ error: String(error) }) + "@"; }\n'
    .. "document.body.append(e); });</script></body>"
  local at = assert(page:find("</body>", 1, true))
  files.write(path, page:sub(1, at - 1) .. extra .. page:sub(at + #"</body>"))
  local dom, said = M.open(path, o)
  os.remove(path)
  os.remove((path:gsub("%.html$", "")))
  local json = assert(dom:match '<pre id="probe">@(.-)@</pre>', "the probe did not run")
  json = json:gsub("&lt;", "<"):gsub("&gt;", ">"):gsub("&amp;", "&")
  return assert(require("nibble.json").decode(json)), said
end

--- close(): removes the browser's folder.
function M.close()
  if home then os.execute("rm -rf '" .. home .. "'") end
  home = nil
end

return M
