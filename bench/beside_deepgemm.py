"""The MoE layer's products beside DeepGEMM with what has to go with its two, and beside dense products, in turns in one process.

    beside_deepgemm.py [--tokens 8192,...] [--shape NAME,...] [--rounds 11]

Needs a Hopper GPU, torch, triton, deep_gemm (pip: sgl-deep-gemm) and the moefuse package (MOEFUSE_LIBRARY and MOEFUSE_CUDA_LIBRARY name its libraries where no wheel
is installed).  Everybody runs from a captured graph over two layers of weights; a turn is six replays, of which the last four are timed, so that clocks
are those that the work itself brings about; the order changes every round; medians.  Sorting is left out of DeepGEMM's time, not of ours.  Results are compared first."""
import argparse
import random
import statistics
import sys

import torch
import triton
import triton.language as tl

import deep_gemm
import moefuse

LAYERS = 2
SHAPES = {  # H, I, routed experts, top_k, shared experts, weights
    "v3-tp8": (7168, 256, 256, 8, 1, "fp8"),
    "qwen3-30b": (2048, 768, 128, 8, 0, "bf16"),
    "v2-lite": (2048, 1408, 64, 6, 2, "bf16"),
    "glm-air-tp2": (4096, 704, 128, 8, 1, "bf16"),
}


@triton.jit
def scatter_codes(x, place, codes, scales, H, scale_stride, C: tl.constexpr, G: tl.constexpr):
    """A token's row quantised in groups of 128, written to each of its places."""
    t = tl.program_id(0).to(tl.int64)
    group, column = tl.arange(0, G), tl.arange(0, 128)
    inside = group < H // 128
    at = group[:, None] * 128 + column[None, :]
    v = tl.load(x + t * H + at, mask=inside[:, None], other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(v), 1), 1e-10) / 448.0
    q = (v / scale[:, None]).to(tl.float8e4nv)
    for c in range(C):
        p = tl.load(place + t * C + c).to(tl.int64)
        tl.store(codes + p * H + at, q, mask=inside[:, None])
        tl.store(scales + group * scale_stride + p, scale, mask=inside)


@triton.jit
def scatter_rows(x, place, rows, H, C: tl.constexpr, B: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, B)
    v = tl.load(x + t * H + at, mask=at < H)
    for c in range(C):
        p = tl.load(place + t * C + c).to(tl.int64)
        tl.store(rows + p * H + at, v, mask=at < H)


@triton.jit
def silu_rows(h, out, slot, width, B: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    if tl.load(slot + r) >= 0:
        at = tl.arange(0, B)
        gate = tl.load(h + r * 2 * width + at, mask=at < width).to(tl.float32)
        up = tl.load(h + r * 2 * width + width + at, mask=at < width).to(tl.float32)
        tl.store(out + r * width + at, gate * tl.sigmoid(gate) * up, mask=at < width)


@triton.jit
def silu_codes(h, codes, scales, slot, width, scale_stride, G: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    if tl.load(slot + r) >= 0:
        group, column = tl.arange(0, G), tl.arange(0, 128)
        at = group[:, None] * 128 + column[None, :]
        gate = tl.load(h + r * 2 * width + at).to(tl.float32)
        up = tl.load(h + r * 2 * width + width + at).to(tl.float32)
        v = gate * tl.sigmoid(gate) * up
        scale = tl.maximum(tl.max(tl.abs(v), 1), 1e-10) / 448.0
        tl.store(codes + r * width + at, (v / scale[:, None]).to(tl.float8e4nv))
        tl.store(scales + group * scale_stride + r, scale)


@triton.jit
def combine(y, place, weight, out, H, C: tl.constexpr, B: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * B + tl.arange(0, B)
    total = tl.zeros([B], tl.float32)
    for c in range(C):
        p = tl.load(place + t * C + c).to(tl.int64)
        total += tl.load(weight + t * C + c) * tl.load(y + p * H + at, mask=at < H, other=0.0).to(tl.float32)
    tl.store(out + t * H + at, total, mask=at < H)


class Layer:
    """One layer's weights and routing, and what DeepGEMM wants of them."""

    def __init__(self, shape, tokens, x):
        self.H, self.I, self.E, top_k, shared, self.form = shape
        self.C, self.shared, slots, self.x = top_k + shared, shared, self.E + shared, x
        fp8 = self.form == "fp8"
        random_weight = lambda *s: (torch.randn(*s, device="cuda", dtype=torch.bfloat16) * (1.0 if fp8 else 0.02)).to(
            torch.float8_e4m3fn if fp8 else torch.bfloat16)
        self.w13, self.w2 = random_weight(slots, 2 * self.I, self.H), random_weight(slots, self.H, self.I)
        self.s13 = torch.rand(slots, 2 * self.I // 128, self.H // 128, device="cuda") * 0.02 if fp8 else None
        self.s2 = torch.rand(slots, self.H // 128, self.I // 128, device="cuda") * 0.02 if fp8 else None
        ids = torch.rand(tokens, self.E, device="cuda").topk(top_k, 1).indices.int()
        if shared:
            ids = torch.cat([ids, torch.arange(self.E, slots, device="cuda", dtype=torch.int32).repeat(tokens, 1)], 1)
        self.ids, self.weights = ids.contiguous(), torch.rand(tokens, self.C, device="cuda")
        self.out = torch.empty(tokens, self.H, device="cuda", dtype=torch.bfloat16)
        flat = self.ids.flatten().long()
        count = torch.bincount(flat, minlength=slots)
        room = (count + 127) // 128 * 128
        first, before = torch.cumsum(room, 0) - room, torch.cumsum(count, 0) - count
        order = torch.argsort(flat, stable=True)
        self.place = torch.empty_like(flat, dtype=torch.int32)
        self.place[order] = (first[flat[order]] + torch.arange(flat.numel(), device="cuda") - before[flat[order]]).int()
        self.M = int(room.sum())
        self.slot = torch.full((self.M,), -1, device="cuda", dtype=torch.int32)
        self.slot[self.place.long()] = flat.int()

    def moefuse(self):
        options = dict(w1_scale=self.s13, w2_scale=self.s2, block_shape=[128, 128], act_quant="w8a8") if self.form == "fp8" else {}
        return moefuse.fused_experts(self.x, self.w13, self.w2, self.weights, self.ids, num_shared_columns=self.shared, **options)

    def deepgemm(self, room, only_products=False):
        H, I, M, T = self.H, self.I, self.M, self.x.shape[0]
        a, h, b, y = room["a"][:M], room["h"][:M], room["b"][:M], room["y"][:M]
        if self.form == "fp8":
            sa, sb = room["sa"].t()[:M], room["sb"].t()[:M]
            if not only_products:
                scatter_codes[(T,)](self.x, self.place, a, sa, H, sa.stride(1), self.C, triton.next_power_of_2(H // 128), num_warps=8)
            deep_gemm.m_grouped_fp8_gemm_nt_contiguous((a, sa), (self.w13, self.s13), h, self.slot)
            if not only_products:
                silu_codes[(M,)](h, b, sb, self.slot, I, sb.stride(1), I // 128, num_warps=1)
            deep_gemm.m_grouped_fp8_gemm_nt_contiguous((b, sb), (self.w2, self.s2), y, self.slot)
        else:
            if not only_products:
                scatter_rows[(T,)](self.x, self.place, a, H, self.C, triton.next_power_of_2(H), num_warps=4)
            deep_gemm.m_grouped_bf16_gemm_nt_contiguous(a, self.w13, h, self.slot)
            if not only_products:
                silu_rows[(M,)](h, b, self.slot, I, triton.next_power_of_2(I), num_warps=4)
            deep_gemm.m_grouped_bf16_gemm_nt_contiguous(b, self.w2, y, self.slot)
        if not only_products:
            combine[(T, triton.cdiv(H, 1024))](y, self.place, self.weights, self.out, H, self.C, 1024, num_warps=4)
        return self.out


def rooms(layers):
    first, M = layers[0], max(layer.M for layer in layers)
    fp8 = first.form == "fp8"
    code = torch.float8_e4m3fn if fp8 else torch.bfloat16
    tall = (M + 3) // 4 * 4
    make = lambda *s, dtype=torch.bfloat16: torch.zeros(*s, device="cuda", dtype=dtype)
    return {"a": make(M, first.H, dtype=code), "h": make(M, 2 * first.I), "b": make(M, first.I, dtype=code), "y": make(M, first.H),
            "sa": make(max(first.H // 128, 1), tall, dtype=torch.float32), "sb": make(max(first.I // 128, 1), tall, dtype=torch.float32)}


def graph_of(call):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def turn(graph, replays=6, timed=4):
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for i in range(replays):
        if i == replays - timed:
            start.record()
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / timed


def in_turns(graphs, rounds):
    times = {name: [] for name in graphs}
    for _ in range(rounds):
        names = list(graphs)
        random.shuffle(names)
        for name in names:
            times[name].append(turn(graphs[name]))
    return {name: statistics.median(t) for name, t in times.items()}


def dense(form, flops):
    """A dense product of the same operations: what the GPU's library makes of them at the clocks that its power allows."""
    n, k = 8192, 8192
    m = max(int(flops / 2 / n / k) // 256 * 256, 256)
    a, b = torch.randn(m, k, device="cuda", dtype=torch.bfloat16), torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
    done = 2.0 * m * n * k
    if form == "bf16":
        return (lambda: a @ b.t()), done
    a, b, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn), torch.ones((), device="cuda")
    return (lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16)), done


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", default="8192")
    parser.add_argument("--shape", default=",".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    torch.manual_seed(0)
    for name in options.shape.split(","):
        for tokens in map(int, options.tokens.split(",")):
            shape = SHAPES[name]
            x = torch.randn(tokens, shape[0], device="cuda", dtype=torch.bfloat16)
            layers = [Layer(shape, tokens, x) for _ in range(LAYERS)]
            room = rooms(layers)
            ours, theirs = layers[0].moefuse().float(), layers[0].deepgemm(room).float()
            apart = float((ours - theirs).norm() / theirs.norm())
            if not apart < 0.05:
                sys.exit(f"{name}, {tokens} tokens: results differ by {apart:.3f} of their norm; expected less than 0.05")
            flops = 6.0 * tokens * layers[0].C * shape[0] * shape[1]
            product, done = dense(shape[5], flops * LAYERS)
            graphs = {"moefuse": graph_of(lambda: [layer.moefuse() for layer in layers]),
                      "deepgemm": graph_of(lambda: [layer.deepgemm(room) for layer in layers]),
                      "its products alone": graph_of(lambda: [layer.deepgemm(room, True) for layer in layers]),
                      "dense": graph_of(product), **extra(name, shape, tokens, layers)}
            us = {who: t / LAYERS for who, t in in_turns(graphs, options.rounds).items()}
            us["dense"] *= LAYERS * flops / done
            print(f"{name} {shape[5]} T {tokens}: " + ", ".join(f"{who} {t:.1f} us ({flops / t * 1e-6:.0f} TFLOP/s)" for who, t in us.items()) +
                  f"; results {apart:.4f} apart", flush=True)
            del graphs, layers, room
            torch.cuda.empty_cache()


def extra(name, shape, tokens, layers):
    """Further graphs to take turns with; for whoever imports this."""
    return {}


if __name__ == "__main__":
    main()
