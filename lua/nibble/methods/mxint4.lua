-- methods.mxint4: experts of signed 4-bit integers in groups of 32 as FlashInfer's TensorRT-LLM
-- kernel reads them: gate and up rows alternate, rows are shuffled for its transposed products, bytes
-- lie in blocks of 128 along K, scales in the tensor cores' order (SYSTEMS CTM-WNA16-08, CTM-WNA16-14).
local layout = require "nibble.layout"
local nffi = require "nibble.ffi"
local common = require "nibble.methods.moe_common"

local M = {}

local GROUP, BLOCK, TILE = 32, 128, 128

--- refuses(L) -> nil, or why the kernel can't take a layer of these sizes.
function M.refuses(L)
  if not L.gated then return ("layer %s: MXINT4 takes gated experts only"):format(L.name) end
  if L.dtype ~= "bf16" then
    return ("layer %s: MXINT4 takes bf16 scales and activations, found %s"):format(L.name, L.dtype)
  end
  for _, size in ipairs { { "hidden", L.h }, { "intermediate", L.i } } do
    if size[2] % (2 * BLOCK) ~= 0 then
      return ("layer %s: MXINT4 needs a multiple of %d as %s size, found %d"):format(L.name, 2 * BLOCK, size[1],
        size[2])
    end
  end
end

local row_order = layout.experts.shuffled_rows

-- Rows' order for blocks of 128 bytes: block-column b of row r lies at b*n + r.
local function block_order(rows, columns)
  local n, p = rows:numel(), rows:ptr()
  return layout.experts.row_order(n * columns, function(i) return p[i % n] * columns + math.floor(i / n) end)
end

-- Where rows and blocks came from.
local function inverse_orders(n, columns, gated)
  local rows = row_order(n, gated)
  local inverse = layout.experts.inverse_order
  return { rows = inverse(rows), blocks = inverse(block_order(rows, columns)) }
end

--- prepare(words, scales, gated) -> bytes u8 [E, K/256, N, 128], scales bf16 [E, N*Kp] | nil, msg, code
-- words: i32 [E,N,K/8], codes + 8, LSB first, changed in place; scales bf16 [E,N,K/32]; gated: rows are [w1; w3].
-- Kp: K/32 up to a multiple of 4. N is a multiple of 128, K of 256.
function M.prepare(words, scales, gated)
  if scales:type() ~= "bf16" then return nil, "MXINT4 takes bf16 scales, found " .. scales:type(), "eunsupported" end
  local e, n, bytes = words:size(1), words:size(2), words:size(3) * 4
  if n % TILE ~= 0 or bytes % BLOCK ~= 0 then
    return nil, ("MXINT4 needs N in multiples of %d and K of %d, found N = %d and K = %d"):format(TILE, 2 * BLOCK, n,
      2 * bytes), "eunsupported"
  end
  layout.experts.flip_int4(words)
  local rows, columns = row_order(n, gated), bytes / BLOCK
  local blocks = words:as("u8", { e, n * columns, BLOCK })
  local out = layout.experts.take_rows(blocks, block_order(rows, columns)):reshape { e, columns, n, BLOCK }
  local swizzled = layout.marlin.swizzle_blockscale(layout.experts.take_rows(scales, rows))
  return out, swizzled:reshape { e, swizzled:numel() / e }
end

local function unpack_expert(bytes, scales, from)
  local columns, n = bytes:size(1), bytes:size(2)
  local plain_bytes = layout.experts.take_rows(bytes:reshape { n * columns, BLOCK }, from.blocks)
  local words = plain_bytes:as("i32", { n, columns * BLOCK / 4 })
  local groups = columns * BLOCK * 2 / GROUP
  local plain = layout.marlin.unswizzle_blockscale(scales:reshape { n, math.ceil(groups / 4) * 4 }, n, groups)
  return layout.experts.flip_int4(words), layout.experts.take_rows(plain, from.rows)
end

--- unpack(bytes, scales, gated) -> words i32 [N,K/8], scales bf16 [N,K/32] of one expert [K/256,N,128]: the inverse,
-- gate before up.
function M.unpack(bytes, scales, gated)
  return unpack_expert(bytes, scales, inverse_orders(bytes:size(2), bytes:size(1), gated))
end

--- check(x, L): errors that name the tensor whose dtype the kernel doesn't take. (CTM-WNA16-14)
function M.check(x, L)
  local wanted = { { "x", x, "bf16" }, { "w13_weight_packed", L:get "w13_weight_packed", "u8" },
    { "w13_weight_scale", L:get "w13_weight_scale", "bf16" }, { "w2_weight_packed", L:get "w2_weight_packed", "u8" },
    { "w2_weight_scale", L:get "w2_weight_scale", "bf16" } }
  for _, w in ipairs(wanted) do
    if w[2] and w[2]:type() ~= w[3] then
      error(("layer %s: %s must be %s for MXINT4, found %s"):format(L.name, w[1], w[3], w[2]:type()), 3)
    end
  end
end

-- Expert e's weight strip by strip, out of the kernel's form.
local function product(L, w, from, e, x)
  local words, s = unpack_expert(L:get(w .. "_weight_packed")[e + 1], L:get(w .. "_weight_scale")[e + 1], from)
  local n, k = words:size(1), words:size(2) * 8
  return common.product(x, n, k, 1, function(out, a, b)
    nffi.must(nffi.C.nb_dequantize(out, layout.ct.unpack(words:rows(a, b), 4, k), s:rows(a, b), nil, nil, 4))
  end)
end

--- products(L) -> w13 and w2 for moe.forward, read from the processed bytes.
function M.products(L)
  local out = {}
  for _, w in ipairs { "w13", "w2" } do
    local bytes = L:get(w .. "_weight_packed")
    local from = inverse_orders(bytes:size(3), bytes:size(2), w == "w13")
    out[w] = function(e, x) return product(L, w, from, e, x) end
  end
  return out
end

return M
