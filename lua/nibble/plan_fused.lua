-- plan_fused: modules that consumers load as one matrix (q/k/v, gate/up): what they must have in common.
local words = require "nibble.text"
local scheme_m = require "nibble.scheme"

local M = {}

local function outcome(job)
  return job.out.scheme and scheme_m.describe(job.out.scheme) or "left " .. tostring(job.rec.dtype)
end

--- check(jobs, groups) -> true | nil, msg: consumers load siblings as one matrix, so they must agree in all but the weights.
function M.check(jobs, groups)
  local by_name = {}
  for _, job in ipairs(jobs) do by_name[job.name] = job end
  for _, job in ipairs(jobs) do
    local parent, leaf = words.split_name(job.name)
    for _, group in ipairs(groups) do
      if leaf == group[1] then
        for i = 2, #group do
          local other = by_name[parent .. "." .. group[i]]
          local alike = other and (other.out.scheme == job.out.scheme and job.out.scheme or outcome(other) == outcome(job))
          if other and not alike then
            return nil, ("%s: %s (%s, %s) and %s (%s, %s) are fused as %s by consumers and must share one scheme; "
              .. "give both the same rule"):format(parent, leaf, outcome(job), job.reason, group[i], outcome(other), other.reason, group.as)
          end
        end
      end
    end
  end
  return true
end

--- share_globals(jobs, groups): job.shares lists the names of the modules whose largest magnitude decides the global
-- scale of NVFP4, which belongs to what consumers load as one matrix.
function M.share_globals(jobs, groups)
  local by_name = {}
  for _, job in ipairs(jobs) do
    if job.action == "quantize" and job.out.scheme.strategy == "tensor_group" then by_name[job.name] = job end
  end
  for _, job in ipairs(jobs) do
    local parent, leaf = words.split_name(job.name)
    for _, group in ipairs(by_name[job.name] and groups or {}) do
      local names, inside = {}, false
      for i, part in ipairs(group) do
        local name = parent .. "." .. part
        inside = inside or group[i] == leaf
        if by_name[name] then names[#names + 1] = name end
      end
      if inside and #names > 1 then job.shares = names end
    end
  end
end

return M
