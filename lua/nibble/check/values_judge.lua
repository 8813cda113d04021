-- check.values_judge: what the numbers of one tensor must not be, by its part in the module: weights, codes, scales,
-- numbers of a whole tensor, zero-points, column groups. check.values reads the tensors and gathers what is found.
local nffi = require "nibble.ffi"
local formats = require "nibble.formats"
local quantized = require "nibble.quantized"
local schemes = require "nibble.scheme"
local text = require "nibble.text"

local M = {}

-- ---- which part a tensor plays ------------------------------------------------------

local parts = {
  weight_scale = "scales", weight_scale_inv = "scales", scales = "scales", blocks = "codes", qweight = "codes",
  weight_packed = "codes",
  weight_global_scale = "global", weight_scale_2 = "global",
  input_scale = "input", input_global_scale = "input", k_scale = "input", v_scale = "input",
  qzeros = "zeros", weight_zero_point = "zeros", g_idx = "groups", weight_g_idx = "groups", weight_shape = "shape",
}

--- part(rec, suffix, info) -> the part that a module's tensor plays: a key of M.judges.
function M.part(rec, suffix, info)
  local part = parts[suffix ~= "" and suffix or text.leaf(info.name)]
  return part or (rec.scheme and suffix == "weight" and "codes") or "values"
end

--- as_stored(t, rec, part) -> t; scales that are exponents as such, whatever the file calls their bytes.
function M.as_stored(t, rec, part)
  local exponents = part == "scales" and t:type() == "u8" and (rec.scheme or {}).scale_dtype == "e8m0"
  return exponents and t:as("f8_e8m0", t:size()) or t
end

-- ---- sentences ------------------------------------------------------------------------

-- "row 3, column 17 (from 0)" of the i-th element.
local function where(t, i)
  if t:numel() == 1 then return "its only number" end
  local columns = t:size(t.ndim)
  if t.ndim < 2 then return ("element %d (from 0)"):format(i - 1) end
  return ("row %d, column %d (from 0)"):format(math.floor((i - 1) / columns), (i - 1) % columns)
end

--- plural(n, "row") -> "3 rows"
function M.plural(n, one) return ("%d %s%s"):format(n, one, n == 1 and "" or "s") end
local plural = M.plural

local function odd_words(s)
  local words = {}
  if s.nan > 0 then words[1] = ("%d NaN"):format(s.nan) end
  if s.inf > 0 then words[#words + 1] = ("%d infinite"):format(s.inf) end
  return ("%s of %s"):format(table.concat(words, " and "), plural(s.numel, "value"))
end

local is_expert = "%.experts%.%d+%."

local again = "write the checkpoint again from the float model; where that has it too, its files are damaged"

-- ---- one tensor's faults -----------------------------------------------------------------

--- judges[part](t, scan, rec, report, suffix, ck): t: the tensor, scan: t:scan() (nil of words that are looked at as
-- they are), report(rule, severity, says, fix [, repair]) for each fault.
M.judges = {}
local judges = M.judges

function judges.values(t, s, rec, report, suffix)
  if s.first_odd then
    local fp8 = t:type():find "^f8_"
    report(fp8 and "fp8-nan" or "nonfinite", "error", ("%s, the first at %s%s; expected finite numbers"):format(odd_words(s),
      where(t, s.first_odd), fp8 and (" (byte 0x%02x)"):format(t:as("u8", { t:numel() }):get(s.first_odd)) or ""), again)
  elseif s.zeros == s.numel and s.numel > 1 and suffix ~= "bias" and rec.kind ~= "norm" then
    report("all-zero", "warning", ("all %s are 0; expected a weight"):format(plural(s.numel, "value")),
      "find out whether the tensor was ever written; a weight that is meant to be zero may be left out of the model")
  elseif s.zero_rows > 0 and rec.kind == "linear" and suffix ~= "bias" and t.ndim == 2 then
    report("zero-rows", "note", ("%s of %d are all zeros, the first is row %d (from 0)"):format(plural(s.zero_rows, "row"),
      t:size(1), s.first_zero_row - 1), "nothing, if the outputs were pruned or padded")
  end
end

-- Float codes may hold NaN; words of integer codes can only be all zeros, which no packing makes of a real weight.
function judges.codes(t, s, rec, report, suffix)
  if s.first_odd or s.zeros == s.numel then judges.values(t, s, rec, report, suffix) end
end

local function dead_expert(report, what)
  report("dead-expert", "error", ("%s, so no token reached the expert in calibration; expected a finite number above 0"):format(
    what), "calibrate with more text, or give the expert its siblings' scale: nibble repair does that", { kind = "dead-expert-scale" })
end

-- Whether the format's reader takes the module: it knows that a zero scale needs a group of zero-points.
local function reads(ck, rec)
  local f, src = assert(formats.get(rec.format)), assert(formats.source(ck, rec))
  local rows = formats.tile_rows(f, rec)
  local tile = schemes.quantized(rec.scheme, rows, rec.k, rec.dtype)
  for a = 1, rec.n, rows do
    nffi.stop_check()
    local b = math.min(rec.n, a + rows - 1)
    local ok, msg = f.read(src, rec, a, b, b - a + 1 == rows and tile or tile:top(b - a + 1))
    if not ok then return nil, msg end
  end
  return true
end

local function zero_scales(t, s, rec, report, ck)
  local said = ("%s of %d %s 0, the first at %s"):format(plural(s.zeros, "scale"), s.numel, s.zeros == 1 and "is" or "are",
    where(t, s.first_zero))
  if t:type() == "f8_e4m3" then -- whatever the codes are
    local many = s.zeros > 0.01 * s.numel
    return report("scale-zero", many and "warning" or "note", said .. ": their blocks come out as zeros, which they were or underflowed to",
      many and "quantize again with a global scale of the whole tensor's absmax" or "nothing, if the weights are zeros there")
  end
  local ok, msg = reads(ck, rec)
  if not ok then return report("scale-zero", "error", msg:gsub("^.-: ", "", 1), again) end
  if rec.version and rec.version ~= "gemm" then return end -- AWQ's gemv pads them with zeros
  report("scale-zero", "note", said .. ": their groups are all zeros, too", "nothing: the weights are zeros")
end

function judges.scales(t, s, rec, report, _, ck)
  local expert = rec.name:find(is_expert)
  local all_bad = s.numel > 0 and s.zeros + s.nan + s.inf == s.numel
  if expert and all_bad then
    return dead_expert(report, s.zeros == s.numel and "every scale is 0" or odd_words(s))
  elseif s.first_odd then
    local e8m0 = t:type() == "f8_e8m0"
    return report(e8m0 and "e8m0-nan" or "scale-nonfinite", "error", ("%s, the first at %s%s; every scale must be finite"):format(
      odd_words(s), where(t, s.first_odd), e8m0 and " (byte 255)" or ""), again)
  end
  if s.zeros > 0 and rec.scheme then zero_scales(t, s, rec, report, ck) end
  if s.negative > 0 then
    local refused = rec.format == "modelopt"
    report("scale-negative", refused and "error" or "note", ("%s of %d %s below 0, the first at %s%s"):format(
      plural(s.negative, "scale"), s.numel, s.negative == 1 and "is" or "are", where(t, s.first_negative),
      refused and "; ModelOpt's scales must be 0 or more" or "; AutoRound writes such scales, other writers don't"),
      refused and again or "nothing, if AutoRound made the checkpoint")
  end
  if s.subnormal > 0 and t:type() ~= "f8_e4m3" then
    report("scale-subnormal", "warning", ("%s of %d %s subnormal in %s: fewer bits of precision, and 0 where a kernel flushes them")
      :format(plural(s.subnormal, "scale"), s.numel, s.subnormal == 1 and "is" or "are", t:type()),
      "store scales as bf16 or f32")
  end
end

-- One number, or one for each of fused parts: finite and above 0.
local function numbers(rule, what)
  return function(t, s, rec, report)
    if not s.first_odd and s.zeros == 0 and s.negative == 0 then return end
    local at = s.first_odd or s.first_zero or s.first_negative
    local said = ("%s is %s"):format(what, tostring(t:get(at)):gsub("^%-?nan$", "NaN"))
    if rec.name:find(is_expert) and (s.first_odd or s.first_zero) then return dead_expert(report, said) end
    report(rule, "error", ("%s; expected a finite number above 0"):format(said), rule == "input-scale"
      and "calibrate again with text that reaches the module" or again)
  end
end
judges.global = numbers("global-scale", "the global scale")
judges.input = numbers("input-scale", "the input's scale")

function judges.groups(t, _, rec, report)
  if not rec.scheme or t:type() ~= "i32" then return end
  local groups, p = schemes.groups(rec.scheme, rec.k), t:ptr()
  for c = 0, t:numel() - 1 do
    if p[c] < 0 or p[c] >= groups then
      return report("g-idx-range", "error", ("g_idx[%d] is %d, but there are %d groups (0 to %d)"):format(c, p[c], groups,
        groups - 1), "write the checkpoint again; column groups are counted from 0")
    end
  end
end

function judges.shape(t, _, rec, report)
  if not rec.scheme or t:numel() ~= 2 then return end
  local n, k = tonumber(t:get(1)), tonumber(t:get(2))
  if n ~= rec.n or k ~= rec.k then
    report("weight-shape", "error", ("weight_shape says [%dx%d], the tensors say [%dx%d]"):format(n, k, rec.n, rec.k),
      "write weight_shape as the weight's rows and columns")
  end
end

-- ---- zero-points ----------------------------------------------------------------------------

-- Whether some 4-bit field of the words is all ones.
local function has_full_nibble(words)
  local bit = require "bit"
  local band, rshift = bit.band, bit.rshift
  local p = words:ptr()
  for i = 0, words:numel() - 1 do
    local x = band(p[i], rshift(p[i], 1))
    if band(x, rshift(x, 2), 0x11111111) ~= 0 then return true end
  end
  return false
end

-- The one word that symmetric zero-points of these bits fill, or nil.
local function symmetric_word(rec)
  local bits = rec.scheme.bits
  if 32 % bits ~= 0 then return nil end
  local field, word = 2 ^ (bits - 1) - (rec.format == "gptq" and 1 or 0), 0
  for at = 0, 31, bits do word = word + field * 2 ^ at end
  return require("bit").tobit(word)
end

local function all_are(words, expected)
  local p = words:ptr()
  for i = 0, words:numel() - 1 do
    if p[i] ~= expected then return false end
  end
  return true
end

-- What is cheap to see in the words themselves settles nearly all; else the format's reader looks at each field.
function judges.zeros(t, _, rec, report, _, ck)
  if not rec.scheme or rec.scheme.type ~= "int" then return end
  local symmetric, v1 = rec.scheme.symmetric, rec.format == "gptq"
  if t:type() == "i32" and rec.n * rec.scheme.bits % 32 == 0 then
    if symmetric and all_are(t, symmetric_word(rec)) then return end
    if not symmetric and (not v1 or rec.scheme.bits == 4 and not has_full_nibble(t)) then return end
  end
  local f, src = assert(formats.get(rec.format)), assert(formats.source(ck, rec))
  local q = quantized.params(rec.scheme, rec.n, rec.k, rec.dtype)
  local ok, msg = f.read(src, rec, 1, rec.n, q)
  if not ok then
    return report("zero-points", "error", msg:gsub("^.-: ", "", 1), "write the zero-points again, or set the config's symmetry right")
  end
  if (q.wrapped_zeros or 0) > 0 then
    local full = 2 ^ rec.scheme.bits
    report("zero-points-wrapped", "warning", ("%s %s stored as %d, which stands for 0 or for %d: consumers of GPTQ v1 differ")
      :format(plural(q.wrapped_zeros, "zero-point"), q.wrapped_zeros == 1 and "is" or "are", full - 1, full),
      "convert to gptq_v2, which stores zero-points as they are")
  end
end

return M
