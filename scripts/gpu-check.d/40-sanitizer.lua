-- compute-sanitizer over the correctness cases in small shapes: one row for each of its tools.
local children = require "children"
local checkpoint = require "nibble.checkpoint"
local tools = require "tools"

local TOOLS = { "memcheck", "racecheck", "synccheck", "initcheck" }

-- How many errors a log tells of, and the first of them.
local function errors_of(log)
  local first
  for line in log:gmatch "=========%s+([^\n]+)" do
    if not line:match "COMPUTE%-SANITIZER" and not line:match "SUMMARY:" then
      first = first and first .. "; " .. line or line
      if first:match "; " then break end
    end
  end
  return tonumber(log:match "SUMMARY: (%d+)"), first
end

local function run_tool(ctx, sanitizer, tool)
  local log = os.tmpname()
  local row = { name = tool, cases = 0 }
  local command = { sanitizer, "--tool", tool, "--error-exitcode", "9", "--log-file", log,
                    unpack(tools.child(ctx, "correctness", "--small")) }
  local wrong
  local cut = children.run { command = command, seconds = ctx.seconds / #TOOLS, case_seconds = ctx.seconds / #TOOLS, add = function(found)
    row.cases = row.cases + 1
    if found.status == "failed" then wrong = wrong or found.name .. ": " .. found.why end
  end }
  local text = checkpoint.read_file(log) or ""
  os.remove(log)
  local count, first = errors_of(text)
  row.errors = count
  if count and count > 0 then wrong = ("%d errors, the first: %s"):format(count, first or "not told") end
  if not wrong and not cut and not count then wrong = "it wrote no summary: " .. text:sub(1, 200) end
  row.status, row.why = wrong and "failed" or "passed", wrong or cut
  return row
end

return {
  title = "compute-sanitizer on small shapes",
  seconds = 60,
  run = function(ctx, add)
    if ctx.emulated then return { status = "skipped", why = "the emulator looks at every access itself" } end
    local sanitizer = tools.find "compute-sanitizer"
    if not sanitizer then return { status = "skipped", why = "compute-sanitizer is not here" } end
    for _, tool in ipairs(TOOLS) do add(run_tool(ctx, sanitizer, tool)) end
  end,
}
