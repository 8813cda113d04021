-- Ways to break the oracle of WNA16 experts, each with the requirement whose spec must notice:
-- `make coverage-systems BREAK=1` does them in copies of the tree.
-- {number=, file=, spec=, from= (plain text that is there), to=}
return {
  { number = "ORC-05", file = "lua/nibble/backends/init.lua", spec = "spec/backends_spec.lua",
    from = "if seen[message] then return end", to = "" },
  { number = "ORC-09", file = "lua/nibble/backends/table.lua", spec = "spec/backends_spec.lua",
    from = "checks = in_stages(checks)", to = "" },
  { number = "ORC-10", file = "lua/nibble/backends/vllm_0_33_moe.lua", spec = "spec/backends_moe_spec.lua",
    from = '{ "capability", min = 75 }, every_fn, { "not_all2all", "fi_nvl_two_sided" } }', to = "every_fn }" },
  { number = "ORC-11", file = "lua/nibble/backends/decide.lua", spec = "spec/backends_spec.lua",
    from = 'if q.backend and q.backend ~= "auto" then', to = "if false then" },
  { number = "ORC-12", file = "lua/nibble/backends/document_era.lua", spec = "spec/backends_moe_spec.lua",
    from = '{ "bits", 4, requirement = "ORC-12" }', to = '{ "bits", 4, 8 }' },
  { number = "ORC-16", file = "lua/nibble/methods/wna16_convert.lua", spec = "spec/methods_wna16_convert_spec.lua",
    from = '{ "codes", "act_order", "repack", "scales", "int8", "bias" }',
    to = '{ "act_order", "codes", "repack", "scales", "int8", "bias" }' },
  { number = "ORC-17", file = "lua/nibble/methods/wna16_convert.lua", spec = "spec/methods_wna16_convert_spec.lua",
    from = "if switches.unsorted_g_idx then", to = "if not switches.unsorted_g_idx then" },
  { number = "ORC-20", file = "lua/nibble/methods/marlin.lua", spec = "spec/methods_wna16_convert_spec.lua",
    from = "m.scales:size(m.scales.ndim - 1) > 1 then", to = "true then" },
}
