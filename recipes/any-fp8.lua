-- Any architecture: FP8 weights and activations with one scale a tensor; the activations' from calibration text.
-- Set the text: nibble run any-fp8 MODEL --out DIR --set calibrate.text=calib.txt
local r = recipe "any-w4a16"
r.name = "any-fp8"
r.scheme, r.group = "FP8", nil
r.calibrate = { samples = 128, length = 256, seed = 7 }
return r
