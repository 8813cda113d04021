-- The layer check of `make lint` (DESIGN 2): this tree keeps the directions, and every kind of
-- offence is found at its file and line.
local function run(root)
  local p = io.popen(("luajit scripts/layers.lua '%s'; echo status $?"):format(root))
  local out = p:read "*a"
  p:close()
  return out
end

local function tree(files)
  local root = os.tmpname()
  os.remove(root)
  for path, text in pairs(files) do
    os.execute(("mkdir -p '%s/%s'"):format(root, path:match "^(.*)/"))
    local f = assert(io.open(root .. "/" .. path, "w"))
    f:write(text)
    f:close()
  end
  local out = run(root)
  os.execute(("rm -r '%s'"):format(root))
  return out
end

describe("the layer check", function()
  it("finds nothing here", function() assert.equal("status 0\n", run ".") end)

  it("finds every broken direction, with file, line and rule", function()
    local out = tree {
      ["core/base.h"] = "",
      ["core/layout/layout.h"] = '#include "../base.h"\n',
      ["core/io/x.c"] = '#include "../base.h"\n#include "../layout/layout.h"\n#include <cjson/cJSON.h>\n',
      ["core/quant/awq.h"] = "",
      ["core/quant/awq_avx2.c"] = '#include "awq.h"\n',
      ["core/quant/gptq.c"] = '#include "../layout/layout.h"\n#include "awq.h"\n',
      ["core/gpu.c"] = '#include <cuda.h>\n#include <lauxlib.h>\n#include <cudnn/x.h>\n',
      ["core/loud.c"] = '/* printf("x") */\nvoid f(char *s) { snprintf(s, 1, "exit(1)"); }\n'
        .. 'void g(void) {\n  printf("x");\n  exit(1);\n  fputs("x", stderr);\n}\n',
      ["core/main.c"] = '#include <lua.h>\nint main(void) { printf("x"); }\n',
      ["lua/nibble/formats/x.lua"] = '-- require "nibble.plan"\nlocal p = require "nibble.plan"\nlocal l = require("nibble.layout")\n',
      ["lua/nibble/models/x.lua"] = 'return require("nibble.formats.awq")\n',
      ["lua/nibble/backends/x.lua"] = 'return require "nibble.units"\n',
      ["lua/nibble/plan.lua"] = 'local s = require "nibble.repl.show"\nffi.cdef "int nb_x(void);"\n',
      ["recipes/x.lua"] = 'return { method = require "x" }\n',
    }
    for _, line in ipairs {
      "core/io/x.c:2: includes core/layout/layout.h: core/io may use core/io, core",
      "core/io/x.c:3: includes <cjson/cJSON.h>: cJSON lives in core/io/json.c only",
      "core/quant/gptq.c:2: includes awq.h: quantization methods never include one another",
      "core/gpu.c:1: includes <cuda.h>: core never includes a CUDA header",
      "core/gpu.c:2: includes <lauxlib.h>: core never includes Lua's headers, but for main.c",
      "core/loud.c:4: calls printf: core never prints, exits or aborts",
      "core/loud.c:5: calls exit: core never prints, exits or aborts",
      "core/loud.c:6: calls fputs: core never prints, exits or aborts",
      "core/loud.c:6: uses a standard stream: core never prints",
      "lua/nibble/formats/x.lua:2: requires nibble.plan: not for formats (they use layout)",
      "lua/nibble/models/x.lua:1: requires nibble.formats.awq: not for models (they use compute)",
      "lua/nibble/backends/x.lua:1: requires nibble.units: not for backends (data only)",
      "lua/nibble/plan.lua:1: requires nibble.repl.show: not for the workbench",
      "lua/nibble/plan.lua:2: declares an nb_ function: nibble.h and nibble_cuda.h are declared by lua/nibble/ffi.lua only",
      "recipes/x.lua:1: a recipe is data: no require",
      "status 1",
    } do
      assert.is_truthy(out:find(line, 1, true), line .. "\nin\n" .. out)
      out = out:gsub(line:gsub("%p", "%%%0"), "", 1)
    end
    assert.equal("core/gpu.c:3: includes <cudnn/x.h>: core never includes a CUDA header", (out:gsub("^%s+", ""):gsub("%s+$", "")))
  end)
end)
