-- cuda-budget: how many instructions a warp issues for each 16x64 tile of weights in a product kernel's main loop,
-- against cuda/budget.lua, of that target where it has a row of its own; experts' kernels have that of one weight's, where
-- they have none.
-- `luajit scripts/cuda-budget.lua sass|ptx FILE TARGET`; FILE: what `cuobjdump -sass` or `nvcc -ptx` gave; exit status 1
-- when a kernel takes more, or its loop isn't found.
--
-- The main loop is the shortest one with products on the tensor cores and copies. What it executes for a symmetric weight with
-- groups of 64 rows or more is counted: a forward branch over a block without products or copies is taken to jump, one back to a
-- block with products is taken once (product_a8.cuh's two steps, where they are a loop; the scales of the second, behind a
-- branch, are left out there).
package.path = (arg[0]:match "^(.*)/scripts/" or ".") .. "/?.lua;" .. package.path
local kind, path, target = arg[1], arg[2], arg[3]
local budget = require "cuda.budget"

local forms = {
  sass = { product = "^[HIQ]MMA", copy = "^LDGSTS" },
  ptx = { product = "^mma%.sync", copy = "^cp%.async%.cg" },
}
local form = assert(forms[kind], "cuda-budget: expected sass or ptx")

-- name -> { {op =, conditional =, to = place of a branch's target or nil}, … }
local function functions(text)
  local all, code, labels = {}, nil, nil
  local function close()
    for _, i in ipairs(code or {}) do i.to = i.target and labels[i.target] end
  end
  for line in text:gmatch "[^\n]+" do
    local begins = kind == "sass" and line:match "Function : (%S+)" or kind == "ptx" and line:match "%.entry%s+([%w_]+)"
    if begins then
      close()
      code, labels = {}, {}
      all[begins] = code
    elseif code then
      local address, rest = line:match "^%s*/%*(%x%x%x%x+)%*/%s+([^;]+);"
      if kind == "ptx" then
        local label = line:match "^(%$[%w_]+):"
        if label then labels[label] = #code + 1 end
        rest = line:match "^%s+([^;.{}/][^;]*);" or line:match "^%s+([a-z][^;]*)$"
        if rest and rest:find "^{" then rest = nil end
      end
      if rest then
        local predicate, op = rest:match "^(@!?U?%%?[%w_]+)%s+(.+)$"
        op = op or rest
        if address then labels[tonumber(address, 16)] = #code + 1 end
        local goal
        if kind == "sass" then goal = op:match "^BRA.-0x(%x+)" else goal = op:match "^bra[%w.]*%s+(%$[%w_]+)" end
        if goal and kind == "sass" then goal = tonumber(goal, 16) end
        local conditional = predicate or goal and op:find "%f[%w]U?P%d" -- BRA.U UP0, 0x10
        code[#code + 1] = { op = op, conditional = conditional ~= nil, target = goal }
      end
    end
  end
  close()
  return all
end

local function has(code, from, to, ...)
  for i = from, to do
    for _, pattern in ipairs { ... } do
      if code[i].op:find(pattern) then return true end
    end
  end
end

-- First and last instruction of the shortest loop with products.
local function main_loop(code)
  local from, to
  for i, c in ipairs(code) do
    if c.to and c.to <= i and (not from or i - c.to < to - from) and has(code, c.to, i, form.product) and has(code, c.to, i, form.copy) then
      from, to = c.to, i
    end
  end
  return from, to
end

-- Instructions that are executed, and products of 16 rows of k.
local function executed(code, from, to)
  local count, products, i, taken = 0, 0, from, {}
  while i <= to do
    local c = code[i]
    count = count + 1
    if c.op:find(form.product) then products = products + ((c.op:find "16832" or c.op:find "n8k32") and 2 or 1) end
    local ahead, back = c.to and c.to > i and c.to <= to, c.to and c.to > from and c.to <= i and i < to and not taken[i]
    local skips = ahead and (not c.conditional or not has(code, i + 1, c.to - 1, form.product, form.copy))
    local again = back and has(code, c.to, i, form.product)
    if again then taken[i] = true end
    i = (skips or again) and c.to or i + 1
  end
  return count, products
end

local file = assert(io.open(path))
local all = functions(file:read "*a")
file:close()
local failed = false
local names = {}
for name in pairs(all) do
  if name:find "^nb_product_.*_m%d+$" then names[#names + 1] = name end
end
table.sort(names)
if #names == 0 then error(("cuda-budget: %s has no product's kernel"):format(path), 0) end
for _, name in ipairs(names) do
  local code, one, sm = all[name], name:gsub("_experts_", "_"), " " .. (target:match "sm_%w+$" or "")
  local most = budget[kind][name .. sm] or budget[kind][one .. sm] or budget[kind][name] or budget[kind][one]
  local from, to
  if code then from, to = main_loop(code) end
  local count, products
  if from then count, products = executed(code, from, to) end
  if not most then
    print(("%s: %s has no budget"):format(target, name))
    failed = true
  elseif not from then
    print(("%s: %s: no loop with products and copies found"):format(target, name))
    failed = true
  else
    local each = count / (products / (name:find "_m16$" and 8 or 16))
    local over = each > most
    failed = failed or over
    print(("%s: %s, %.1f %s instructions to a tile, at most %d%s"):format(target, name, each, kind:upper(), most,
      over and ": TOO MANY" or ""))
  end
end
os.exit(failed and 1 or 0)
