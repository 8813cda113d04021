-- Ways to break Marlin's layouts and utilities, each with the requirement whose spec must notice:
-- `make coverage-systems BREAK=1` does them in copies of the tree.
-- {number=, file=, spec=, from= (plain text that is there), to=}
return {
  { number = "MRL-08", file = "lua/nibble/backends/predicates.lua", spec = "spec/backends_moe_spec.lua",
    from = "q.tile_padding and 1 or", to = "" },
  { number = "MRL-45", file = "lua/nibble/gemm.lua", spec = "spec/gemm_spec.lua",
    from = "{ global = global })", to = "{})" },
  { number = "MRL-48", file = "lua/nibble/gemm.lua", spec = "spec/gemm_spec.lua",
    from = "f16 = 8, bf16 = 120", to = "f16 = 8, bf16 = 119" },
  { number = "MRL-51", file = "core/compute/marlin.c", spec = "spec/gemm_spec.lua",
    from = "nb_marlin_scale_columns(column, j->groups > 1 && !w->a8);",
    to = "nb_marlin_scale_columns(column, !w->a8);" },
  { number = "MRL-51", file = "core/compute/marlin.c", spec = "spec/gemm_spec.lua",
    from = "row[((const int32_t *)w->perm->data)[k]]", to = "row[k]" },
  { number = "MRL-51", file = "core/compute/marlin.c", spec = "spec/gemm_spec.lua",
    from = "if (w->k_full && groups <= 1)", to = "if (false)" },
  { number = "MRL-52", file = "lua/nibble/gemm.lua", spec = "spec/gemm_spec.lua",
    from = "o.k >= 2048", to = "o.k > 2048" },
  { number = "MRL-53", file = "lua/nibble/methods/pymllm_config.lua", spec = "spec/method_configs_spec.lua",
    from = '"number", 4, "bits", "w_bit"', to = '"number", 4, "bits"' },
  { number = "MRL-54", file = "lua/nibble/methods/registry.lua", spec = "spec/method_configs_spec.lua",
    from = [[  if classes[name] then
      error]],
    to = [[  if false then
      error]] },
  { number = "MRL-55", file = "lua/nibble/methods/pymllm.lua", spec = "spec/methods_pymllm_spec.lua",
    from = 'L:get("qzeros"):as("u8"):fill(self.config.bits == 4 and 0x88 or 0x80)', to = "" },
  { number = "MRL-56", file = "lua/nibble/methods/pymllm.lua", spec = "spec/methods_pymllm_spec.lua",
    from = "marlin.workspace(self.options.sms or 1)", to = "marlin.workspace(self.options.sms or 1, 4)" },
  { number = "MRL-57", file = "lua/nibble/methods/pymllm.lua", spec = "spec/methods_pymllm_spec.lua",
    from = "if bias and not bias_comes_later(L) then", to = "if bias then" },
  { number = "MRL-58", file = "lua/nibble/methods/layer.lua", spec = "spec/methods_layer_spec.lua",
    from = "if t and p.data and same_form(p.data, t) then", to = "if false then" },
  { number = "MRL-59", file = "lua/nibble/methods/layer.lua", spec = "spec/methods_layer_spec.lua",
    from = "not p.whole and not single", to = "true" },
}
