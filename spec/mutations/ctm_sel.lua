-- Ways to break compressed-tensors: selection, each with the requirement whose spec must notice:
-- `make coverage-systems BREAK=1` does them in copies of the tree.
-- {number=, file=, spec=, from= (plain text that is there), to=}
return {
  { number = "CTM-SEL-01", file = "lua/nibble/methods/ct_config.lua", spec = "spec/method_configs_ct_spec.lua",
    from = "elseif g ~= first then", to = "elseif false then" },
  { number = "CTM-SEL-02", file = "lua/nibble/match.lua", spec = "spec/method_configs_ct_spec.lua",
    from = "if not msg then hit, msg = fused_target(targets, name, o.fused) end", to = "" },
  { number = "CTM-SEL-03", file = "lua/nibble/formats/ct_args.lua", spec = "spec/method_configs_ct_spec.lua",
    from = 'if a.strategy == "token" and a.dynamic ~= true then', to = "if false then" },
  { number = "CTM-SEL-03", file = "lua/nibble/formats/ct_args.lua", spec = "spec/method_configs_ct_spec.lua",
    from = 'return group == -1 and "channel" or "group"', to = 'return "group"' },
  { number = "CTM-SEL-03", file = "lua/nibble/formats/ct_args.lua", spec = "spec/method_configs_ct_spec.lua",
    from = 'group = "group", dynamic = "group", weight', to = 'group = "group", dynamic = "weight", weight' },
  { number = "CTM-SEL-04", file = "lua/nibble/methods/ct_config.lua", spec = "spec/method_configs_ct_spec.lua",
    from = 'q.format == "pack-quantized" and w.bits >= 2', to = "w.bits >= 2" },
  { number = "CTM-SEL-05", file = "lua/nibble/methods/ct_config.lua", spec = "spec/method_configs_ct_spec.lua",
    from = "nvfp4 = { owns = true }, ", to = "nvfp4 = {}, " },
  { number = "CTM-SEL-05", file = "lua/nibble/methods/moe_common.lua", spec = "spec/methods_ct_nvfp4_moe_spec.lua",
    from = [[function Base:prepare_finalize()
]],
    to = [[function Base:prepare_finalize()
  if self then return end
]] },
}
