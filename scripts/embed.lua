-- Writes C source that holds other files as strings.
--   luajit scripts/embed.lua cdef HEADER...         nb_cdef(): the headers as ffi.cdef reads them
--   luajit scripts/embed.lua lua FILE...            nb_lua_files[]: module or recipe name, text, size
local what = table.remove(arg, 1)

local function slurp(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read "*a"
  f:close()
  return text
end

-- As a list of byte values: string literals have a length limit in C.
local function bytes(text)
  local out = {}
  for i = 1, #text, 64 do
    local line = {}
    for j = i, math.min(i + 63, #text) do -- as signed chars, so that -Wconversion has nothing to say
      local b = text:byte(j)
      line[#line + 1] = b < 128 and b or b - 256
    end
    out[#out + 1] = table.concat(line, ",")
  end
  out[#out + 1] = "0"
  return table.concat(out, ",\n")
end

if what == "cdef" then
  local kept = {}
  for _, path in ipairs(arg) do
    for line in slurp(path):gmatch "([^\n]*)\n" do
      if not line:match "^%s*#" and not line:match '^extern "C"' and line ~= "}" then kept[#kept + 1] = line end
    end
  end
  local text = table.concat(kept, "\n"):gsub("/%*.-%*/", " "):gsub("[ \t]+", " "):gsub("\n%s*\n+", "\n")
  io.write("#include \"nibble.h\"\nstatic const char text[] = {\n", bytes(text), "};\n",
    "const char *nb_cdef(void) { return text; }\n")
else
  local rows = {}
  io.write "#include <stddef.h>\n"
  for i, path in ipairs(arg) do
    local name = path:gsub("^lua/", ""):gsub("%.lua$", "")
    if not path:match "^recipes/" then name = name:gsub("/", "."):gsub("%.init$", "") end
    io.write(("static const char f%d[] = {\n%s};\n"):format(i, bytes(slurp(path))))
    rows[#rows + 1] = ('{"%s", "%s", f%d, sizeof f%d - 1}'):format(name, path, i, i)
  end
  io.write("const struct { const char *name, *path, *text; size_t size; } nb_lua_files[] = {\n",
    table.concat(rows, ",\n"), ",\n{NULL, NULL, NULL, 0}};\n")
end
