"""Others' kernels on this GPU, timed as nibble's are: torch's bf16 product, its int4 and fp8 products, and Marlin's own
where --dir holds a library that has it (vLLM's _C.abi3.so, or any other that gives torch an operator of that name).

    python3 baselines.py ceilings|benchmarks [--dir DIR] FROM

Prints a line of JSON for each event, as scripts/gpu-check.d/children.lua says: the cases from number FROM on."""
import argparse
import json
import pathlib
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
    x = torch.randn(m, k, dtype=torch.bfloat16, device="cuda")
    codes = torch.randint(0, 255, (n, k // 2), dtype=torch.uint8, device="cuda")
    scales = torch.rand(k // 128, n, 2, dtype=torch.bfloat16, device="cuda")
    packed = torch._convert_weight_to_int4pack(codes, 8)
    weights = [packed.clone() for _ in range(copies_of(n * k // 2))]
    return timed(torch, [lambda w=w: torch._weight_int4pack_mm(x, w, 128, scales) for w in weights])


def torch_fp8(torch, m, k, n, options):
    x = torch.randn(m, k, device="cuda").to(torch.float8_e4m3fn)
    one = torch.ones((), device="cuda")
    weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16).to(torch.float8_e4m3fn) for _ in range(copies_of(n * k))]
    return timed(torch, [lambda w=w: torch._scaled_mm(x, w.t(), one, one, out_dtype=torch.bfloat16) for w in weights])


def torch_fp8_rows(torch, m, k, n, options):
    x = torch.randn(m, k, device="cuda").to(torch.float8_e4m3fn)
    of_x, of_w = torch.ones(m, 1, device="cuda"), torch.ones(1, n, device="cuda")
    weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16).to(torch.float8_e4m3fn) for _ in range(copies_of(n * k))]
    return timed(torch, [lambda w=w: torch._scaled_mm(x, w.t(), of_x, of_w, out_dtype=torch.bfloat16) for w in weights])


MARLIN_NAMES = ("gptq_marlin_gemm", "marlin_gemm")
UINT4B8 = 4 << 8 | 8 << 17 | 1 << 50  # vLLM's number of this type: 4 bits, bias 8, NaN as in IEEE 754


def marlin_operator(torch, folder):
    """The operator and its schema, out of the libraries in a folder."""
    problems = []
    for library in sorted(pathlib.Path(folder).rglob("*.so")):
        try:
            torch.ops.load_library(str(library))
        except OSError as why:
            problems.append(str(why))
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        if name in MARLIN_NAMES and any(a.name == "size_m" for a in schema.arguments):
            return getattr(getattr(torch.ops, namespace), name), schema
    raise Skip(f"{folder} has no library with Marlin's operator: {'; '.join(problems)[:300]}")


def marlin(torch, m, k, n, options):
    """Its versions differ in their arguments: they are given by name."""
    operator, schema = marlin_operator(torch, options.dir)
    device = {"device": "cuda"}
    x = torch.randn(m, k, dtype=torch.bfloat16, **device)
    words = torch.randint(-(2**31), 2**31 - 1, (k // 16, n * 2), dtype=torch.int32, **device)
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    none = torch.empty(0, dtype=torch.int32, **device)
    given = {
        "a": x,
        "b_scales": torch.rand(k // 128, n, dtype=torch.bfloat16, **device),
        "workspace": torch.zeros(4 * multiprocessors, dtype=torch.int32, **device),
        "b_q_type": UINT4B8,
        "b_q_type_id": UINT4B8,
        "b_type_id": UINT4B8,
        "num_bits": 4,
        "size_m": m,
        "size_n": n,
        "size_k": k,
        "is_k_full": True,
        "has_zp": False,
        "use_atomic_add": False,
        "use_fp32_reduce": True,
        "is_zp_float": False,
    }

    def value(argument):
        if argument.name in given:
            return given[argument.name]
        return None if "Optional" in str(argument.type) else none

    def call(weight):
        return operator(*(weight if a.name == "b_q_weight" else value(a) for a in schema.arguments))

    weights = [words.clone() for _ in range(copies_of(n * k // 2))]
    return timed(torch, [lambda w=w: call(w) for w in weights])


BASELINES = {  # and the most tokens that each is for
    "torch bf16": (torch_bf16, 4096),
    "torch int4pack": (torch_int4, 128),
    "torch fp8": (torch_fp8, 4096),
    "torch fp8 rows": (torch_fp8_rows, 4096),
    "marlin": (marlin, 4096),
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
            for name, (run, most) in BASELINES.items():
                if m > most or run is marlin and not options.dir:
                    continue
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
