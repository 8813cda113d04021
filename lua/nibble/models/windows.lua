-- windows: which layers see only a sliding window, by layer_types and the Qwen family's settings.
local M = {}

--- types(c, refuse): reads layer_types.
function M.types(c, refuse)
  local types = c.get "layer_types"
  if types ~= nil and (type(types) ~= "table" or #types ~= c.layers) then
    refuse(("layer_types must list all %d layers"):format(c.layers))
  end
  c.layer_types = types
end

--- check(c, whole, refuse): reads use_sliding_window, sliding_window, max_window_layers, layer_types.
function M.check(c, whole, refuse)
  M.types(c, refuse)
  if c.get "use_sliding_window" ~= true or c.get "sliding_window" == nil then return end
  c.window = whole(c.get, "sliding_window")
  c.first_windowed = c.get "max_window_layers"
  if type(c.first_windowed) ~= "number" then
    refuse("max_window_layers must be a number, found " .. tostring(c.first_windowed))
  end
end

--- of(c, i) -> the window of layer i (0-based), or nil: layer_types says, else the
-- layers from max_window_layers on, else all.
function M.of(c, i)
  if c.layer_types then return c.layer_types[i + 1] == "sliding_attention" and c.window or nil end
  return c.window and i >= (c.first_windowed or 0) and c.window or nil
end

return M
