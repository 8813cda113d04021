-- The table of what was found, as the README would show it.
return {
  title = "table",
  seconds = 5,
  run = function(ctx)
    local stage = require("results").stage
    if not stage(ctx.document, "benchmarks") and not stage(ctx.document, "models") then
      return { status = "skipped", why = "no benchmarks ran" }
    end
    io.write(require("readme_table").table_of(ctx.document))
  end,
}
