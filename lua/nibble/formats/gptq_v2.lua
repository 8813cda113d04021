-- formats.gptq_v2: GPTQ files that store zero-points as they are; see formats.gptq.
return require("nibble.formats.gptq").v2
