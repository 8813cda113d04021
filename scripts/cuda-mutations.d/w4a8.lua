-- Bugs in what brings w4a8_moe's packed weights into the device's form, and in what multiplies them there.
local FORM, EXPERTS = "lua/nibble/methods/device_experts.lua", "lua/nibble/cuda/experts.lua"
local PREDICATES, STACK = "lua/nibble/backends/predicates.lua", "lua/nibble/methods/marlin.lua"

return {
  spec = "spec/cuda_w4a8_spec.lua",
  bugs = {
    { "words in the order for 16 bits", STACK, "layout.marlin.repack(m.words, m.bits, m.a8, m.out.perm)",
      "layout.marlin.repack(m.words, m.bits, false, m.out.perm)" },
    { "scales in the order for 16 bits", STACK, "m.scale_k or k, m.group, m.a8)", "m.scale_k or k, m.group)" },
    { "the codes' middle", FORM, "to[i] = from[i] + 8", "to[i] = from[i] + 7" },
    { "the bias is left out", FORM, "bias = L.bias and bias or nil }", "bias = nil }" },
    { "one expert's weights for all", FORM, "method:unpack(L, w, e)", "method:unpack(L, w, 0)" },
    { "groups that the kernel doesn't take", PREDICATES, "g == 64 or g % 128 == 0", "g == 64 or g % 16 == 0" },
    { "groups of 128 by 16 bits", PREDICATES, "g == 64 or g % 128 == 0", "g == 64" },
    { "quantized twice", FORM, "if form and not narrow then", "if form then" },
    { "scales of tokens for those of pairs", EXPERTS, "from, first.top = made(x, C.nb_device_moe_weigh, x, o.weights), 1",
      "from = made(x, C.nb_device_moe_weigh, x, o.weights)" },
  },
}
