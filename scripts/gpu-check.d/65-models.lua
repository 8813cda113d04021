-- Whole models: their losses against the CPU's, and how many tokens a second they take.
local bars = require "bars"
local pieces = require "pieces"

return {
  title = "whole models",
  seconds = 110, emulated_seconds = 30,
  cases = function(ctx) return pieces.collect("models", ctx) end,
  finish = function(ctx, rows)
    dofile(ctx.root .. "/scripts/gpu-check.d/pieces/models.lua").removed(ctx)
    bars.judge(rows)
  end,
}
