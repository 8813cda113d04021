-- Llama, 4-bit weights by a method written here: round to nearest whose scale is
-- a power of two, chosen among three by the error it leaves. Shows the form: a
-- plain loop over w's numbers, compiled as fast as C.
--
-- w: f32 [n,k]. out: codes u8 [n,k], unsigned, scales f32 [n,groups], zeros u8 or
-- nil; n, k, groups, group (columns a group); round(x): x as its scale is stored.
local function power_of_two(w, scheme, options, out)
  local half = 2 ^ (scheme.bits - 1)
  local x, codes, scales = w:ptr(), out.codes:ptr(), out.scales:ptr()
  for g = 0, out.n * out.groups - 1 do
    local first, last, absmax = g * out.group, (g + 1) * out.group - 1, 0
    for i = first, last do absmax = math.max(absmax, math.abs(x[i])) end
    local middle = absmax > 0 and math.floor(math.log(absmax / half) / math.log(2)) or 0
    local best, s = math.huge, 1
    for e = middle - 1, middle + 1 do
      local try, sum = 2 ^ e, 0
      for i = first, last do
        local q = math.max(-half, math.min(half - 1, math.floor(x[i] / try + 0.5)))
        sum = sum + (x[i] - q * try) ^ 2
      end
      if sum < best then best, s = sum, try end
    end
    s = out.round(s * options.gain)
    scales[g] = s
    for i = first, last do
      codes[i] = math.max(-half, math.min(half - 1, math.floor(x[i] / s + 0.5))) + half
    end
  end
end

return {
  name    = "llama-w4a16-lua-method",
  model   = { model_type = "llama" },
  scheme  = "W4A16", group = 128, method = power_of_two, options = { gain = 1 },
  lm_head = false,
  rules   = {
    { "*.self_attn.*", method = "mse" },            -- the rest of the recipe mixes freely
  },
  output  = { format = "compressed-tensors" },
}
