package = "nibble"
version = "0.1.0-1"
source = { url = "git+file://." }
description = {
  summary = "A Lua-scriptable quantization workbench for language-model checkpoints",
  license = "Apache-2.0",
}
dependencies = { "lua == 5.1" } -- LuaJIT
build = {
  type = "make",
  build_target = "all",
  install_target = "install",
  install_variables = { PREFIX = "$(PREFIX)" },
}
