-- methods.tell: what methods say while they work: once, and kept.

local M = {}

--- say(method, level, sentence): once; into method.messages {{level =, text =}, …} and options.log(level, text).
function M.say(method, level, sentence)
  method.messages = method.messages or {}
  for _, m in ipairs(method.messages) do
    if m.text == sentence then return end
  end
  method.messages[#method.messages + 1] = { level = level, text = sentence }
  if method.options.log then method.options.log(level, sentence) end
end

--- teller(what) -> function(log, name): "Using NAME for WHAT", once a name and process. log: function(level, message) | nil
function M.teller(what)
  local told = {}
  return function(log, name)
    if told[name] or not log then return end
    told[name] = true
    log("info", ("Using %s for %s"):format(name, what))
  end
end

return M
