-- doctor: what this machine offers to nibble: instruction sets, threads, memory,
-- libraries, devices; for what is missing, what that means and what to do.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local C = nffi.C

local M = {}

local sets = { "AVX2", "AVX512", "AVX512_VNNI", "AVX512_BF16", "AVX512_VBMI", "AMX" }

-- The first of the shared libraries `names` that loads, or nil and the loader's reason.
local function library(names)
  local why
  for _, name in ipairs(names) do
    local ok, lib = pcall(ffi.load, name)
    if ok then return name, lib end
    why = why or lib
  end
  return nil, (tostring(why):gsub("\n.*", ""))
end

local function memory()
  local out = {}
  local f = io.open("/proc/meminfo", "r")
  if not f then return out end
  for name, kib in f:read("*a"):gmatch "(%w+):%s+(%d+) kB" do
    if name == "MemTotal" then out.total_bytes = tonumber(kib) * 1024 end
    if name == "MemAvailable" then out.available_bytes = tonumber(kib) * 1024 end
  end
  f:close()
  return out
end

local function instruction_sets()
  local out, found, used = {}, C.nb_cpu_detected(), C.nb_cpu()
  for i, name in ipairs(sets) do
    local flag = C["NB_CPU_" .. name]
    out[i] = {
      name = name:lower():gsub("_", "-"), found = bit.band(found, flag) ~= 0, used = bit.band(used, flag) ~= 0,
    }
  end
  return out
end

-- The CUDA driver and its devices, without beginning to use one.
local function cuda()
  local devices, msg = require("nibble.cuda").devices()
  local kernels, without = require("nibble.cuda").kernels()
  if not devices then return { available = false, why = msg, devices = {}, kernels = kernels, no_kernels = without } end
  local available, why = require("nibble.cuda").available()
  local blas, no_blas = require("nibble.cuda").cublaslt()
  return { available = available, why = why, devices = devices, driver = devices[1].driver,
    kernels = kernels, no_kernels = without, cublaslt = blas, no_cublaslt = no_blas }
end

--- doctor.examine() -> report: version, cpu {name, threads, sets}, memory (bytes),
-- libraries {name, found, why}, cuda {available, why, devices (as cuda.devices()), driver, kernels, no_kernels,
-- cublaslt, no_cublaslt}.
function M.examine()
  local libraries = {}
  for i, want in ipairs {
    { "OpenBLAS", { "libopenblas.so.0", "openblas" }, "matrix products and factorizations" },
    { "libedit", { "libedit.so.2", "edit" }, "line editing in the session; without it lines are read plainly" },
  } do
    local name, why = library(want[2])
    libraries[i] = { name = want[1], found = name ~= nil, file = name, use = want[3], why = not name and why or nil }
  end
  return {
    version = nffi.version, luajit = jit.version, jit = (jit.status()), system = jit.os .. " " .. jit.arch,
    cpu = { name = (ffi.string(C.nb_cpu_name()):gsub("%s+$", "")), threads = C.nb_threads(), sets = instruction_sets() },
    memory = memory(), libraries = libraries, cuda = cuda(),
  }
end

local function set_state(s)
  if s.used then return "yes" end
  return s.found and "found, not used (limited by NB_CPU)" or "no"
end

--- doctor.text(report) -> the report as a table.
function M.text(r)
  local units = require "nibble.units"
  local rows = {
    { "nibble", r.version .. ", " .. r.luajit .. (r.jit and "" or " (JIT off)") .. ", " .. r.system },
    { "processor", r.cpu.name }, { "threads", tostring(r.cpu.threads) },
  }
  for _, s in ipairs(r.cpu.sets) do rows[#rows + 1] = { "  " .. s.name, set_state(s) } end
  if r.memory.total_bytes then
    rows[#rows + 1] = {
      "memory",
      ("%s, %s available"):format(units.bytes(r.memory.total_bytes), units.bytes(r.memory.available_bytes or 0)),
    }
  end
  for _, lib in ipairs(r.libraries) do
    rows[#rows + 1] = { lib.name, lib.found and "yes, " .. lib.file or ("no: %s; for %s"):format(lib.why, lib.use) }
  end
  rows[#rows + 1] = { "CUDA driver", r.cuda.driver and "yes, for CUDA " .. r.cuda.driver or "no: " .. r.cuda.why }
  for _, d in ipairs(r.cuda.devices) do
    rows[#rows + 1] = {
      "  " .. d.name, d.usable and ("%s, sm_%d, %s"):format(d.model, d.sm, units.bytes(d.bytes)) or "no: " .. d.why,
    }
  end
  rows[#rows + 1] = { "CUDA kernels", r.cuda.kernels and "yes, " .. r.cuda.kernels or "no: " .. r.cuda.no_kernels }
  if r.cuda.driver then
    rows[#rows + 1] = { "cuBLASLt", r.cuda.cublaslt and "yes, " .. r.cuda.cublaslt or
      ("no: %s; for products of many rows, which go slower without it"):format(r.cuda.no_cublaslt) }
  end
  return require("nibble.show").columns(rows, "ll")
end

return M
