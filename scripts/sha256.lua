-- sha256: of a tensor's bytes, for checking against hashes that other tools wrote.
local ffi = require "ffi"
local bit = require "bit"
local band, bnot, bxor, ror, rshift, bswap, tobit = bit.band, bit.bnot, bit.bxor, bit.ror, bit.rshift, bit.bswap,
  bit.tobit

-- The first 32 bits of the fractions of the n first primes' roots.
local function root_bits(n, power)
  local out, found, candidate = ffi.new("int32_t[?]", n), 0, 2
  while found < n do
    local prime = true
    for d = 2, math.floor(math.sqrt(candidate)) do
      if candidate % d == 0 then prime = false end
    end
    if prime then
      local root = candidate ^ power
      out[found] = tobit(math.floor((root - math.floor(root)) * 2 ^ 32))
      found = found + 1
    end
    candidate = candidate + 1
  end
  return out
end

local K, H0 = root_bits(64, 1 / 3), root_bits(8, 1 / 2)

local function block(h, w, words)
  for i = 0, 15 do w[i] = bswap(words[i]) end
  for i = 16, 63 do
    local a, b = w[i - 15], w[i - 2]
    w[i] = tobit(w[i - 16] + bxor(ror(a, 7), ror(a, 18), rshift(a, 3)) + w[i - 7]
      + bxor(ror(b, 17), ror(b, 19), rshift(b, 10)))
  end
  local a, b, c, d, e, f, g, k = h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]
  for i = 0, 63 do
    local t = tobit(k + bxor(ror(e, 6), ror(e, 11), ror(e, 25)) + bxor(band(e, f), band(bnot(e), g)) + K[i] + w[i])
    local u = tobit(bxor(ror(a, 2), ror(a, 13), ror(a, 22)) + bxor(band(a, b), band(a, c), band(b, c)))
    k, g, f, e, d, c, b, a = g, f, e, tobit(d + t), c, b, a, tobit(t + u)
  end
  local add = { a, b, c, d, e, f, g, k }
  for i = 0, 7 do h[i] = tobit(h[i] + add[i + 1]) end
end

--- sha256(data, bytes) -> 64 hex digits; data: a pointer.
return function(data, bytes)
  local h, w = ffi.new "int32_t[8]", ffi.new "int32_t[64]"
  ffi.copy(h, H0, 32)
  local p = ffi.cast("const uint8_t *", data)
  local whole = math.floor(bytes / 64)
  for i = 0, whole - 1 do block(h, w, ffi.cast("const int32_t *", p + i * 64)) end
  local rest = bytes - whole * 64
  local blocks = rest < 56 and 1 or 2
  local tail = ffi.new "uint8_t[128]"
  ffi.copy(tail, p + whole * 64, rest)
  tail[rest] = 0x80
  for i = 0, 7 do tail[blocks * 64 - 1 - i] = math.floor(bytes * 8 / 256 ^ i) % 256 end
  for i = 0, blocks - 1 do block(h, w, ffi.cast("const int32_t *", tail + i * 64)) end
  local hex = {}
  for i = 0, 7 do hex[i + 1] = bit.tohex(h[i]) end
  return table.concat(hex)
end
