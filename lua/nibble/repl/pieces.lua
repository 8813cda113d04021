-- pieces: what was typed or pasted as pieces that run one by one: a chunk of Lua, or a line that is no Lua
-- (:word, ?name, !command).
local M = {}

M.PROMPT, M.MORE = "nibble> ", "      > "

--- clean(text) -> text without prompts: of a transcript (a line begins with the prompt) only what was typed is left.
function M.clean(text)
  if not ("\n" .. text):find("\n%s*" .. M.PROMPT) then return text end
  local out, typed = {}, false
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do
    local first, more = line:match("^%s*" .. M.PROMPT .. "?(.*)$"), line:match "^ +> ?(.*)$"
    if first and line:find(M.PROMPT:sub(1, -2), 1, true) then
      out[#out + 1], typed = first, true
    elseif more and typed then
      out[#out + 1] = more
    elseif line:find "%S" then
      typed = false
    end
  end
  return table.concat(out, "\n")
end

--- special(line) -> whether a line is no Lua: :word, ?name, name?, !command, exit.
function M.special(line)
  if line:match "^%s*:%a" or line:match "^%s*%?" or line:match "^%s*!" then return true end
  local word = line:match "^%s*(%a+)%s*$"
  return word == "exit" or word == "quit" or (line:match "^%s*[%w_.:-]+%?%s*$") ~= nil
end

--- compile(text, name) -> function | nil, msg, whether more lines could make it whole
-- An expression becomes a function that returns its values.
function M.compile(text, name)
  local chunk, msg = loadstring("return " .. text, name)
  if chunk then return chunk end
  local statement, why = loadstring(text, name)
  if statement then return statement end
  local unfinished = "near '<eof>'"
  local as_expression = msg:find(unfinished, 1, true) ~= nil
  local open = (as_expression or why:find(unfinished, 1, true) ~= nil) and text:find "%S" ~= nil
  return nil, as_expression and msg or why, open
end

--- assignment(text, name) -> function | nil: of one assignment to a name or field, returns the value and what came
-- with it: m = open "none" would lose the reason why m is nil.
function M.assignment(text, name)
  local target, value = text:match "^%s*([%a_][%w_.]*)%s*=([^=].*)$"
  if not target or not loadstring("return " .. value) then return nil end
  return (loadstring(("local _v, _why =%s\n%s = _v return _v, _why"):format(value, target), name))
end

-- A piece and whether it is whole (true), could become it (false), or never will (nil, msg).
local function judge(text)
  if not text:find "\n" and M.special(text) then return true end
  local chunk, msg, open = M.compile(text, "=session")
  if chunk or not text:find "%S" then return true end
  if open then return false end
  return nil, msg
end

--- split(text) -> array of pieces | nil (more lines are to come) | nil, msg (no Lua)
-- Text that is one chunk stays one piece, so that its locals live; else lines are taken until they are whole.
function M.split(text)
  local whole, why = judge(text)
  if whole then return { text } end
  if not text:find "\n" then return nil, why end
  local out, piece = {}, nil
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do
    piece = piece and piece .. "\n" .. line or line
    local ok, msg = judge(piece)
    if ok == nil then return nil, #out == 0 and why or msg end
    if ok then
      if piece:find "%S" then out[#out + 1] = piece end
      piece = nil
    end
  end
  if piece then return nil end
  return out
end

return M
