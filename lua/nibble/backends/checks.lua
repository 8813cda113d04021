-- backends.checks: what consumers ask of a checkpoint apart from their kernels: data for nibble.check, which knows no
-- consumer. The first is the default.
--
--   name, about   version included
--   oracle        the consumer of nibble.backends whose tables judge every layer and rank; absent: only the limits here
--   methods       quant_method -> limits on what it may hold (see below); a method that isn't there is refused. Absent: the
--                 oracle's own list
--   convert       what a person does where a method isn't taken
--   strict_args   true: keys that compressed-tensors' arguments and groups don't have are refused
--   requires      quant_method -> keys that must be there; a list in it: one of them
--   side_requires file -> keys that must be there in that side file
--   sparsity      false: weights in compressed-tensors' sparse formats are refused
--   transforms    false: transform_config is passed over, so that the weights come out wrong
--   shared_scales what becomes of different scales in one fused layer: "largest" (rescaled to the largest), "first"
--   cache_scales  true: kv_cache_scheme without scales falls back to 1.0
-- Limits: bits = {…}, symmetric = bool, actorder = false, groups = most config groups, storage = {format = {strategies} | true},
-- algos = {…}, act = false: activations are passed over.
local vllm_side = { ["hf_quant_config.json"] = { "quant_algo", "group_size", "kv_cache_quant_algo", "exclude_modules" } }

return {
  {
    name = "vllm-0.33", about = "vLLM 0.33", oracle = "vllm-0.33", strict_args = true,
    convert = "convert it: nibble convert MODEL --to compressed-tensors",
    requires = {
      awq = { { "bits", "w_bit" }, { "group_size", "q_group_size" }, "zero_point" },
      gptq = { "bits", "group_size", "desc_act", "sym" },
      ["compressed-tensors"] = { "config_groups" }, modelopt = { "quant_algo" }, fp8 = { "activation_scheme" },
    },
    side_requires = vllm_side, sparsity = false, shared_scales = "largest", cache_scales = true,
  },
  {
    name = "llama.cpp", about = "llama.cpp's converter from Hugging Face's files (gguf 0.19)",
    convert = "convert it to compressed-tensors, GPTQ or float first",
    methods = {
      bitnet = {}, fp8 = {}, mxfp4 = {}, gptq = { bits = { 2, 4, 8 } },
      ["compressed-tensors"] = { groups = 1, storage = {
        ["float-quantized"] = { "channel", "block" }, ["int-quantized"] = { "channel", "block" },
        ["naive-quantized"] = { "channel", "block" }, ["pack-quantized"] = { "group" }, ["nvfp4-pack-quantized"] = true,
      } },
      modelopt = { algos = { "FP8", "NVFP4" } },
    },
    transforms = false,
  },
  {
    name = "transformers-5.23", about = "transformers 5.23 with the quantizers' own packages",
    convert = "convert it: nibble convert MODEL --to compressed-tensors",
    methods = {
      awq = { bits = { 4 } }, gptq = { bits = { 2, 3, 4, 8 } }, ["auto-round"] = {}, fp8 = {}, mxfp4 = {}, quark = {},
      torchao = {}, bitsandbytes = {}, hqq = {}, fp_quant = {}, fbgemm_fp8 = {}, bitnet = {}, eetq = {}, spqr = {}, vptq = {},
      aqlm = {}, higgs = {}, quanto = {},
      ["compressed-tensors"] = { storage = {
        ["pack-quantized"] = true, ["int-quantized"] = true, ["float-quantized"] = true, ["naive-quantized"] = true,
        ["nvfp4-pack-quantized"] = true, ["mxfp4-pack-quantized"] = true, ["mxfp8-quantized"] = true,
      }, packed_symmetric = true },
    },
  },
}
