-- Any architecture: NVFP4 weights and activations; the activations' global scales from calibration text.
-- Set the text: nibble run any-nvfp4 MODEL --out DIR --set calibrate.text=calib.txt
local r = recipe "any-w4a16"
r.name = "any-nvfp4"
r.scheme, r.group = "NVFP4", nil
r.calibrate = { samples = 128, length = 256, seed = 7 }
return r
