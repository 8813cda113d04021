-- Writes the fuzz driver's seed inputs into a folder: one per reader and kind.
local ffi = require "ffi"
local dir = arg[1]
local count = 0

local function seed(kind, text)
  count = count + 1
  local f = assert(io.open(("%s/seed-%02d"):format(dir, count), "wb"))
  f:write(string.char(kind, 0), text)
  f:close()
end

local function slurp(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read "*a"
  f:close()
  return text
end

local function safetensors(header, bytes)
  return ffi.string(ffi.new("uint64_t[1]", #header), 8) .. header .. ("\1"):rep(bytes)
end

seed(0, safetensors('{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},'
  .. '"b\\u00e9":{"dtype":"BF16","shape":[],"data_offsets":[16,18]}}  ', 18))
seed(0, safetensors('{"x":{"dtype":"F4","shape":[2],"data_offsets":[0,1]},"y":{"dtype":"I64","shape":[0,3],"data_offsets":[1,1]},'
  .. '"z":{"more":[1,{}],"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', 2))
seed(0, safetensors("{}", 0))
seed(1, '{"metadata":{"total_size":2},"weight_map":{"a":"s"}}')
seed(1, '{"metadata":{"total_size":"x","n":[1]},"weight_map":{"a":"s","b":"s"},"c":null}')
seed(2, '{"a":[1,-2.5e3,"\\ud83d\\ude00\\u0000\\n",true,false,null],"b":{},"c":[]}')
seed(2, slurp "spec/models/tiny-llama/config.json")
seed(2, "\239\187\191[[[[1e5]]]]")
seed(3, "")
seed(3, "0123456789abcdef a line\n")
