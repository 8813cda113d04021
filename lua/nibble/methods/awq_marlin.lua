-- methods.awq_marlin: linear layers of AWQ checkpoints on Marlin: parameters as the
-- checkpoint has them, turned into the standard packing and into Marlin's form after
-- loading (SYSTEMS AWQ-20 to AWQ-27).
local backends = require "nibble.backends"
local compat = require "nibble.compat"
local gemm = require "nibble.gemm"
local layout = require "nibble.layout"
local marlin = require "nibble.marlin"
local awq = require "nibble.methods.awq"
local linear = require "nibble.methods.linear"
local prepare = require "nibble.methods.marlin".prepare

local M = { name = "awq_marlin", monolithic = false }
M.__index = M

-- What the peer's text of this method knows as kernels (SYSTEMS C-23).
local documented = { conch = true, exllama = true, marlin = true }
-- What consumers call Marlin's dense kernel.
local is_marlin = { marlin = true, awq_marlin = true }

local tell = require("nibble.methods.tell").teller "AWQMarlinLinearMethod"

--- standard(qweight, qzeros, bits) -> qweight i32 [K/8, N], qzeros i32 [N/8, G]
-- AWQ words in the packing that all kernels start from: word (r,n), slot u = code (8r+u, n); zero-points packed along
-- N, transposed: word (p,r), slot u = zero (r, 8p+u). Lossless; 4 bits only, since the order of the slots that the
-- peers have in this place is that of 4 bits. (AWQ-23, AWQ-25, SYSTEMS C-02)
function M.standard(qweight, qzeros, bits)
  if bits ~= 4 then
    error(("awq_marlin: words of 4 bits are converted, found %s bits; layout.awq_to_gptq knows 8 too"):format(
      tostring(bits)), 2)
  end
  return layout.awq_to_gptq(qweight, bits),
    layout.ct.pack_zeros(layout.awq.unpack_zeros(qzeros, bits, qzeros:size(1)), bits)
end

-- The other way round, for kernels that have only AWQ's order of zero-points.
local function awq_zeros(standard, bits, n)
  return layout.awq.pack_zeros(layout.ct.unpack_zeros(standard, bits, n), bits)
end

--- new({bits = 4, group =, zero_point = true}, options) -> method | nil, msg, code
-- options: capability (default 90), platform ("cuda"); activations "int8" | "fp8": refused, because Marlin's dense kernel
-- takes them with uint4b8 weights only (AWQ-27); consumer, device ("vllm-0.33", "sm_80"): the oracle picks the kernel by
-- that consumer's table (AWQ-20, AWQ-21), else it is Marlin where that can be; choose: function(query) -> {backend=,
-- rejected=} | nil, msg, code picks it instead; log: function(level, message); compat (nibble.compat).
function M.new(config, options)
  local o = options or {}
  local switches = compat.read(o)
  if config.bits ~= 4 then
    return nil, ("awq_marlin: %s bits are not supported, only 4"):format(tostring(config.bits)), "eunsupported"
  end
  local ok, reason = marlin.supported("uint4", config.group, config.zero_point, o.capability or 90, o.platform)
  if not ok then return nil, "awq_marlin: " .. reason, "eunsupported" end
  local activations = o.activations ~= "none" and o.activations or nil
  if activations and not switches.dense_activations then
    return nil, ("awq_marlin: a dense AWQ layer takes no %s activations: Marlin's dense kernel has them for symmetric "
      .. "uint4b8 weights only; leave the activation dtype unset"):format(activations), "eunsupported"
  end
  return setmetatable({ config = config, options = o, compat = switches, activations = activations }, M)
end

-- The query that a kernel is chosen by, as the oracle takes it. (AWQ-20)
local function query(self, L)
  local group = self.config.group
  return { kind = "linear", name = L.name, consumer = self.options.consumer, device = self.options.device,
    weight = { type = "uint4", zero_points = self.config.zero_point, group = group, format = "awq",
               strategy = group == -1 and "channel" or "group" },
    input = self.activations, dtype = L.dtype, k = L.k, n = L.n, k_full = L.k_full, n_full = L.n_full,
    parallel = L.parallel, tp = L.tp, bias = L.bias }
end

-- Names of the consumer's kernels but for the documented ones, to be left out.
local function undocumented(consumer)
  local out = {}
  for _, row in ipairs(backends.rows(consumer)) do
    if row.kind == "linear" and not documented[row.backend] then out[#out + 1] = row.backend end
  end
  return out
end

local function by_consumer(q)
  local found, msg, code = backends.select(q, { change = false })
  if found and found.fallback then return nil, found.warning, "eunsupported" end
  return found, msg, code
end

local function only_marlin(self, L)
  local ok, reason = marlin.can_implement { type = "uint4", zero_points = self.config.zero_point, platform = self.options.platform,
    group = self.config.group, k = L.k, k_full = L.k_full, n = L.n, capability = self.options.capability or 90 }
  if ok then return { backend = "marlin", rejected = {} } end
  return nil, ("no kernel takes it: marlin: %s"):format(reason), "eunsupported"
end

-- The kernel of this layer: the first that can, by the table of the consumer.
local function choose(self, L)
  local q, choose_kernel = query(self, L), self.options.choose
  if self.compat.documented_kernels_only then
    q.only = documented
    if q.consumer then q.disabled = undocumented(q.consumer) end
  end
  if not choose_kernel then choose_kernel = q.consumer and by_consumer or function() return only_marlin(self, L) end end
  local found, msg, code = choose_kernel(q)
  if not found then return nil, ("layer %s: %s"):format(L.name, msg), code or "eunsupported" end
  tell(self.options.log, found.backend)
  return found.backend, found.rejected
end

--- method:create(L) -> true | nil, msg, code
-- Chooses the kernel (L.kernel) and registers the parameters of AWQ-22. (AWQ-20)
function M:create(L)
  local kernel, rejected, code = choose(self, L)
  if not kernel then return nil, rejected, code end
  L.kernel, L.rejected = kernel, rejected
  local groups, msg
  groups, msg, code = awq.parameters(L, self.config)
  if not groups then return nil, msg, code end
  return true
end

local function ignore() end

--- method:to_standard(L): step 1 of the processing alone: qweight and qzeros in the standard packing, after which
-- loading into them does nothing. (AWQ-23)
function M:to_standard(L)
  local words, zeros = M.standard(L:get "qweight", L:get "qzeros", self.config.bits)
  local w, z = L:replace("qweight", words), L:replace("qzeros", zeros)
  w.packed_dim, w.load = 0, ignore
  z.output_dim, z.input_dim, z.packed_dim, z.load = 0, 1, 0, ignore
  L.order_of_words = "gptq"
end

--- method:process(L) -> true | nil, msg, code
-- After loading: into Marlin's form, out of AWQ's words directly or out of the standard packing, with the same words,
-- in the memory that qweight had.
-- Sizes that Marlin's tiles don't divide are padded. Other kernels than Marlin get the standard packing. (AWQ-23, AWQ-24)
function M:process(L)
  if not is_marlin[L.kernel] then
    if L.order_of_words ~= "gptq" then self:to_standard(L) end
    return true
  end
  local standard = L.order_of_words == "gptq"
  if L.order_of_words and not standard then
    error(("layer %s was processed, or interrupted while it was: load it again"):format(L.name), 2)
  end
  L.order_of_words = "half" -- the words are moved where they lie
  local bias = L:param "bias"
  local out, msg, code = prepare {
    words = L:get "qweight", order = standard and "gptq" or "awq", bits = 4, group = self.config.group,
    zeros = standard and awq_zeros(L:get "qzeros", 4, L.n) or L:get "qzeros", scales = L:get "scales",
    bias = bias and bias.data, in_place = true,
  }
  if not out then return nil, msg, code end
  L:replace("qweight", out.words).load = ignore
  L:replace("scales", out.scales).load = ignore
  L:replace("qzeros", out.zeros).load = ignore
  if bias then
    L:replace("bias", out.bias)
    bias.permuted, bias.load = true, ignore
  end
  L.order_of_words = "marlin"
  return true
end

--- method:quant() -> nil: linear layers hand no description to other kernels.
function M.quant() end

-- In the standard packing: kernels whose own form isn't here.
local function apply_standard(L, x, bias)
  local words, zeros = L:get "qweight", awq_zeros(L:get "qzeros", 4, L.n)
  return gemm.packed(x, { n = L.n, k = L.k, bits = 4, scales = L:get "scales", zeros = zeros, bias = bias,
    read = function(codes, row) layout.gptq.unpack(words, 4, codes, row) end })
end

--- method:apply(L, x [, bias]) -> y [.., n] in x's dtype
-- y = x · Ŵ + bias, Ŵ[k,n] = (q - z) * s, out of the processed form. bias: nil (the layer's), false (none) or
-- {data =, permuted = true} in Marlin's order. (AWQ-26)
function M:apply(L, x, bias)
  local flat, shape = linear.rows(L, x)
  local y
  if L.order_of_words == "marlin" then
    local words = L:get "qweight"
    local k, n = layout.marlin.weight_size(words, 4)
    y = gemm.marlin(flat, { type = "uint4", words = words, scales = L:get "scales", zeros = L:get "qzeros", k = k, n = n,
      outputs = L.n, group = self.config.group, bias = linear.bias(L, bias, true), dtype = L.dtype,
      activations = self.activations })
  elseif L.order_of_words == "gptq" then
    y = apply_standard(L, flat, linear.bias(L, bias, false))
  else
    error(("layer %s is not processed yet: call process after loading"):format(L.name), 2)
  end
  return linear.shaped(y, x, shape, L.n)
end

return M
