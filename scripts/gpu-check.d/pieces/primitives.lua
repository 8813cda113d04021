-- The primitives of cuda/ptx.cuh, whose assembly the emulator never sees: the device against the emulator, to
-- the bit but for exp2_near. A case's name has the primitives that it shows.
local ffi = require "ffi"
local cuda = require "nibble.cuda"
local tensor = require "nibble.tensor"
local checkpoint = require "nibble.checkpoint"
local data = require "data"

-- The list in cuda/kernels/primitives.cu, each with what its operands are: any bits, or numbers; and whether it is near alone.
local NUMBERS = { { "float_of_f16", "i32" }, { "float_of_bf16", "i32" }, { "f16_pair", "i32" }, { "bf16_pair", "i32" }, { "mul_rn", "f32" },
  { "fma_rn", "f32" }, { "fma_f16x2", "f16" }, { "fma_bf16x2", "bf16" }, { "lop3, and-or", "i32" }, { "lop3, xor", "i32" },
  { "pick_bytes", "i32" }, { "count_ones", "i32" }, { "mul_rn, f64", "i32" }, { "f16_pair_of_e4m3", "i32" },
  { "pick_signs", "i32" }, { "max_s16x2", "i32" }, { "max_u16x2", "i32" }, { "exp2_near", "f32", near = true } }

-- Words that rounding and overflow hang on: f32, and pairs of f16 and bf16; of any bits also what is no number.
local EDGES = {
  f32 = { 0, 0x80000000, 1, 0x80000001, 0x007fffff, 0x00800000, 0x3f7fffff, 0x3f800001, 0x34000000, 0xb3ffffff, 0x7e800000 },
  f16 = { 0x80000000, 0x00018001, 0x03ff0400, 0x3c003bff, 0x7bff0001, 0x10001400, 0x3c013c00 },
  bf16 = { 0x80000000, 0x00018001, 0x007f0080, 0x3f803f7f, 0x7f7f0001, 0x34003400, 0x3f813f80 },
}
EDGES.i32 = { 0x7f800000, 0xff800000, 0x7fc00000, 0xffffffff, 0x7f800001, 0x477fefff, 0x477ff000, 0x477fffff, 0x38800000, 0x387fffff,
  0x33000000, 0x33000001, 0x3f801000, 0x3f803000, 0x3f808000, 0x3f818000, 0x7f7fffff, 0x7c007bff, 0xfc01fe00, 0x7f807f7f }
for _, kind in ipairs { "f32", "f16", "bf16" } do
  for _, word in ipairs(EDGES[kind]) do table.insert(EDGES.i32, word) end
end

-- Operands a, b, c: random, before them each edge with each other; of any bits also every half once.
local function number_inputs(ctx, name, kind)
  local count, edges = ctx.small and 8192 or 1048576, EDGES[kind]
  local t = data.random(kind, { kind:match "16" and 6 or 3, count }, ctx.seed, name):as("i32", { 3, count })
  local p, n = t:ptr(), #edges
  for i = 0, 2 * n * n - 1 do
    local across = math.floor(i / n)
    p[i], p[count + i] = bit.tobit(edges[i % n + 1]), bit.tobit(edges[across % n + 1])
    p[2 * count + i] = bit.tobit(edges[(i + across) % n + 1])
  end
  if kind == "i32" and not ctx.small then
    for i = 0, 65535 do p[100000 + i] = i * 65537 end
  end
  return t, count
end

-- The tensor cores' products in the order of primitives.cu: numbers in a word, and the dtype of one.
local MMA = { { "mma_f16", 2, "f16" }, { "mma_bf16", 2, "bf16" }, { "mma_s8", 4, "i8" }, { "mma_e4m3", 4, "f8_e4m3" } }

-- A product's operands as nb_primitive_mma takes them: whole numbers, whose sums are exact in any order.
local function whole_numbers(ctx, name, per, dtype, blocks)
  local n = blocks * 32
  local codes, t = data.random("u8", { n * (8 * per + 8) }, ctx.seed, name), tensor.new("i32", { n * 16 })
  local numbers, sum, c = tensor.new("f32", { per }), tensor.new("f32", { 1 }), codes:ptr()
  local at = 0
  local function random(range)
    at = at + 1
    return c[at - 1] % range - range / 2
  end
  for i = 0, n - 1 do
    for j = 0, 7 do
      for k = 1, per do numbers:set(k, random(dtype == "i8" and 256 or 16)) end
      t:ptr()[i * 16 + j] = numbers:cast(dtype):as("i32", { 1 }):ptr()[0]
      sum:set(1, random(256))
      t:ptr()[i * 16 + 8 + j] = (dtype == "i8" and sum:cast "i32" or sum:as("i32", { 1 })):ptr()[0]
    end
  end
  return t
end

-- The kernel's `words` results on the device and in the emulator. more: arguments behind the output.
local function both(kernel, launch, input, words, more)
  local emulator = require "spec.support.emulator"
  local expected = tensor.new("i32", { words })
  local from, to = emulator.memory(input), emulator.memory(expected)
  local extra = {}
  for i, v in ipairs(more) do extra[i] = ffi.istype(tensor.type, v) and emulator.memory(v) or v end
  local wrong = emulator.run(kernel, launch, from, to, unpack(extra))
  if wrong then error("the emulator refuses it: " .. wrong, 0) end
  emulator.read(to, expected)

  local arguments = { assert(cuda.to(input, "cuda")), assert(cuda.new("cuda", "i32", { words })), grid = launch.grid, block = launch.block,
                      shared_bytes = launch.shared }
  for i, v in ipairs(more) do arguments[2 + i] = ffi.istype(tensor.type, v) and assert(cuda.to(v, "cuda")) or v end
  assert(cuda.launch(kernel, arguments))
  return assert(arguments[2]:to "cpu"), expected
end

-- Of two floats, each of them within 2 places of 2^-22: the first pair further apart, told, or nil.
local function apart(found, expected)
  local a, b = found:as("f32"):ptr(), expected:as("f32"):ptr()
  for i = 0, found:numel() - 1 do
    local near = a[i] == b[i] or math.abs(a[i] - b[i]) <= math.max(2 ^ -20 * math.abs(b[i]), 2 ^ -126) or a[i] ~= a[i] and b[i] ~= b[i]
    if not near then return ("number %d is %.9g, expected %.9g"):format(i + 1, a[i], b[i]) end
  end
end

local function compare(name, kernel, launch, inputs, near)
  return { name = "primitives: " .. name, run = function(ctx)
    if not checkpoint.exists(ctx.build .. "/libcuemu.so") then
      return { status = "skipped", why = "build/libcuemu.so is not here: make build/libcuemu.so" }
    end
    local input, words, more = inputs(ctx)
    local why = (near and apart or data.difference)(both(kernel, launch, input, words, more or {}))
    if why then error(why, 0) end
    return { elements = words }
  end }
end

local function correctness()
  local cases = {}
  local function add(...) cases[#cases + 1] = compare(...) end
  for i, primitive in ipairs(NUMBERS) do
    add(primitive[1], "nb_primitive_numbers", { grid = 4, block = 256 }, function(ctx)
      local t, count = number_inputs(ctx, primitive[1], primitive[2])
      return t, count, { count, i - 1 }
    end, primitive.near)
  end
  add("cp_async16, cp_async16_if, cp_async16_once, stream_once, cp_async_commit, cp_async_wait, ldmatrix_x4, ldmatrix_x4_turned, "
    .. "shuffle_xor", "nb_primitive_tile", { grid = 16, block = 32, shared = 512 },
    function(ctx) return data.random("i32", { 16 * 128 }, ctx.seed, "tile"), 16 * 256 end)
  add("shuffle_from, match_any, shuffle_xor_f64", "nb_primitive_lanes", { grid = 64, block = 32 }, function(ctx)
    return data.random("i32", { 64 * 32 }, ctx.seed, "lanes"), 64 * 128
  end)
  for i, mma in ipairs(MMA) do
    add(mma[1], "nb_primitive_mma", { grid = 16, block = 32 }, function(ctx)
      return whole_numbers(ctx, mma[1], mma[2], mma[3], 16), 16 * 32 * 8, { i - 1 }
    end)
  end
  add("load_acquire, add_release", "nb_primitive_turns", { grid = 64, block = 32 }, function(ctx)
    return data.random("i32", { 64 }, ctx.seed, "turns"), 64, { tensor.new("i32", { 1 }) }
  end)
  add("add_in_turn, load_far, atomic_max", "nb_primitive_last", { grid = 64, block = 32, shared = 128 }, function(ctx)
    return data.random("f32", { 64 * 128 }, ctx.seed, "last"), 132, { tensor.new("f32", { 64 * 128 }), tensor.new("i32", { 1 }) }
  end)
  return cases
end

return { correctness = correctness }
