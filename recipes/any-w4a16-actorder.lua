-- Any architecture: 4-bit weights in groups of 64, the columns with the largest inputs grouped together.
-- Set the text: nibble run any-w4a16-actorder MODEL --out DIR --set calibrate.text=calib.txt
local r = recipe "any-w4a16"
r.name = "any-w4a16-actorder"
r.actorder, r.group = "group", 64
r.calibrate = { samples = 128, length = 256, seed = 7 }
return r
