-- LuaJIT; busted's words in spec/; lines as in C's files, a little longer where they are long sentences.
std = "luajit"
max_line_length = 140 -- 110 is the aim
codes = true
exclude_files = { "build" }
ignore = { "581" } -- not (x <= y) is not x > y: NaN
files["spec"] = { std = "+busted", max_line_length = 155 }
files["recipes"] = { globals = { "recipe" } }
