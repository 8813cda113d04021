-- The streaming writer: layout, shards, resume, failures of the system.
local nb = require "nibble"
local ffi = require "ffi"
local C = require("nibble.ffi").C
local files = require "spec.support.files"
local checkpoint = nb.checkpoint

local dir
before_each(function() dir = files.temporary() .. "/out" end)
after_each(function() files.remove(dir:match "^(.*)/out$") end)

local function u8(shape, first)
  local t = nb.tensor("u8", shape)
  local p = t:ptr()
  for i = 0, t:numel() - 1 do p[i] = (first + i) % 251 end
  return t
end

local three = {
  { name = "b", dtype = "u8", shape = { 10, 10 } },
  { name = "a", dtype = "bf16", shape = { 3 } },
  { name = 'quo"te\\\n', dtype = "f32", shape = {} },
}

local function write_three(options)
  options.dir, options.tensors = dir, three
  local w = assert(checkpoint.writer(options))
  assert(w:put("b", u8({ 4, 10 }, 60), 7))
  assert(w:put("b", u8({ 6, 10 }, 0)))
  assert(w:put("a", nb.tensor("bf16", { 3 })))
  assert(w:put('quo"te\\\n', nb.tensor("f32", {}, { 1.5 })))
  return w
end

describe("writer", function()
  it("writes one file that the reader takes, in the given order, data at a multiple of 8", function()
    local w = write_three {}
    assert.same({ "model.safetensors" }, w.files)
    assert.same({ "model.safetensors.partial" }, checkpoint.list(dir))
    assert(w:finish())
    assert.same({ "model.safetensors" }, checkpoint.list(dir))
    local ck = assert(nb.open(dir))
    assert.same({ format = "pt" }, ck.metadata)
    assert.equal("b", ck.tensors[1].name)
    assert.equal("a", ck.tensors[2].name)
    assert.equal(0, ck.tensors[1].begin % 8)
    assert.is_true(ck:tensor("b"):equal(u8({ 10, 10 }, 0)))
    assert.equal(1.5, ck:tensor('quo"te\\\n'):get(1))
    local text = files.read(dir .. "/model.safetensors")
    assert.equal('{"__metadata__":{"format":"pt"},"b":{"dtype":"U8","shape":[10,10],"data_offsets":[0,100]},'
      .. '"a":{"dtype":"BF16","shape":[3],"data_offsets":[100,106]},'
      .. '"quo\\"te\\\\\\u000a":{"dtype":"F32","shape":[],"data_offsets":[106,110]}}', (text:sub(9):match "^(.-}}) *"))
  end)

  it("splits into shards before the tensor that would pass the limit, with an index", function()
    local tensors = {}
    for i = 1, 7 do tensors[i] = { name = "t" .. i, dtype = "u8", shape = { i == 4 and 250 or 40 } } end
    local w = assert(checkpoint.writer { dir = dir, tensors = tensors, shard_bytes = 100 })
    for i = 1, 7 do assert(w:put("t" .. i, u8({ i == 4 and 250 or 40 }, i))) end
    assert.equal("model-00003-of-00005.safetensors", w:file_of "t4") -- larger than the limit: alone
    assert(w:finish())
    local ck = assert(nb.open(dir))
    assert.equal(5, #ck.files)
    assert.same({}, ck.warnings)
    for i = 1, 7 do assert.is_true(ck:tensor("t" .. i):equal(u8({ i == 4 and 250 or 40 }, i))) end
    assert.equal("model-00002-of-00005.safetensors", ck:info("t3").file)
    local index = files.read(dir .. "/model.safetensors.index.json")
    assert.matches('^{\n  "metadata": {\n    "total_size": 490\n  },\n  "weight_map": {\n    "t1": "model%-00001', index)
    assert.matches("}\n$", index)
  end)

  it("writes the same bytes whatever the order of the blocks", function()
    assert(write_three({}):finish())
    local first = files.read(dir .. "/model.safetensors")
    assert(os.remove(dir .. "/model.safetensors"))
    local w = assert(checkpoint.writer { dir = dir, tensors = three })
    assert(w:put('quo"te\\\n', nb.tensor("f32", {}, { 1.5 })))
    assert(w:put("a", nb.tensor("bf16", { 3 })))
    assert(w:put("b", u8({ 10, 10 }, 0)))
    assert(w:finish())
    assert.equal(first, files.read(dir .. "/model.safetensors"))
  end)

  describe("repack", function()
    local names = { "awq", "ct", "gptq" }

    local function awq_words(k, n)
      local t, x = nb.tensor("i32", { k, n / 8 }), k * n
      local p = ffi.cast("uint32_t *", t.data)
      for i = 0, t:numel() - 1 do
        x = (x * 1103515245 + 12345) % 2147483648
        p[i] = x * 2
      end
      return t
    end

    -- The same weight in three formats; hash of each by another road.
    local function three_of(k, n)
      local awq = awq_words(k, n)
      local of = { awq = awq, ct = nb.layout.awq_to_ct(awq), gptq = nb.layout.awq_to_gptq(awq, 4) }
      local tensors = {}
      for i, name in ipairs(names) do tensors[i] = { name = name, dtype = "i32", shape = of[name]:size() } end
      return of, tensors
    end

    after_each(function()
      C.nb_debug_damage_write(0)
      C.nb_cpu_limit(-1)
      C.nb_threads_set(0)
    end)

    it("writes what the whole repack makes and hashes what the file holds", function()
      local hex = ffi.new "char[33]"
      for _, s in ipairs { { 128, 2048 }, { 72, 1544 }, { 2056, 1032 }, { 4096, 1024 }, { 8, 8 } } do -- strips and rests
        local of, tensors = three_of(s[1], s[2])
        for _, features in ipairs { 0, -1 } do
          for threads = 1, 2 do
            C.nb_cpu_limit(features)
            C.nb_threads_set(threads)
            for _, from in ipairs(names) do
              local w = assert(checkpoint.writer { dir = dir, tensors = tensors })
              for _, to in ipairs(names) do
                if from == to then assert(w:put(to, of[to]))
                else
                  local hash, proven = w:repack(to, of[from], C["NB_" .. from:upper() .. "_TO_" .. to:upper()]):result()
                  assert.is_true(proven)
                  assert.equal(0, C.nb_tensor_hash(hex, of[to]))
                  assert.equal(ffi.string(hex), hash)
                end
              end
              assert(w:finish())
              local ck = assert(nb.open(dir))
              for _, to in ipairs(names) do assert.is_true(ck:tensor(to):equal(of[to])) end
              files.remove(dir)
            end
          end
        end
      end
    end)

    it("says so where the file holds something else", function()
      local of, tensors = three_of(2056, 2048)
      for nth = 1, 3 do -- several writes of up to 256 KiB
        local w = assert(checkpoint.writer { dir = dir, tensors = tensors })
        C.nb_debug_damage_write(nth)
        local hash, proven = w:repack("ct", of.awq, C.NB_AWQ_TO_CT):result()
        assert.is_false(proven)
        assert.is_string(hash)
        assert.is_false(w:tensor("ct"):equal(of.ct))
        hash, proven = w:repack("ct", of.awq, C.NB_AWQ_TO_CT):result()
        assert.is_true(proven, hash)
        assert(w:abort())
      end
    end)

    it("goes on beside the caller, gives results in any order, and keeps the source alive", function()
      local of, tensors = three_of(2056, 2048)
      local w = assert(checkpoint.writer { dir = dir, tensors = tensors })
      local first = w:repack("ct", of.awq:clone(), C.NB_AWQ_TO_CT)
      collectgarbage()
      collectgarbage() -- the clone is the writer's now
      local second = w:repack("gptq", of.awq, C.NB_AWQ_TO_GPTQ)
      local third = w:repack("awq", of.ct, C.NB_CT_TO_AWQ)
      assert.error_matches(function() w:finish() end, "0 of the 2105344 bytes of tensor awq were put")
      for _, r in ipairs { second, first, third, second } do
        local hash, proven = r:result()
        assert.is_true(proven, hash)
      end
      assert(w:finish())
      local ck = assert(nb.open(dir))
      for _, name in ipairs(names) do assert.is_true(ck:tensor(name):equal(of[name])) end
    end)

    it("refuses words of another size or name, stops when asked, and gives its memory back", function()
      local of, tensors = three_of(2056, 2048)
      collectgarbage()
      collectgarbage()
      local before = tonumber(C.nb_live_bytes())
      local w = assert(checkpoint.writer { dir = dir, tensors = tensors })
      local ok, msg = pcall(w.repack, w, "ct", nb.tensor("i32", { 256, 63 }), C.NB_AWQ_TO_CT)
      assert.is_false(ok)
      assert.matches("writer: ct: expected as many words as in i32 %[2048x257%], found i32 %[256x63%]", msg)
      assert.error_matches(function() w:repack("other", of.awq, C.NB_AWQ_TO_CT) end, "other was not announced")
      local wrong = w:repack("ct", of.awq, C.NB_AWQ_TO_GPTQ)
      assert.error_matches(function() wrong:result() end, "awq to gptq: expected")
      C.nb_stop_request()
      local stopped = w:repack("ct", of.awq, C.NB_AWQ_TO_CT)
      ok, msg = pcall(stopped.result, stopped)
      C.nb_stop_clear()
      assert.is_false(ok)
      assert.matches("interrupted", msg)
      w:repack("ct", of.awq, C.NB_AWQ_TO_CT) -- not waited for
      assert(w:abort())
      collectgarbage()
      collectgarbage()
      assert.is_true(tonumber(C.nb_live_bytes()) <= before)
    end)
  end)

  it("shows what was written so far", function()
    local w = write_three {}
    assert(w:flush())
    assert.is_true(w:tensor("b"):equal(u8({ 10, 10 }, 0)))
    assert(w:abort())
    assert.same({}, checkpoint.list(dir))
    assert.error_matches(function() w:put("b", u8({ 10, 10 }, 0)) end, "finished or aborted")
  end)

  it("retains buffers that the caller has dropped, and gives them back", function()
    local before = tonumber(C.nb_live_bytes())
    local w = assert(checkpoint.writer { dir = dir, tensors = { { name = "x", dtype = "u8", shape = { 130, 1000000 } } } })
    for row = 1, 130, 10 do
      local t = nb.tensor("u8", { 10, 1000000 })
      ffi.fill(t.data, t:bytes(), row % 250)
      assert(w:put("x", t, row))
      t:free()
      assert.is_true(tonumber(C.nb_live_bytes()) - before <= (64 + 20) * 2 ^ 20) -- the queue is bounded
    end
    assert(w:finish())
    assert.equal(before, tonumber(C.nb_live_bytes()))
    local x = assert(nb.open(dir)):tensor "x"
    for row = 1, 130, 10 do
      assert.equal(row % 250, x:get((row - 1) * 1000000 + 1))
      assert.equal(row % 250, x:get((row + 9) * 1000000))
    end
  end)

  it("takes mapped tensors as they lie in another checkpoint", function()
    local source = assert(nb.open "spec/models/parity/qwen3-moe-sharded")
    local w = assert(checkpoint.writer { dir = dir, tensors = source.tensors, metadata = source.metadata, shard_bytes = 100000 })
    for _, t in ipairs(source.tensors) do assert(w:put(t.name, source:tensor(t.name))) end
    assert(w:finish())
    local copy = assert(nb.open(dir))
    assert.is_true(#copy.files > 2)
    assert.equal(source.count, copy.count)
    for _, t in ipairs(source.tensors) do assert.is_true(copy:tensor(t.name):equal(source:tensor(t.name))) end
  end)

  it("gives the same bytes when it is killed again and again (kill -9), by its journal", function()
    files.write(dir .. ".lua", ([=[
      package.path = "lua/?.lua;lua/?/init.lua;" .. package.path
      local nb = require "nibble"
      local ffi = require "ffi"
      ffi.cdef "int kill(int, int); int getpid(void);"
      local dir, steps = %q, tonumber(arg[1])
      local tensors = {}
      for i = 1, 6 do tensors[i] = { name = "t" .. i, dtype = "u8", shape = { 8, 3000 } } end
      assert(nb.checkpoint.mkdir(dir))
      local j = assert(nb.checkpoint.journal(dir .. "/journal"))
      local w = assert(nb.checkpoint.writer { dir = dir, tensors = tensors, shard_bytes = 60000, resume = #j.lines > 0 })
      local done = {}
      for _, line in ipairs(j.lines) do done[line] = true end
      for i = 1, 6 do
        for row = 1, 8, 2 do
          local key = i .. " " .. row
          if not (done[key] and w:kept("t" .. i)) then
            local t = nb.tensor("u8", { 2, 3000 })
            ffi.fill(t.data, 6000, i * 20 + row)
            assert(w:put("t" .. i, t, row))
            assert(w:flush())
            assert(j:append(key))
            steps = steps - 1
            if steps == 0 then ffi.C.kill(ffi.C.getpid(), 9) end
          end
        end
      end
      assert(w:finish())
      assert(j:remove())]=]):format(dir))
    local function run(steps) return os.execute(("luajit %s.lua %d 2>/dev/null"):format(dir, steps)) end
    local function contents()
      local all = {}
      for _, name in ipairs(checkpoint.list(dir)) do all[name] = files.read(dir .. "/" .. name) end
      return all
    end
    run(1000)
    local whole = contents()
    assert.is_string(whole["model-00003-of-00003.safetensors"])
    files.remove(dir)
    for i = 1, 9 do run(1 + i % 4) end
    run(1000)
    assert.same(whole, contents())
    assert(os.remove(dir .. ".lua"))
  end)

  it("goes on in the partial files of an interrupted run", function()
    write_three({}):finish()
    local whole = files.read(dir .. "/model.safetensors")
    assert(os.remove(dir .. "/model.safetensors"))
    local w = assert(checkpoint.writer { dir = dir, tensors = three, resume = true })
    assert.is_false(w.resumed) -- nothing was there
    assert(w:put("b", u8({ 10, 10 }, 0)))
    w:close()
    w = assert(checkpoint.writer { dir = dir, tensors = three, resume = true })
    assert.is_true(w.resumed)
    assert.is_true(w:kept "b")
    assert(w:put("a", nb.tensor("bf16", { 3 })))
    assert(w:put('quo"te\\\n', nb.tensor("f32", {}, { 1.5 })))
    assert(w:finish())
    assert.equal(whole, files.read(dir .. "/model.safetensors"))
  end)

  it("goes on when it was killed between two renames, or before the index", function()
    local tensors = { { name = "x", dtype = "u8", shape = { 10 } }, { name = "y", dtype = "u8", shape = { 10 } } }
    local function writer() return assert(checkpoint.writer { dir = dir, tensors = tensors, shard_bytes = 10, resume = true }) end
    local w = writer()
    assert(w:put("x", u8({ 10 }, 1)))
    assert(w:put("y", u8({ 10 }, 2)))
    assert(w:finish())
    assert(os.rename(dir .. "/model-00002-of-00002.safetensors", dir .. "/model-00002-of-00002.safetensors.partial"))
    w = writer()
    assert.is_true(w.resumed)
    assert.is_nil(checkpoint.exists(dir .. "/model.safetensors.index.json"))
    assert(w:finish())
    assert.is_true(assert(nb.open(dir)):tensor("x"):equal(u8({ 10 }, 1)))
  end)

  it("starts a file anew when another plan left it", function()
    local function writer(dtype) -- headers of the same length, files of the same size
      return assert(checkpoint.writer { dir = dir, tensors = { { name = "x", dtype = dtype, shape = { 4 } } }, resume = true })
    end
    local w = writer "f32"
    assert(w:put("x", nb.tensor("f32", { 4 }, { 1, 2, 3, 4 })))
    w:close()
    w = writer "i32"
    assert.is_false(w.resumed)
    assert.same({ 0, 0, 0, 0 }, w:tensor("x"):totable())
    assert(w:abort())
  end)

  it("never overwrites a checkpoint", function()
    assert(write_three({}):finish())
    for _, options in ipairs { { shard_bytes = 50 }, { shard_bytes = 1e9 }, { shard_bytes = 50, resume = true } } do
      options.dir, options.tensors = dir, three
      local w, msg, code = checkpoint.writer(options)
      assert.is_nil(w)
      assert.equal("eio", code)
      assert.matches("/out already holds model.safetensors; choose another folder", msg)
    end
    local w, msg = checkpoint.writer { dir = dir, tensors = { { name = "z", dtype = "u8", shape = { 1 } } }, resume = true }
    assert.is_nil(w)
    assert.matches("already holds model.safetensors", msg)
    assert.same({ "model.safetensors" }, checkpoint.list(dir))
  end)

  it("refuses mistakes with the numbers", function()
    local function writer(t, o) return function()
      o = o or {}
      o.dir, o.tensors = dir, { t }
      checkpoint.writer(o)
    end end
    assert.error_matches(writer { name = "x", dtype = "u4", shape = { 2 } }, "safetensors has no dtype u4; pack it into u8 or i32")
    assert.error_matches(writer { name = "x", dtype = "u3", shape = { 2 } }, 'unknown dtype "u3"')
    assert.error_matches(writer { name = "__metadata__", dtype = "u8", shape = { 2 } }, "no tensor may be called __metadata__")
    assert.error_matches(writer { name = "x\255", dtype = "u8", shape = { 2 } }, "is not valid UTF%-8")
    assert.error_matches(writer({ name = "x", dtype = "u8", shape = { 2 } }, { shard_bytes = 0 }), "shard_bytes is 0")
    assert.error_matches(writer({ name = "x", dtype = "u8", shape = { 2 } }, { shard = 1 }), 'unknown option "shard"')
    assert.error_matches(writer({ name = "x", dtype = "u8", shape = { 2 } }, { metadata = { a = 1 } }), "metadata.a must be a string")
    assert.error_matches(function()
      checkpoint.writer { dir = dir, tensors = { three[1], three[1] } }
    end, "tensor b was told twice")
    local w = assert(checkpoint.writer { dir = dir, tensors = three })
    assert.error_matches(function() w:put("c", u8({ 1 }, 0)) end, "tensor c was not announced")
    assert.error_matches(function() w:put("b", u8({ 10 }, 0)) end, "b: expected rows of u8 %[10x10%], found u8 %[10%]")
    assert.error_matches(function() w:put("b", u8({ 2, 10 }, 0), 10) end, "b: rows 10 to 11 lie outside its 10 rows")
    assert(w:put("b", u8({ 9, 10 }, 0)))
    assert.error_matches(function() w:finish() end, "90 of the 100 bytes of tensor b were put; nothing may be missing")
    assert(w:abort())
  end)

  it("says that a folder cannot be written", function()
    files.write(dir, "a file")
    local w, msg, code = checkpoint.writer { dir = dir, tensors = three }
    assert.is_nil(w)
    assert.equal("eio", code)
    assert.matches("cannot make the folder .*/out: a file of that name is there", msg)
    assert(os.remove(dir))
    assert(checkpoint.mkdir(dir))
  end)

  it("says how many bytes are needed where a disk is full", function()
    local w, msg, code = checkpoint.writer { dir = dir, tensors = { { name = "x", dtype = "u8", shape = { 2 ^ 30, 2 ^ 23 } } } }
    assert.is_nil(w)
    assert.equal("eio", code)
    assert.matches("cannot reserve 9007199254741%d+ bytes for .*/out/model.safetensors.partial %(%d+ bytes are free there%)", msg)
    assert.same({}, checkpoint.list(dir))
  end)

  -- A limit of 64 KiB a file in a process of its own: the system's refusal
  -- instead of SIGXFSZ.
  local function limited(code)
    files.write(dir .. ".lua", ([[
      package.path = "lua/?.lua;lua/?/init.lua;" .. package.path
      local nb = require "nibble"
      local dir = %q
      %s]]):format(dir, code))
    local p = io.popen(("ulimit -f 64; luajit %s 2>&1"):format(dir .. ".lua"))
    local text = p:read "*a"
    p:close()
    assert(os.remove(dir .. ".lua"))
    return text
  end

  it("turns a file size limit into a sentence", function()
    local text = limited [[
      print(nb.checkpoint.writer { dir = dir, tensors = { { name = "x", dtype = "u8", shape = { 1000000 } } } })
      print(#nb.checkpoint.list(dir))]]
    assert.matches("nil\tcannot reserve 1000104 bytes for .*File too large\teio\n0\n", text)
  end)

  it("shows a failure of the background thread in a next call, stays failed, and keeps the partial file", function()
    local text = limited [[
      local ffi = require "ffi"
      ffi.cdef "int setrlimit(int, const uint64_t *);"
      local w = assert(nb.checkpoint.writer { dir = dir, tensors = { { name = "x", dtype = "u8", shape = { 3, 10000 } } } })
      assert(w:put("x", nb.tensor("u8", { 1, 10000 })))
      assert(w:flush())
      assert(ffi.C.setrlimit(1, ffi.new("uint64_t[2]", 8192, 8192)) == 0) -- RLIMIT_FSIZE from now on
      w:put("x", nb.tensor("u8", { 1, 10000 }), 2)
      print(w:flush())
      print((w:put("x", nb.tensor("u8", { 1, 10000 }), 3)))
      print(w:finish())
      w:close()
      print(nb.checkpoint.list(dir)[1])]]
    assert.matches("^nil\tcannot write .*/model.safetensors.partial %(10000 bytes at 10104%): File too large\teio\n", text)
    assert.matches("\nnil\nnil\tcannot write [^\n]*File too large\teio\nmodel.safetensors.partial\n$", text)
  end)

  it("survives failed allocations", function()
    local failures = 0
    for n = 1, 80 do
      local t = u8({ 10, 10 }, 0)
      C.nb_debug_fail_alloc(n)
      local ok, w, msg = pcall(checkpoint.writer, { dir = dir, tensors = three })
      if ok and w then
        local done, put, why = pcall(w.put, w, "b", t)
        if done and not put then
          failures = failures + 1
          assert.matches("out of memory", why)
        end
        C.nb_debug_fail_alloc(0)
        assert(w:abort())
      else
        failures = failures + 1
        assert.matches("out of memory", ok and msg or w)
      end
    end
    C.nb_debug_fail_alloc(0)
    assert.is_true(failures > 15)
  end)
end)

describe("files", function()
  it("are written whole or not at all, and copied byte for byte", function()
    assert(checkpoint.mkdir(dir .. "/deep/er"))
    assert(checkpoint.mkdir(dir .. "/deep/er"))
    assert(checkpoint.write_file(dir .. "/deep/a", "one\0two"))
    assert(checkpoint.copy_file(dir .. "/deep/a", dir .. "/deep/er/b"))
    assert.equal("one\0two", files.read(dir .. "/deep/er/b"))
    assert.same({ "a", "er/" }, checkpoint.list(dir .. "/deep"))
    assert(checkpoint.copy_file("spec/models/tiny-llama/tokenizer.json", dir .. "/t"))
    assert.equal(files.read "spec/models/tiny-llama/tokenizer.json", files.read(dir .. "/t"))
    assert.equal("dir", checkpoint.exists(dir))
    assert.is_nil(checkpoint.exists(dir .. "/nothing"))
    assert(checkpoint.remove_file(dir .. "/nothing"))
  end)

  it("name what the system refused", function()
    assert(checkpoint.mkdir(dir))
    local function why(ok, msg, code)
      assert.is_nil(ok)
      assert.equal("eio", code)
      return msg
    end
    assert.matches("cannot create .*/nothing/a.partial: No such file", why(checkpoint.write_file(dir .. "/nothing/a", "x")))
    assert.matches("cannot open .*/nothing: No such file", why(checkpoint.copy_file(dir .. "/nothing", dir .. "/b")))
    assert.matches("is not a regular file", why(checkpoint.copy_file(dir, dir .. "/b")))
    assert.matches("cannot list the folder .*/nothing: No such file", why(checkpoint.list(dir .. "/nothing")))
    assert.matches("cannot read .*/nothing: No such file", why(checkpoint.read_file(dir .. "/nothing")))
    assert.matches("cannot rename", why(checkpoint.write_file(dir, "x")))
  end)
end)
