-- The kernels through NVIDIA's compiler, where it is: for one GPU, in a few minutes; `make cuda-check` does all of them.
local nvcc = io.popen("command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null"):read "*l"

describe("kernels for GPUs", function()
  local it = nvcc and it or pending

  it("compile without a warning or a spill, and take no more instructions than their budget", function()
    local p = io.popen("ls cuda/kernels/*.cu | CUDA_TARGETS=sm_90a xargs -P 2 -n 1 scripts/cuda-check 2>&1; echo status $?")
    local out = p:read "*a"
    p:close()
    assert.equal("status 0", out:match "status %d+", out)
    assert.matches("product.cu sm_90a: nb_product_f16_w4_m16, %d+ registers", out)
  end)
end)
