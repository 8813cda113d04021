"""Others' kernels on this GPU, timed as nibble's are: torch's bf16 product, its int4 and fp8 products, a Triton W4A16
kernel, Marlin's own where --dir holds a module that has it.

    python3 baselines.py ceilings|benchmarks [--dir DIR] FROM

Prints a line of JSON for each event, as scripts/gpu-check.d/children.lua says: the cases from number FROM on."""
import argparse
import json
import sys
import time

ROTATED_BYTES = 512 << 20  # as timing.lua
SHAPES = [(8192, 28672), (4096, 14336)]  # k, n
TOKENS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096]


def say(event):
    print(json.dumps(event), flush=True)


class Skip(Exception):
    """Why a baseline cannot run here."""


def median(values):
    return sorted(values)[len(values) // 2]


def graph_seconds(torch, calls, reps=10):
    """Seconds of one call: a CUDA graph of all calls, each on its own copy of the weights."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(reps):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / len(calls))
    del graph
    return median(times)


def bench_seconds(torch, call, reps=30):
    """Seconds of one call as triton's do_bench takes them: the caches are overwritten before each."""
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    for _ in range(3):
        call()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(reps)]
    for begin, end in events:
        flush.zero_()
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return median([b.elapsed_time(e) / 1e3 for b, e in events])


def copies_of(nbytes):
    return max(2, -(-ROTATED_BYTES // nbytes))


def timed(torch, calls):
    return {"seconds_each": graph_seconds(torch, calls), "do_bench_seconds": bench_seconds(torch, calls[0])}


def torch_bf16(torch, m, k, n, options):
    x = torch.randn(m, k, dtype=torch.bfloat16, device="cuda")
    weights = [torch.randn(n, k, dtype=torch.bfloat16, device="cuda") for _ in range(copies_of(2 * n * k))]
    return timed(torch, [lambda w=w: torch.nn.functional.linear(x, w) for w in weights])


def torch_int4(torch, m, k, n, options):
    if m > 128:
        raise Skip("it is for few tokens; left out above 128")
    x = torch.randn(m, k, dtype=torch.bfloat16, device="cuda")
    codes = torch.randint(0, 255, (n, k // 2), dtype=torch.uint8, device="cuda")
    scales = torch.rand(k // 128, n, 2, dtype=torch.bfloat16, device="cuda")
    packed = torch._convert_weight_to_int4pack(codes, 8)
    weights = [packed.clone() for _ in range(copies_of(n * k // 2))]
    return timed(torch, [lambda w=w: torch._weight_int4pack_mm(x, w, 128, scales) for w in weights])


def torch_fp8(torch, m, k, n, options):
    rows = max(m, 16)  # cuBLASLt takes no fewer
    x = torch.randn(rows, k, device="cuda").to(torch.float8_e4m3fn)
    one = torch.ones((), device="cuda")
    weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16).to(torch.float8_e4m3fn) for _ in range(copies_of(n * k))]
    return timed(torch, [lambda w=w: torch._scaled_mm(x, w.t(), one, one, out_dtype=torch.bfloat16) for w in weights])


def triton_w4a16(torch, m, k, n, options):
    """A plain W4A16 kernel in Triton, as one would write it: [n, k/8] words, groups of 128."""
    if m > 128:
        raise Skip("written for few tokens; left out above 128")
    try:
        from triton_w4a16 import matmul
    except ImportError as missing:
        raise Skip(f"triton cannot be had: {missing}") from missing
    x = torch.randn(m, k, dtype=torch.bfloat16, device="cuda")
    words = torch.randint(-(2**31), 2**31 - 1, (k // 8, n), dtype=torch.int32, device="cuda")
    scales = torch.rand(k // 128, n, dtype=torch.bfloat16, device="cuda")
    weights = [words.clone() for _ in range(copies_of(n * k // 2))]
    return timed(torch, [lambda w=w: matmul(x, w, scales) for w in weights])


def marlin(torch, m, k, n, options):
    """Marlin through DIR/marlin_baseline.py: make(m, k, n, dtype) -> function of a copy's number that multiplies once."""
    if not options.dir:
        raise Skip("--baselines names no folder with Marlin's kernel")
    sys.path.insert(0, options.dir)
    try:
        from marlin_baseline import make
    except ImportError as missing:
        raise Skip(f"{options.dir} has no marlin_baseline.py that loads: {missing}") from missing
    count = copies_of(n * k // 2)
    call = make(m=m, k=k, n=n, group=128, copies=count)
    return timed(torch, [lambda i=i: call(i) for i in range(count)])


BASELINES = {
    "torch bf16": torch_bf16,
    "torch int4pack": torch_int4,
    "torch fp8": torch_fp8,
    "triton w4a16": triton_w4a16,
    "marlin": marlin,
}


def ceiling(torch):
    """The bf16 product of 8192 x 8192 x 8192."""
    n = 8192
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    seconds = graph_seconds(torch, [lambda: a @ b] * 4, reps=7)
    return {"seconds_each": seconds, "flops": 2 * n**3, "tflops": 2 * n**3 / seconds / 1e12}


def versions():
    """What the baselines are made of."""
    out = {"python": sys.version.split()[0]}
    for name in ("torch", "triton"):
        try:
            out[name] = __import__(name).__version__
        except ImportError as missing:
            out[name] = str(missing)
    return out


def cases(options):
    if options.what == "ceilings":
        yield "baselines' versions", lambda torch: versions()
        yield "bf16 product 8192x8192x8192", ceiling
        return
    for k, n in SHAPES:
        for m in TOKENS:
            for name, run in BASELINES.items():
                shape = {"baseline": name, "m": m, "k": k, "n": n, "flops": 2 * m * k * n}
                yield f"{name} {k}x{n} m={m}", lambda torch, run=run, shape=shape: {
                    **run(torch, shape["m"], shape["k"], shape["n"], options),
                    **shape,
                }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["ceilings", "benchmarks"])
    parser.add_argument("--dir")
    parser.add_argument("first", type=int)
    options = parser.parse_args()
    try:
        import torch

        missing = None if torch.cuda.is_available() else "torch finds no GPU"
    except ImportError as error:
        torch, missing = None, f"torch cannot be had: {error}"
    todo = list(cases(options))
    if missing:
        todo = [(f"torch's {options.what}", None)]
    say({"cases": len(todo)})
    for number, (name, run) in enumerate(todo, 1):
        if number < options.first:
            continue
        say({"begin": number, "name": name})
        begin = time.monotonic()
        try:
            row = run(torch) if run else {"status": "skipped", "why": missing}
        except Skip as why:
            row = {"status": "skipped", "why": str(why)}
        except Exception as why:  # another kernel that fails is no failure of nibble's
            row = {"status": "skipped", "why": f"{type(why).__name__}: {why}".split("\n")[0]}
        row.update(name=name, seconds=time.monotonic() - begin)
        say({"row": row})
        if "CUDA error" in row.get("why", ""):
            sys.exit(3)  # nothing works in this process any more: the next one goes on
        if torch is not None and not missing:
            torch.cuda.empty_cache()


main()
