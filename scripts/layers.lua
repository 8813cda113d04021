-- layers: which part of the tree may use which. `luajit scripts/layers.lua [ROOT]` prints
-- file:line and the broken rule for each offence; exit status 1 when there is one.
local root = arg[1] or "."

local offences = 0
local function offend(file, line, text, ...)
  offences = offences + 1
  print(("%s:%d: %s"):format(file, line, text:format(...)))
end

-- ---- C: who includes whom ------------------------------------------------------

-- Folder -> folders whose headers its files may include, besides its own.
local c_uses = {
  ["core"] = {},
  ["core/io"] = { "core" },
  ["core/layout"] = { "core" },
  ["core/quant"] = { "core", "core/layout" },
  ["core/compute"] = { "core", "core/layout" },
  -- what a layout or a method asks of its operands is the same on a device; headers of kernels say how they are launched
  ["cuda"] = { "core", "core/compute", "core/layout", "core/quant", "cuda/kernels" },
}
-- One quantization method never includes another's header; these headers hold what methods share.
local quant_shared = { ["groups.h"] = true, ["dequant.h"] = true, ["dequant_float.h"] = true,
  ["act_grid.h"] = true }
-- System headers that only some files may include.
local only_in = {
  { pattern = "^l[ua]%w*%.h$", files = { ["core/main.c"] = true }, rule = "core never includes Lua's headers, but for main.c" },
  { pattern = "^luajit", files = { ["core/main.c"] = true }, rule = "core never includes Lua's headers, but for main.c" },
  { pattern = "cJSON%.h$", files = { ["core/io/json.c"] = true }, rule = "cJSON lives in core/io/json.c only" },
  { pattern = "^cu[dbf]", folder = "^cuda/", rule = "core never includes a CUDA header" },
  { pattern = "^nvrtc", folder = "^cuda/", rule = "core never includes a CUDA header" },
}
-- What core never calls: it doesn't print, exit or abort. The stop flag's second Ctrl-C is meant to.
local never = { "printf", "fprintf", "vprintf", "vfprintf", "dprintf", "puts", "fputs", "putchar", "perror", "exit",
  "_exit", "_Exit", "quick_exit", "abort", "assert", "system", "popen" }
local may_call = { ["core/error.c"] = { _exit = true } }

local function resolve(folder, header)
  local path = folder .. "/" .. header
  local found
  repeat path, found = path:gsub("[^/]+/%.%./", "", 1) until found == 0
  return path
end

local function exists(path)
  local f = io.open(root .. "/" .. path)
  if f then f:close() end
  return f ~= nil
end

local function allowed(folder, other)
  if folder == other then return true end
  for _, f in ipairs(c_uses[folder] or {}) do
    if f == other then return true end
  end
  return false
end

local function check_quoted(file, folder, at, header)
  if file == "core/main.c" then return end
  if header:match "%.c$" then return offend(file, at, "includes %s: a .c file is never included", header) end
  local path = resolve(folder, header)
  if not exists(path) then path = "core/" .. header end -- the compiler's -Icore
  local other = path:match "^(.*)/[^/]*$"
  if path == "cuda/nibble_cuda.h" then return end
  if not allowed(folder, other) then
    return offend(file, at, "includes %s: %s may use %s", path, folder, table.concat({ folder, unpack(c_uses[folder] or {}) }, ", "))
  end
  local stem, own = file:match "([^/]*)%.[ch]$", header:match "^(.*)%.h$"
  if folder == "core/quant" and other == folder and not quant_shared[header] and stem:sub(1, #own) ~= own then
    offend(file, at, "includes %s: quantization methods never include one another", header)
  end
end

local function check_system(file, at, header)
  for _, o in ipairs(only_in) do
    local here = o.files and o.files[file] or o.folder and file:match(o.folder)
    if header:match(o.pattern) and not here then offend(file, at, "includes <%s>: %s", header, o.rule) end
  end
end

-- Without comments and what strings hold; line breaks kept.
local function bare(text)
  text = text:gsub("/%*.-%*/", function(c) return (c:gsub("[^\n]", " ")) end):gsub("//[^\n]*", "")
  return (text:gsub('\\\\', "  "):gsub('\\"', "  "):gsub('"[^"\n]*"', '""'):gsub("'[^'\n]*'", "''"))
end

local function check_c(file, text)
  local folder, at = file:match "^(.*)/[^/]*$", 0
  for line in (text .. "\n"):gmatch "(.-)\n" do
    at = at + 1
    local quoted, system = line:match '^%s*#%s*include%s*"([^"]+)"', line:match "^%s*#%s*include%s*<([^>]+)>"
    if quoted then check_quoted(file, folder, at, quoted) end
    if system then check_system(file, at, system) end
  end
  if not file:match "^core/" or file == "core/main.c" then return end
  at = 0
  for line in (bare(text) .. "\n"):gmatch "(.-)\n" do
    at = at + 1
    for word in line:gmatch "([%a_][%w_]*)%s*%(" do
      for _, name in ipairs(never) do
        local format = name == "printf" and line:match "format%s*%(%s*printf" -- the attribute
        if word == name and not format and not (may_call[file] and may_call[file][name]) then
          offend(file, at, "calls %s: core never prints, exits or aborts", name)
        end
      end
    end
    if line:match "%f[%w_]stdout%f[^%w_]" or line:match "%f[%w_]stderr%f[^%w_]" then
      offend(file, at, "uses a standard stream: core never prints")
    end
  end
end

-- ---- Lua: who requires whom -----------------------------------------------------

-- The first layer whose `of` matches a file is its layer. never: modules that it must not require.
local top = { "nibble%.cli", "nibble%.repl", "nibble%.plan", "nibble%.convert", "nibble%.recipe", "nibble%.eval",
  "nibble%.sweep", "nibble%.report" }
local function with(list, more)
  local all = {}
  for _, l in ipairs { list, more } do
    for _, p in ipairs(l) do all[#all + 1] = p end
  end
  return all
end
local floor = with(top, { "nibble%.formats", "nibble%.methods", "nibble%.models", "nibble%.quant" })
local lua_layers = {
  { of = "^lua/nibble/cli", name = "the command line", never = {} },
  { of = "^lua/nibble/repl/", name = "repl", never = { "nibble%.cli" } },
  -- The engine of the oracle; beside it lies one data table per consumer, which uses nothing.
  { of = "^lua/nibble/backends/init%.lua", name = "backends (they use only one another)", never = floor },
  { of = "^lua/nibble/backends/changes%.lua", name = "backends (they use only one another)", never = floor },
  { of = "^lua/nibble/backends/decide%.lua", name = "backends (they use only one another)", never = floor },
  { of = "^lua/nibble/backends/description%.lua", name = "backends (they use only one another)", never = floor },
  { of = "^lua/nibble/backends/explain%.lua", name = "backends (they use only one another)", never = floor },
  { of = "^lua/nibble/backends/query%.lua", name = "backends (they use only one another)", never = floor },
  { of = "^lua/nibble/backends/table%.lua", name = "backends (they use only one another)", never = floor },
  { of = "^lua/nibble/backends/", name = "backends (data only)", never = { "." } },
  { of = "^lua/nibble/models/", name = "models (they use compute)",
    never = with(top, { "nibble%.formats", "nibble%.methods", "nibble%.quant", "nibble%.checkpoint" }) },
  { of = "^lua/nibble/formats/", name = "formats (they use layout)",
    never = with(top, { "nibble%.methods", "nibble%.models", "nibble%.compute" }) },
  { of = "^lua/nibble/methods/", name = "methods (they use formats, layout, compute)",
    never = with(top, { "nibble%.models" }) },
  { of = "^lua/nibble/layout", name = "layout", never = floor },
  { of = "^lua/nibble/compute", name = "compute", never = floor },
  { of = "^lua/nibble/", name = "the workbench", never = { "nibble%.cli", "nibble%.repl" } },
}

-- init names every part for loading on first use.
local free = { ["lua/nibble/init.lua"] = true }

local function check_lua(file, text)
  local at = 0
  text = text:gsub("%-%-%[%[.-%]%]", function(c) return (c:gsub("[^\n]", " ")) end)
  local layer
  for _, l in ipairs(lua_layers) do
    if not layer and file:match(l.of) then layer = l end
  end
  for line in (text .. "\n"):gmatch "(.-)\n" do
    at = at + 1
    line = line:gsub("%-%-.*$", "")
    if file:match "^recipes/" and line:match "%f[%w_]require%f[^%w_]" then
      offend(file, at, "a recipe is data: no require")
    end
    if file ~= "lua/nibble/ffi.lua" and line:match "ffi%.cdef.*nb_" then
      offend(file, at, "declares an nb_ function: nibble.h and nibble_cuda.h are declared by lua/nibble/ffi.lua only")
    end
    for name in line:gmatch 'require%s*%(?%s*["\']([^"\']+)["\']' do
      for _, pattern in ipairs(layer and not free[file] and layer.never or {}) do
        local hit = pattern == "." or name:match("^" .. pattern .. "$") or name:match("^" .. pattern .. "%.")
        if hit then offend(file, at, "requires %s: not for %s", name, layer.name) end
      end
    end
  end
end

-- ---- the walk ---------------------------------------------------------------------

local function each(folder, names, check)
  local p = assert(io.popen(("cd '%s' && find %s -type f %s 2>/dev/null | LC_ALL=C sort"):format(root, folder, names)))
  for file in p:lines() do
    local f = assert(io.open(root .. "/" .. file))
    check(file, f:read "*a")
    f:close()
  end
  p:close()
end

each("core cuda", "\\( -name '*.c' -o -name '*.h' \\)", check_c)
each("lua recipes", "-name '*.lua'", check_lua)
os.exit(offences == 0 and 0 or 1)
