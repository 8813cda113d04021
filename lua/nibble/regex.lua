-- regex: matching Python-style patterns against module names (targets, ignore and dynamic rules of
-- quantization configs: compressed-tensors "re:...", GPTQModel "+:..." and "-:...").
--
-- A backtracking matcher over a compiled tree: literals, ., classes, \d \w \s, anchors, groups,
-- alternation, lookahead, greedy and lazy repeats. Patterns come from files, so the work on one name
-- is bounded; what is not understood or takes too long is nil, msg, never a wrong answer.
local M = {}

local MAX_STEPS = 200000
local MAX_DEPTH = 100

local escapes = { n = "\n", t = "\t", r = "\r", f = "\f", v = "\v" }
local function is_digit(c) return c >= 48 and c <= 57 end
local function is_space(c) return c == 32 or (c >= 9 and c <= 13) end
local function is_word(c)
  return is_digit(c) or (c >= 65 and c <= 90) or (c >= 97 and c <= 122) or c == 95
end
local class_of = { d = is_digit, w = is_word, s = is_space }

local function negated(test) return function(c) return not test(c) end end

local function fail(p, what) error({ regex = ("pattern %q: %s at character %d"):format(p.text, what, p.at) }, 0) end

local function peek(p) return p.text:sub(p.at, p.at) end

local function take(p)
  local c = peek(p)
  p.at = p.at + 1
  return c
end

-- \x inside or outside a class: a test of one character, or an anchor outside.
local function escaped(p, in_class)
  local c = take(p)
  if c == "" then fail(p, "nothing after the backslash") end
  local lower = c:lower()
  if class_of[lower] then
    return c == lower and class_of[lower] or negated(class_of[lower])
  end
  if escapes[c] then c = escapes[c]
  elseif not in_class and c:match "[bBAZ]" then return nil, c
  elseif c:match "%w" then fail(p, "\\" .. c .. " is not supported") end
  local byte = c:byte()
  return function(x) return x == byte end, nil, byte
end

local function parse_class(p)
  local tests = {}
  local inverse = peek(p) == "^"
  if inverse then p.at = p.at + 1 end
  local first = true
  while true do
    local c = take(p)
    if c == "" then fail(p, "a class without its ]") end
    if c == "]" and not first then break end
    first = false
    local test, _, low = nil, nil, c:byte()
    if c == "\\" then test, _, low = escaped(p, true) end
    if low and peek(p) == "-" and p.text:sub(p.at + 1, p.at + 1) ~= "]" then
      p.at = p.at + 1
      local high = take(p)
      if high == "\\" then high = take(p) end
      local a, b = low, high:byte() or fail(p, "a range without its end")
      test = function(x) return x >= a and x <= b end
    elseif low then
      test = function(x) return x == low end
    end
    tests[#tests + 1] = test
  end
  return function(x)
    for i = 1, #tests do
      if tests[i](x) then return not inverse end
    end
    return inverse
  end
end

local parse_alternatives

local function parse_group(p)
  local kind = "group"
  if peek(p) == "?" then
    local head = p.text:sub(p.at, p.at + 1)
    if head == "?:" then p.at = p.at + 2
    elseif head == "?=" then kind, p.at = "ahead", p.at + 2
    elseif head == "?!" then kind, p.at = "not_ahead", p.at + 2
    elseif p.text:match("^%?P<%w+>", p.at) then p.at = p.text:find(">", p.at, true) + 1
    else fail(p, "(" .. p.text:sub(p.at, p.at + 2) .. " is not supported") end
  end
  local body = parse_alternatives(p)
  if take(p) ~= ")" then fail(p, "a group without its )") end
  return { kind = kind, body = body }
end

local function parse_atom(p)
  local c = take(p)
  if c == "(" then return parse_group(p) end
  if c == "[" then return { kind = "one", test = parse_class(p) } end
  if c == "." then return { kind = "one", test = function(x) return x ~= 10 end } end
  if c == "^" then return { kind = "start" } end
  if c == "$" then return { kind = "finish" } end
  if c == "\\" then
    local test, anchor = escaped(p, false)
    if anchor == "A" then return { kind = "start" } end
    if anchor == "Z" then return { kind = "finish" } end
    if anchor then return { kind = "boundary", want = anchor == "b" } end
    return { kind = "one", test = test }
  end
  if c:match "[*+?]" then fail(p, "nothing to repeat") end
  local byte = c:byte()
  return { kind = "one", test = function(x) return x == byte end }
end

local function parse_repeat(p, atom)
  local low, high
  local c = peek(p)
  if c == "*" then low, high = 0, math.huge
  elseif c == "+" then low, high = 1, math.huge
  elseif c == "?" then low, high = 0, 1
  elseif c == "{" then
    local a, comma, b, stop = p.text:match("^{(%d*)(,?)(%d*)}()", p.at)
    if not a or (a == "" and b == "") then return atom end
    low = tonumber(a) or 0
    high = comma == "" and low or tonumber(b) or math.huge
    if low > 1000 or (high < math.huge and high > 1000) then fail(p, "a repeat above 1000") end
    p.at = stop - 1
  else
    return atom
  end
  p.at = p.at + 1
  local lazy = peek(p) == "?"
  if lazy then p.at = p.at + 1 end
  if peek(p):match "^[*+]$" then fail(p, "a repeat of a repeat") end
  return { kind = "repeat", body = atom, low = low, high = high, lazy = lazy }
end

function parse_alternatives(p)
  p.depth = p.depth + 1
  if p.depth > MAX_DEPTH then fail(p, "groups nest too deeply") end
  local branches, sequence = {}, {}
  while p.at <= #p.text and peek(p) ~= ")" do
    if peek(p) == "|" then
      p.at = p.at + 1
      branches[#branches + 1], sequence = sequence, {}
    else
      sequence[#sequence + 1] = parse_repeat(p, parse_atom(p))
    end
  end
  branches[#branches + 1] = sequence
  p.depth = p.depth - 1
  return branches
end

-- From here on: matching. m = {s=, steps=}; a continuation k(at) says whether the rest matches.
local match_node, match_branches

local function step(m)
  m.steps = m.steps + 1
  if m.steps > MAX_STEPS then error({ regex = "matching took too many steps" }, 0) end
end

local function match_sequence(m, nodes, i, at, k)
  if i > #nodes then return k(at) end
  return match_node(m, nodes[i], at, function(next_at) return match_sequence(m, nodes, i + 1, next_at, k) end)
end

function match_branches(m, branches, at, k)
  for _, sequence in ipairs(branches) do
    if match_sequence(m, sequence, 1, at, k) then return true end
  end
  return false
end

-- Repeats of one character need no recursion: count first, then give back.
local function match_run(m, node, at, k)
  local test, limit, count = node.body.test, math.min(node.high, #m.s - at + 1), 0
  if node.lazy then
    while true do
      step(m)
      if count >= node.low and k(at + count) then return true end
      if count >= limit or not test(m.s:byte(at + count)) then return false end
      count = count + 1
    end
  end
  while count < limit and test(m.s:byte(at + count)) do count = count + 1 end
  while count >= node.low do
    step(m)
    if k(at + count) then return true end
    count = count - 1
  end
  return false
end

local function match_repeat(m, node, at, count, k)
  step(m)
  local function once_more()
    if count >= node.high then return false end
    return match_node(m, node.body, at, function(next_at)
      if next_at == at and count >= node.low then return false end -- an empty round leads nowhere
      return match_repeat(m, node, next_at, count + 1, k)
    end)
  end
  if count < node.low then return once_more() end
  if node.lazy then return k(at) or once_more() end
  return once_more() or k(at)
end

local function at_boundary(s, at)
  local before, after = s:byte(at - 1), s:byte(at)
  return (at > 1 and before ~= nil and is_word(before)) ~= (after ~= nil and is_word(after))
end

local function yes() return true end

function match_node(m, node, at, k)
  local kind = node.kind
  step(m)
  if kind == "one" then
    local c = m.s:byte(at)
    return c ~= nil and node.test(c) and k(at + 1)
  elseif kind == "group" then return match_branches(m, node.body, at, k)
  elseif kind == "repeat" then
    if node.body.kind == "one" then return match_run(m, node, at, k) end
    return match_repeat(m, node, at, 0, k)
  elseif kind == "start" then return at == 1 and k(at)
  elseif kind == "finish" then return at == #m.s + 1 and k(at)
  elseif kind == "boundary" then return at_boundary(m.s, at) == node.want and k(at)
  elseif kind == "ahead" then return match_branches(m, node.body, at, yes) and k(at)
  end
  return not match_branches(m, node.body, at, yes) and k(at) -- not_ahead
end

-- Runs f; a pattern's fault, thrown as {regex = sentence}, becomes nil, sentence.
local function guarded(f, ...)
  local ok, value = pcall(f, ...)
  if ok then return value end
  if type(value) == "table" and value.regex then return nil, value.regex end
  error(value, 0)
end

local methods = {}
local meta = { __index = methods }

--- compile(pattern) -> regex | nil, msg
function M.compile(pattern)
  return guarded(function()
    local p = { text = pattern, at = 1, depth = 0 }
    local branches = parse_alternatives(p)
    if p.at <= #pattern then fail(p, "a ) without its (") end
    return setmetatable({ branches = branches, pattern = pattern }, meta)
  end)
end

--- r:match(s) -> true | false | nil, msg: whether the pattern matches at the start of s (Python's re.match).
function methods.match(r, s)
  return guarded(function() return match_branches({ s = s, steps = 0 }, r.branches, 1, yes) and true or false end)
end

--- r:search(s) -> true | false | nil, msg: whether it matches anywhere in s (Python's re.search).
function methods.search(r, s)
  return guarded(function()
    local m = { s = s, steps = 0 }
    for at = 1, #s + 1 do
      if match_branches(m, r.branches, at, yes) then return true end
    end
    return false
  end)
end

return M
