-- Ways to break compressed-tensors: W4A8 experts, each with the requirement whose spec must notice:
-- `make coverage-systems BREAK=1` does them in copies of the tree.
-- {number=, file=, spec=, from= (plain text that is there), to=}
return {
  { number = "CTM-W4A8-01", file = "lua/nibble/methods/w4a8_moe.lua", spec = "spec/methods_w4a8_moe_spec.lua",
    from = "or not a.dynamic then", to = "then" },
  { number = "CTM-W4A8-03", file = "core/layout/w4a8.c", spec = "spec/w4a8_spec.lua",
    from = "if (q[i] < -8 || q[i] > 7)", to = "if (q[i] < -8)" },
  { number = "CTM-W4A8-04", file = "lua/nibble/methods/w4a8_moe.lua", spec = "spec/methods_w4a8_moe_spec.lua",
    from = 'method.scale_dtype = method.group == -1 and "f32" or "bf16"', to = 'method.scale_dtype = "f32"' },
  { number = "CTM-W4A8-07", file = "lua/nibble/methods/w4a8_moe.lua", spec = "spec/methods_w4a8_moe_spec.lua",
    from = "if t then L:replace(w .. part, tensor.new(t:type(), { 0 })) end",
    to = "if t == 1 then L:replace(w .. part, nil) end" },
  { number = "CTM-W4A8-10", file = "lua/nibble/backends/init.lua", spec = "spec/backends_moe_spec.lua",
    from = "if b.row.kinds then", to = "if false then" },
  { number = "CTM-W4A8-11", file = "lua/nibble/methods/w4a8_moe.lua", spec = "spec/methods_w4a8_moe_spec.lua",
    from = "kind == 0 and not switches.w4a8_kernel_activations", to = "kind == 0" },
  { number = "CTM-W4A8-12", file = "lua/nibble/methods/w4a8_moe.lua", spec = "spec/methods_w4a8_moe_spec.lua",
    from = [[ids, weights, L.e, true
]],
    to = [[ids, weights, L.e, false
]] },
  { number = "CTM-W4A8-13", file = "lua/nibble/methods/w4a8_moe.lua", spec = "spec/methods_w4a8_moe_spec.lua",
    from = "on_input and true or false, true", to = "false, true" },
  { number = "CTM-W4A8-14", file = "core/compute/w4a8_avx2.c", spec = "spec/w4a8_spec.lua",
    from = "WIDEN = 4 }", to = "WIDEN = 8 }" },
}
