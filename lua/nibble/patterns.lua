-- patterns: a set of module names as few patterns that mean these of all names and no other: regular
-- expressions (compressed-tensors, GPTQ, AutoRound), globs (ModelOpt, recipes), parts of names (AWQ).
--
-- A family is what one pattern means: {parts = {"model", "layers", {0, 1, 5}, "mlp", {"gate_proj", "up_proj"}}, names =
-- {…}}: a part is a word, a list of numbers or words, ANY_NUMBER or (only the last) ANYTHING.
local names_m = require "nibble.names"
local nffi = require "nibble.ffi"

local M = {}

local ANY_NUMBER, ANYTHING = setmetatable({}, { __tostring = function() return "#" end }),
  setmetatable({}, { __tostring = function() return "*" end })

local function parts_of(name)
  local out = {}
  for part in (name .. "."):gmatch "([^.]*)%." do out[#out + 1] = part end
  return out
end

local function is_list(part) return type(part) == "table" and part ~= ANY_NUMBER and part ~= ANYTHING end

local function text_of(part) return is_list(part) and table.concat(part, "|") or tostring(part) end

local function key_of(parts)
  local out = {}
  for i, part in ipairs(parts) do out[i] = text_of(part) end
  return table.concat(out, ".")
end

-- ---- numbers ----------------------------------------------------------------------------

-- Lists of numbers, by position, as a tree: number -> tree of what may follow it, true at the end.
local function tree_of(lists)
  local tree = {}
  for _, numbers in ipairs(lists) do
    local at = tree
    for i, n in ipairs(numbers) do
      if i == #numbers then at[n] = true else
        at[n] = at[n] or {}
        at = at[n]
      end
    end
  end
  return tree
end

local function sorted_keys(t)
  local out = {}
  for n in pairs(t) do out[#out + 1] = n end
  table.sort(out)
  return out
end
nffi.interpreted(sorted_keys)

-- Few products of slots (a list of numbers, or ANY_NUMBER) that hold exactly the wanted of all lists.
local function products(wanted, all)
  local groups, by = {}, {}
  for _, n in ipairs(sorted_keys(wanted)) do
    local rests = wanted[n] == true and { {} } or products(wanted[n], all[n])
    for _, rest in ipairs(rests) do
      local key = key_of(rest)
      if not by[key] then
        by[key] = { numbers = {}, rest = rest }
        groups[#groups + 1] = by[key]
      end
      table.insert(by[key].numbers, n)
    end
  end
  local total, out = #sorted_keys(all), {}
  for i, g in ipairs(groups) do
    out[i] = { total > 1 and #g.numbers == total and ANY_NUMBER or g.numbers, unpack(g.rest) }
  end
  return out
end

-- ---- families -----------------------------------------------------------------------------

-- stem -> {lists = numbers of each name}, in order of appearance.
local function by_stem(names)
  local order, by = {}, {}
  for _, name in ipairs(names) do
    local of = names_m.numbered(name)
    if not by[of.stem] then
      by[of.stem] = { stem = of.stem, lists = {} }
      order[#order + 1] = by[of.stem]
    end
    table.insert(by[of.stem].lists, of.numbers)
  end
  return order, by
end

local function families_of_stem(stem, wanted, all)
  local words, out = parts_of(stem), {}
  if not stem:find "%z" then return { words } end
  for _, slots in ipairs(products(tree_of(wanted), tree_of(all))) do
    local parts, i = {}, 0
    for j, word in ipairs(words) do
      if word == "\0" then
        i = i + 1
        parts[j] = slots[i]
      else parts[j] = word end
    end
    out[#out + 1] = parts
  end
  return out
end

-- Families that differ in the last word alone become one.
local function join_leaves(families)
  local out, by = {}, {}
  for _, parts in ipairs(families) do
    local leaf = parts[#parts]
    local key = type(leaf) == "string" and #parts > 1 and key_of { unpack(parts, 1, #parts - 1) }
    local same = key and by[key]
    if same then
      local last = same[#same]
      if type(last) == "string" then same[#same] = { last, leaf } else last[#last + 1] = leaf end
    else
      out[#out + 1] = parts
      if key then by[key] = parts end
    end
  end
  return out
end

local function part_means(part, word)
  if part == ANYTHING then return true end
  if part == ANY_NUMBER then return word:find "^%d+$" ~= nil end
  if type(part) == "string" then return part == word end
  for _, x in ipairs(part) do
    if tostring(x) == word then return true end
  end
  return false
end

-- Whether the first `count` parts mean the name's.
local function begins(parts, count, words)
  if #words < count then return false end
  for i = 1, count do
    if not part_means(parts[i], words[i]) then return false end
  end
  return true
end

-- Families below one prefix, of which nothing else is there, become prefix and ANYTHING.
local function widen(families, split, selected)
  for _, parts in ipairs(families) do
    for count = 1, #parts - 1 do
      local prefix = key_of { unpack(parts, 1, count) }
      local together, rest = 0, {}
      for _, other in ipairs(families) do
        if #other > count and key_of { unpack(other, 1, count) } == prefix then together = together + 1
        else rest[#rest + 1] = other end
      end
      local whole = together > 1
      for _, item in ipairs(whole and split or {}) do
        if #item.words > count and begins(parts, count, item.words) and not selected[item.name] then whole = false break end
      end
      if whole then
        rest[#rest + 1] = { unpack(parts, 1, count) }
        table.insert(rest[#rest], ANYTHING)
        return widen(rest, split, selected)
      end
    end
  end
  return families
end

--- families(names, all) -> array of families: patterns that mean exactly `names`, of the names in `all` (which holds them).
function M.families(names, all)
  local selected, split = {}, {}
  for _, name in ipairs(names) do selected[name] = true end
  for i, name in ipairs(all) do split[i] = { name = name, words = parts_of(name) } end
  local order, out = by_stem(names), {}
  local _, universe = by_stem(all)
  for _, of in ipairs(order) do
    for _, parts in ipairs(families_of_stem(of.stem, of.lists, universe[of.stem].lists)) do out[#out + 1] = parts end
  end
  return widen(join_leaves(out), split, selected)
end

-- ---- as regular expressions ------------------------------------------------------------------

local function escaped(word) return (word:gsub("[^%w_%-]", "\\%0")) end

-- "[0-3]", "7", "\\d": of one decade's last digits, ascending.
local function digits(list)
  if #list == 10 then return "\\d" end
  local out, from = {}, 1
  for i = 1, #list do
    if list[i + 1] ~= list[i] + 1 then
      local run = i - from
      out[#out + 1] = run == 0 and tostring(list[i]) or run == 1 and list[from] .. list[i] or ("%d-%d"):format(list[from], list[i])
      from = i + 1
    end
  end
  local text = table.concat(out)
  return #text == 1 and text or "[" .. text .. "]"
end

-- {0, …, 9, 12, 13} -> "\\d|1[23]"
local function numbers(list)
  local decades, by = {}, {}
  for _, n in ipairs(list) do
    local tens = math.floor(n / 10)
    if not by[tens] then
      by[tens] = { tens = tens }
      decades[#decades + 1] = by[tens]
    end
    table.insert(by[tens], n % 10)
  end
  for i, d in ipairs(decades) do decades[i] = (d.tens > 0 and tostring(d.tens) or "") .. digits(d) end
  return #decades == 1 and decades[1] or "(?:" .. table.concat(decades, "|") .. ")"
end

local function regex_part(part)
  if part == ANY_NUMBER then return "\\d+" end
  if part == ANYTHING then return ".*" end
  if type(part) == "string" then return escaped(part) end
  if type(part[1]) == "number" then return numbers(part) end
  local out = {}
  for i, word in ipairs(part) do out[i] = escaped(word) end
  return "(?:" .. table.concat(out, "|") .. ")"
end

-- A family of one name, or nil.
local function plain(parts)
  for _, part in ipairs(parts) do
    if type(part) ~= "string" and not (#part == 1 and type(part[1]) == "number") then return nil end
  end
  return key_of(parts)
end

--- regexes(names, all) -> array of {text = "^…$", name = the one name that it means | nil}
function M.regexes(names, all)
  local out = {}
  for i, parts in ipairs(M.families(names, all)) do
    local text = {}
    for j, part in ipairs(parts) do text[j] = regex_part(part) end
    out[i] = { text = "^" .. table.concat(text, "\\.") .. "$", name = plain(parts) }
  end
  return out
end

-- ---- as globs -------------------------------------------------------------------------------

-- Every combination of the lists' items, other parts as one text each.
local function spelled(parts, text, i, so_far, out)
  if i > #parts then
    out[#out + 1] = so_far
    return out
  end
  local part = parts[i]
  local list = is_list(part) and part or { part }
  for _, x in ipairs(list) do spelled(parts, text, i + 1, so_far .. (i > 1 and "." or "") .. text(x), out) end
  return out
end

local function glob_matcher(glob)
  local lua = "^" .. glob:gsub("[%^%$%(%)%%%.%[%]%+%-]", "%%%0"):gsub("%*", ".*"):gsub("%?", ".") .. "$"
  return function(name) return name:find(lua) ~= nil end
end

--- globs(names, all) -> array of globs whose * also matches dots: of families that a glob can't tell from other names,
-- the names one by one.
function M.globs(names, all)
  local selected, out, seen = {}, {}, {}
  for _, name in ipairs(names) do selected[name] = true end
  local function add(glob)
    if not seen[glob] then out[#out + 1], seen[glob] = glob, true end
  end
  local function star(part) return (part == ANY_NUMBER or part == ANYTHING) and "*" or tostring(part) end
  for _, parts in ipairs(M.families(names, all)) do
    for _, glob in ipairs(spelled(parts, star, 1, "", {})) do
      local matches, own, other = glob_matcher(glob), {}, false
      for _, name in ipairs(all) do
        if matches(name) then
          if selected[name] then own[#own + 1] = name else other = true end
        end
      end
      if not other then add(glob) else
        for _, name in ipairs(own) do
          if begins(parts, #parts, parts_of(name)) then add(name) end
        end
      end
    end
  end
  return out
end

-- ---- as parts of names ------------------------------------------------------------------------

-- Runs of whole words of a name; with_numbers: also those that hold a number.
local function runs(name, with_numbers)
  local words, out = parts_of(name), {}
  for from = 1, #words do
    for to = from, #words do
      local run = table.concat(words, ".", from, to)
      if with_numbers or not ("." .. run .. "."):find "%.%d+%." then
        local inner = to < #words and words[to]:find "^%d+$"
        out[#out + 1] = inner and run .. "." or run -- "layers.1." isn't in "layers.10."
      end
    end
  end
  return out
end

-- Of the texts that are in none of the others the one in most of the names that are left, of those the longest.
local function best_of(texts, haystack, left)
  local best, best_count
  for _, text in ipairs(texts) do
    local count = 0
    if not haystack:find(text, 1, true) then
      for name in pairs(left) do
        if name:find(text, 1, true) then count = count + 1 end
      end
    end
    if count > 0 and (not best or count > best_count or (count == best_count and #text > #best)) then
      best, best_count = text, count
    end
  end
  return best, best_count
end
nffi.interpreted(best_of)

--- substrings(names, others) -> array of texts, each part of some of the names and of none of the others, that reach every
-- name | nil, name, other: a name that is a part of another.
-- Consumers that match parts of names (AWQ-11) skip by them. Texts without layer numbers first.
function M.substrings(names, others)
  local haystack, out, left = "\n" .. table.concat(others, "\n") .. "\n", {}, {}
  for _, name in ipairs(names) do
    for _, other in ipairs(haystack:find(name, 1, true) and others or {}) do
      if other:find(name, 1, true) then return nil, name, other end
    end
    left[name] = true
  end
  for _, with_numbers in ipairs { false, true } do
    for _, name in ipairs(names) do
      nffi.stop_check()
      local text, count
      if left[name] then text, count = best_of(runs(name, with_numbers), haystack, left) end
      if count == 1 then text = name end
      if text then
        out[#out + 1] = text
        for _, n in ipairs(names) do
          if n:find(text, 1, true) then left[n] = nil end
        end
      end
    end
  end
  return out
end

return M
