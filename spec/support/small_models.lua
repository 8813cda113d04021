-- small_models: what is made of the models in spec/models for specs that need little of them.
local checkpoint = require "nibble.checkpoint"
local command = require "spec.support.command"
local files = require "spec.support.files"

local M = {}

--- first_layers(root, name, layers) -> the folder in root with the first layers of a model of spec/models: what all of them
-- would show, in less time.
function M.first_layers(root, name, layers)
  local from, to = "spec/models/" .. name, root .. "/" .. name
  os.execute(("mkdir %s && ln -s $PWD/%s/*.safetensors %s"):format(to, from, to))
  files.write(to .. "/config.json", (files.read(from .. "/config.json"):gsub('("num_hidden_layers": )%d', "%1" .. layers)))
  return to
end

--- quantized(model [, recipe = "any-w4a16"]) -> the folder beside it with the model quantized so; made once
function M.quantized(model, recipe)
  recipe = recipe or "any-w4a16"
  local dir = model .. "-" .. recipe
  if not checkpoint.exists(dir) then
    local r = command.run { "run", recipe, model, "--out", dir }
    assert(r.status == 0, r.err)
  end
  return dir
end

return M
