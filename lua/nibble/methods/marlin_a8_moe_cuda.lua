-- methods.marlin_a8_moe_cuda: experts of 4- and 8-bit integers whose products are of codes of one byte on a CUDA device, whatever
-- format stores them, in Marlin's order for 8-bit activations; inputs are quantized at every product as their scheme says, to int8
-- or FP8 with a scale a token, or the static one (SYSTEMS MRL-42, MRL-45, FWD-01). Where experts have static scales of their
-- own, inputs are what their codes stand for, in 16 bits, and so is the product.
--
-- The codes are those that evaluation on the CPU multiplies (act.quantize), as methods.marlin_a8_cuda's are.
local act = require "nibble.act"
local experts_cuda = require "nibble.methods.experts_cuda"
local layout = require "nibble.layout"
local marlin = require "nibble.methods.marlin"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"

-- Each expert's scales [n,G] in as much of the 16 bits as they need; m.scale_factor takes that off again.
local function lift(m)
  local experts = m.scales:size(1)
  local scales, factors = tensor.new(m.dtype, m.scales:size()), tensor.new("f32", { experts })
  for e = 1, experts do
    local of_expert, factor = marlin.lifted(m.scales[e], m.dtype)
    nffi.must(nffi.C.nb_tensor_copy(scales[e], of_expert))
    factors:set(e, factor)
  end
  m.scales, m.scale_factor = scales, factors
end

return {
  --- new({scheme =, format =}, {on = "cuda"}) -> method | nil, msg, code
  new = experts_cuda.class("marlin_a8_moe_cuda", {
    of_quantized = function(q)
      local s = q.scheme
      return { words = layout.ct.pack(q.codes, s.bits), scales = q.scales:cast "f32", bits = s.bits,
        group = q.groups > 1 and s.group or -1 }
    end,

    plan = function(form)
      for _, numbers in pairs(form.scales) do
        if act.by_expert(form.activations, numbers) then return end
      end
      form.codes = form.activations.type == "int" and "int8" or "fp8"
    end,

    stack = function(m, n, k, form)
      m.activations = form.codes
      lift(m)
      return marlin.stack(m, n, k)
    end,
  }),
}
