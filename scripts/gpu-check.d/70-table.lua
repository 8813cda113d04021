-- The table of what was found, as the README would show it.
return {
  title = "table",
  seconds = 5,
  run = function(ctx)
    if not require("results").stage(ctx.document, "benchmarks") then return { status = "skipped", why = "no benchmarks ran" } end
    io.write(require("readme_table").table_of(ctx.document))
  end,
}
