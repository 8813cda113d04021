-- Ways to break compressed-tensors: WNA16 experts, each with the requirement whose spec must notice:
-- `make coverage-systems BREAK=1` does them in copies of the tree.
-- {number=, file=, spec=, from= (plain text that is there), to=}
return {
  { number = "CTM-WNA16-06", file = "lua/nibble/methods/ct_wna16_moe.lua", spec = "spec/methods_ct_wna16_moe_spec.lua",
    from = "local size = whole and L.i_full or L.i", to = "local size = L.i" },
  { number = "CTM-WNA16-08", file = "lua/nibble/layout/experts.lua", spec = "spec/methods_ct_wna16_moe_spec.lua",
    from = "at % 2 == 0 and half + at / 2 or (at - 1) / 2", to = "at % 2 == 0 and at / 2 or half + (at - 1) / 2" },
  { number = "CTM-WNA16-09", file = "lua/nibble/methods/ct_wna16_moe.lua", spec = "spec/methods_ct_wna16_moe_spec.lua",
    from = "out.sorted_g_idx or tensor.new", to = "tensor.new" },
  { number = "CTM-WNA16-09", file = "lua/nibble/methods/marlin.lua", spec = "spec/methods_ct_wna16_moe_spec.lua",
    from = "m.fold, m.scales = true, layout.marlin.multiply_scales(m.scales, 512)",
    to = "m.fold, m.scales = true, layout.marlin.multiply_scales(m.scales, 256)" },
}
