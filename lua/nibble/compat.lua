-- compat: switches that bring back what the peers do where nibble does something else (SYSTEMS 10), for
-- comparison only. Each is off unless a method's options say compat = { name = true }.
local nffi = require "nibble.ffi"
local text = require "nibble.text"

local M = {}

--- compat.switches: array of {name, conflict, default, says}; says: what the switch does, and what happens without.
M.switches = {
  { name = "workspace_at_create", conflict = "C-03", default = false,
    says = "Marlin's workspace is made with the parameters; without it at the first use" },
  { name = "scale_permutation_k", conflict = "C-06", default = false,
    says = "experts' scales are permuted with the K that each peer passes, which mis-permutes w13 where "
      .. "intermediate <= group < hidden; without it with the matrix's own K, as the kernel decides" },
  { name = "unsorted_g_idx", conflict = "C-07", default = false,
    says = "the conversion for Marlin's experts returns the group indices as they were; without it sorted" },
  { name = "refuse_channel_experts", conflict = "C-09", default = false,
    says = "AWQ experts with one group for the whole K (group -1) are refused, as the peers' negative number of groups "
      .. "is; without it they have one group" },
  { name = "silu_always", conflict = "C-10", default = false,
    says = "AWQ experts on Marlin use SiLU whatever activation the layer has; without it the layer's" },
  { name = "dense_activations", conflict = "C-11", default = false,
    says = "a dense AWQ layer with 8-bit activations is made and fails at its first product; without it it is refused" },
  { name = "fp8_preprocess_any_width", conflict = "C-12", default = false,
    says = "the 4-bit code change for fp8 activations is done to 8-bit weights too, whose codes it breaks; "
      .. "without it they are refused" },
  { name = "actorder_any", conflict = "C-13", default = false,
    says = "actorder = weight counts as activation order for whole w2 scales and for k_full (C-26); without it "
      .. "only group does" },
  { name = "w4a8_kernel_activations", conflict = "C-14", default = false,
    says = "the CPU's W4A8 experts run swiglustep as plain silu(g)*u, as the peer's kernel does; without it with "
      .. "its clamp at 7. swigluoai is the clamped formula on halves either way" },
  { name = "dynamic_tensor_as_group", conflict = "C-16", default = false,
    says = "dynamic per-tensor activations are quantized in groups of 128, as the key they are selected by says; "
      .. "without it by tensor, as the scheme says" },
  { name = "router_weight_twice", conflict = "C-20", default = false,
    says = "with the router's weight on the input, Marlin's experts multiply by it once more; without it once" },
  { name = "block_key_128", conflict = "C-16", default = false,
    says = "FP8 blocks of any size count as 128x128 when a backend is asked; without it the backend must take the size" },
  { name = "float_weight_shape", conflict = "C-22", default = false,
    says = "weight_shape parameters are float32; without it int64" },
  { name = "documented_kernels_only", conflict = "C-23", default = false,
    says = "only the kernels that the peer's text names (Conch, Exllama, Marlin) are chosen from; without it all" },
  { name = "silent_fnuz_nan", conflict = "C-24", default = false,
    says = "NaN bytes become +-240 in e4m3fnuz without a word; without it they are counted and warned of" },
  { name = "silent_g_idx", conflict = "C-25", default = false,
    says = "group indices that the product ignores are ignored without a word; without it their first difference from "
      .. "k // group is warned of" },
  { name = "global_scales_bias", conflict = "C-27", default = false,
    says = "an NVFP4 expert's bias is multiplied by the global scale with the product; without it never" },
}

--- compat.read(options) -> {name = true|false for every switch}
-- options: what a method was given; options.compat: { name = bool, … } or nil. An unknown name is an error.
function M.read(options)
  local out, names = {}, {}
  for i, switch in ipairs(M.switches) do
    out[switch.name], names[i] = switch.default, switch.name
  end
  for name, value in pairs(options and options.compat or {}) do
    if out[name] == nil then
      error(("compat: there is no switch %q%s"):format(tostring(name), text.did_you_mean(tostring(name), names)), 3)
    end
    if type(value) ~= "boolean" then
      error(("compat: %s must be true or false, found %s"):format(name, tostring(value)), 3)
    end
    out[name] = value
  end
  return out
end

nffi.interpreted(M.read)

return M
