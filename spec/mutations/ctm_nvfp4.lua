-- Ways to break compressed-tensors: NVFP4 experts, each with the requirement whose spec must notice:
-- `make coverage-systems BREAK=1` does them in copies of the tree.
-- {number=, file=, spec=, from= (plain text that is there), to=}
return {
  { number = "CTM-NVFP4-09", file = "lua/nibble/methods/ct_nvfp4_moe.lua", spec = "spec/methods_ct_nvfp4_moe_spec.lua",
    from = "rescale(method, L, m.w13_scale, e, gate / up)", to = "rescale(method, L, m.w13_scale, e, up / gate)" },
  { number = "CTM-NVFP4-11", file = "lua/nibble/backends/decide.lua", spec = "spec/backends_moe_spec.lua",
    from = [[if q.clamp and t.clamp then
    local others]],
    to = [[if false then
    local others]] },
  { number = "CTM-NVFP4-12", file = "lua/nibble/methods/nvfp4_kernels.lua", spec = "spec/methods_ct_nvfp4_moe_spec.lua",
    from = "out:set(e, form.emulated and 1 / value or value)", to = "out:set(e, value)" },
  { number = "CTM-NVFP4-14", file = "lua/nibble/methods/nvfp4_kernels.lua", spec = "spec/methods_ct_nvfp4_moe_spec.lua",
    from = "function products.swapped(L) return products_of(L, true, 1) end",
    to = "function products.swapped(L) return products_of(L, true, 0) end" },
  { number = "CTM-NVFP4-14", file = "core/layout/marlin_numeric.c", spec = "spec/layout_numeric_spec.lua",
    from = "* 32 + i % 32) * 16 + i % 128 / 32 * 4", to = "* 32 + i % 128 / 4) * 16 + i % 4 * 4" },
  { number = "CTM-NVFP4-15", file = "core/layout/marlin_numeric.c", spec = "spec/layout_numeric_spec.lua",
    from = [[static const uint8_t order[4] = {0, 2, 1, 3};
  const char *what = "marlin nvfp4]],
    to = [[static const uint8_t order[4] = {0, 1, 2, 3};
  const char *what = "marlin nvfp4]] },
  { number = "CTM-NVFP4-19", file = "lua/nibble/methods/moe_common.lua", spec = "spec/methods_ct_nvfp4_moe_spec.lua",
    from = "if kept then L:replace(name, nil).data, L.kept[name] = kept, nil end", to = "" },
}
