-- The primitives of cuda/ptx.cuh, whose assembly the emulator never sees: the device against the emulator, to the bit.
local ffi = require "ffi"
local cuda = require "nibble.cuda"
local tensor = require "nibble.tensor"
local checkpoint = require "nibble.checkpoint"
local data = require "data"

-- As the list in cuda/kernels/primitives.cu.
local NUMBERS = { "float_of_f16", "float_of_bf16", "f16_pair", "bf16_pair" }

-- Bit patterns that rounding, overflow and special numbers hang on, of f32 and of pairs of f16 and bf16.
local EDGES = { 0, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffffffff, 0x7f800001, 1, 0x80000001, 0x007fffff, 0x00800000,
  0x477fefff, 0x477ff000, 0x477fffff, 0x38800000, 0x387fffff, 0x33000000, 0x33000001, 0x3f801000, 0x3f803000, 0x3f808000, 0x3f818000,
  0x7f7fffff, 0x7c007bff, 0xfc01fe00, 0x04000001, 0x83ff0400, 0x7f807f7f, 0x00010080 }

-- Each of the 65,536 halves once, and each edge beside each other, in random words.
local function number_inputs(ctx, name)
  local count = ctx.small and 8192 or 1048576
  local t = data.random("i32", { 3, count }, ctx.seed, name)
  local p, n = t:ptr(), #EDGES
  for i = 0, 2 * n * n - 1 do
    p[i], p[count + i], p[2 * count + i] = bit.tobit(EDGES[i % n + 1]), bit.tobit(EDGES[math.floor(i / n) % n + 1]),
      bit.tobit(EDGES[(i + math.floor(i / n)) % n + 1])
  end
  if not ctx.small then
    for i = 0, 65535 do p[100000 + i] = i * 65537 end
  end
  return t, count
end

-- The kernel's `words` results on the device and in the emulator. more: arguments behind the output.
local function both(kernel, launch, input, words, more)
  local emulator = require "spec.support.emulator"
  local expected = tensor.new("i32", { words })
  local from, to = emulator.memory(input), emulator.memory(words * 4)
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

local function compare(name, kernel, launch, inputs)
  return { name = "primitives: " .. name, run = function(ctx)
    if not checkpoint.exists(ctx.build .. "/libcuemu.so") then
      return { status = "skipped", why = "build/libcuemu.so is not here: make build/libcuemu.so" }
    end
    local input, words, more = inputs(ctx)
    local why = data.difference(both(kernel, launch, input, words, more))
    if why then error(why, 0) end
    return { elements = words }
  end }
end

local function correctness()
  local cases = {}
  for i, name in ipairs(NUMBERS) do
    cases[i] = compare(name, "nb_primitive_numbers", { grid = 4, block = 256 }, function(ctx)
      local t, count = number_inputs(ctx, name)
      return t, count, { count, i - 1 }
    end)
  end
  cases[#cases + 1] = compare("cp_async16, ldmatrix_x4", "nb_primitive_tile", { grid = 16, block = 32, shared = 512 }, function(ctx)
    return data.random("i32", { 16 * 128 }, ctx.seed, "tile"), 16 * 128, {}
  end)
  cases[#cases + 1] = compare("load_acquire, add_release", "nb_primitive_turns", { grid = 64, block = 32 }, function(ctx)
    return data.random("i32", { 64 }, ctx.seed, "turns"), 64, { tensor.new("i32", { 1 }) }
  end)
  return cases
end

return { correctness = correctness }
