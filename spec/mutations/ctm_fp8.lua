-- Ways to break compressed-tensors: FP8 experts, each with the requirement whose spec must notice:
-- `make coverage-systems BREAK=1` does them in copies of the tree.
-- {number=, file=, spec=, from= (plain text that is there), to=}
return {
  { number = "CTM-FP8-10", file = "lua/nibble/methods/fp8.lua", spec = "spec/methods_ct_fp8_moe_spec.lua",
    from = "max = math.max(max, t:get(i))", to = "max = t:get(1)" },
  { number = "CTM-FP8-11", file = "lua/nibble/methods/ct_fp8_moe.lua", spec = "spec/methods_ct_fp8_moe_spec.lua",
    from = "m.w13, m.w13_scale = fp8.requantize_experts(m.w13, m.w13_scale)",
    to = "m.w13_scale = select(2, fp8.requantize_experts(m.w13, m.w13_scale))" },
  { number = "CTM-FP8-12", file = "lua/nibble/backends/vllm_0_33_moe.lua", spec = "spec/backends_moe_spec.lua",
    from = '{ when = { sm90_block, { "expert_parallel" } }, "FLASHINFER_CUTLASS" },', to = "" },
  { number = "CTM-FP8-15", file = "lua/nibble/methods/fp8_kernels.lua", spec = "spec/methods_ct_fp8_moe_spec.lua",
    from = "return unpadded(product(x, weight, scales, block, half, half), L.i),",
    to = "return unpadded(product(x, weight, scales, block, 0, half), L.i)," },
}
