-- Ways to break the code, each with the requirement whose spec must notice: `make coverage-systems BREAK=1` does
-- it in a copy of the tree. {number=, file=, from= (plain text that is there), to=, spec=}
return {
  { number = "MRL-58", file = "lua/nibble/methods/layer.lua", spec = "spec/methods_layer_spec.lua",
    from = "if t and p.data and same_form(p.data, t) then", to = "if false then" },
  { number = "MRL-59", file = "lua/nibble/methods/layer.lua", spec = "spec/methods_layer_spec.lua",
    from = "not p.whole and not single", to = "true" },
  { number = "FWD-13", file = "lua/nibble/methods/layer.lua", spec = "spec/methods_layer_spec.lua",
    from = "if p.transposed then dim = 1 - dim end", to = "" },
  { number = "AWQ-22", file = "lua/nibble/methods/layer.lua", spec = "spec/methods_layer_spec.lua",
    from = "at, t, whole_at + self.rank * size, size, out)", to = "at, t, whole_at, size, out)" },
}
