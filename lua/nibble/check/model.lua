-- check.model: the modules that an architecture's own description means, with their sizes: the same calls that run it
-- (nibble.models) are listened to.
local decoder = require "nibble.models.decoder"

local M = {}

local Listener = {}
Listener.__index = Listener

function Listener:put(name, n, k, biased)
  local m = { name = name, n = n, k = k, biased = biased or false }
  local at = self.count + 1
  self.count, self.list[at], self.by[name] = at, m, m
end

function Listener:norm(name) self:put(name, self.c.hidden) end
function Listener:residual() return self end

function Listener:attention(prefix, o)
  local c = self.c
  local q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
  self:put(prefix .. ".q_proj", q, c.hidden, o.qkv_bias)
  self:put(prefix .. ".k_proj", kv, c.hidden, o.qkv_bias)
  self:put(prefix .. ".v_proj", kv, c.hidden, o.qkv_bias)
  self:put(prefix .. ".o_proj", c.hidden, q, o.o_bias)
  if o.qk_norm then
    self:put(prefix .. ".q_norm", c.head_dim)
    self:put(prefix .. ".k_norm", c.head_dim)
  end
end

function Listener:mlp(prefix, names, intermediate, biased)
  local hidden = self.c.hidden
  self:put(prefix .. "." .. names[1], intermediate, hidden, biased)
  self:put(prefix .. "." .. names[2], intermediate, hidden, biased)
  self:put(prefix .. "." .. names[3], hidden, intermediate, biased)
end

function Listener:experts(prefix, o)
  self:put(prefix .. ".gate", o.count, self.c.hidden)
  for e = 0, o.count - 1 do self:mlp(prefix .. ".experts." .. e, o.names, o.intermediate) end
end

--- model.expected(arch, checkpoint) -> {list = {{name, n, k | nil, biased}, …}, by = name -> entry, c = the config's numbers}
-- | nil, msg, code: where config.json doesn't say enough. A vector has no k.
function M.expected(arch, ck)
  local c, msg, code = decoder.config(arch, ck)
  if not c then return nil, msg, code end
  if c.layers > 10000 then return nil, ("config.json: %d layers"):format(c.layers), "eunsupported" end
  local f = setmetatable({ list = {}, by = {}, count = 0, c = c }, Listener)
  f:put(arch.embedding, c.vocab, c.hidden)
  for i = 0, c.layers - 1 do arch.layer(f, i) end
  f:norm(arch.final_norm)
  local tied = c.get "tie_word_embeddings"
  if tied ~= true then
    f:put(arch.lm_head, c.vocab, c.hidden)
    f.list[f.count].optional = tied == nil
  end
  return { list = f.list, by = f.by, c = c }
end

return M
