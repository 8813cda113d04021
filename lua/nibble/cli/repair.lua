-- repair: the safe repairs of a checkpoint, into a new folder.
local common = require "nibble.cli.common"

local M = {
  summary = "the safe repairs of a checkpoint, into a new folder",
  notes = "What `check` finds and can be mended without a guess; all else is copied and proven to be the same bytes. --tp pads\n"
    .. "the MLP for so many tensor-parallel ranks. --set tells what a lost quantization config said and the tensors don't\n"
    .. "(bits, group_size, sym, checkpoint_format, scheme). Exit status 1 when something is wrong that could not be mended.",
  args = { { "MODEL", optional = true } },
  options = {
    { "--out", "DIR", doc = "the folder of the mended checkpoint" },
    { "--only", "KINDS", doc = "these kinds of repair, with commas (--kinds lists them)" },
    { "--tp", "N", number = true, most = 1024, doc = "pad the MLP for N tensor-parallel ranks" },
    { "--consumer", "NAME", doc = "whose kernels the padding serves (default vllm-0.33)" },
    { "--set", "k=v", many = true, doc = "what the tensors don't tell (--set bits=4)" },
    { "--shard", "SIZE", doc = "the size of a weight file (5GB)" },
    { "--dry-run", doc = "say what would be done" },
    { "--kinds", doc = "list the kinds of repair instead" },
    { "--json", doc = "one JSON document" },
  },
  resumes = true,
}

local function list_kinds(repair, as_json)
  local rows = repair.kinds()
  if as_json then return io.write(require("nibble.json").encode(rows, { indent = 2 }), "\n") end
  for i, k in ipairs(rows) do rows[i] = { k.kind, k.about } end
  io.write(require("nibble.show").columns(rows, "ll"))
end

local function say(result, values)
  if values.json then io.write(require("nibble.json").encode(result:totable(), { indent = 2 }), "\n")
  else io.write(tostring(result), "\n") end
end

function M.run(values)
  local repair = require "nibble.repair"
  if values.kinds then
    list_kinds(repair, values.json)
    return 0
  end
  if not values.model then error("repair needs MODEL, a checkpoint's folder", 0) end
  if not values.out and not values.dry_run then
    error("repair needs --out DIR, the folder of the mended checkpoint, or --dry-run", 0)
  end
  local plan = assert(repair.plan(values.model, { only = values.only, tp = values.tp, consumer = values.consumer,
    set = common.settings(values.set), shard = values.shard }))
  if values.dry_run or #plan.changes == 0 then
    say(plan, values)
  else
    say(assert(common.with_progress(function(report) return plan:run(values.out, { progress = report }) end)), values)
  end
  return #plan.cannot > 0 and 1 or 0
end

return M
