"""The Python package on the peers' published grids, against plain torch, on the CPU and, where there is one, a CUDA device,
whose ids, weights, alignments and sums must be the CPU's, bit for bit.

    ops_test.py [cpu] [cuda]"""
import concurrent.futures
import gc
import itertools
import pathlib
import sys

import torch

import moefuse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from tap import claim, counts, plan  # noqa: E402

DEVICE = "cpu"


def as_on_cpu(call, found, *inputs):
    """Whether the same call on the CPU gives the same bits."""
    if DEVICE == "cpu":
        return True
    expected = call(*(t.cpu() if isinstance(t, torch.Tensor) else t for t in inputs))
    return all(torch.equal(f.cpu(), e) for f, e in zip(found, expected))


def normal(*shape, seed, dtype=torch.float32, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=g) * scale).to(dtype).to(DEVICE)


# ---- plain torch ----------------------------------------------------------------------------------------------------


def gate_reference(logits, bias, groups, topk_group, topk, shared, factor, on_output):
    """SGLang's biased_grouped_topk in float64; ties go to the lower id, so none may be near."""
    scores = logits.double().sigmoid()
    keys = scores + bias.double()
    rows, experts = scores.shape
    best = keys.view(rows, groups, -1).topk(2, dim=-1).values.sum(-1)
    kept = torch.zeros_like(best).scatter_(1, best.topk(topk_group, dim=-1).indices, 1).bool()
    keys = keys.masked_fill(~kept.unsqueeze(-1).expand(-1, -1, experts // groups).reshape(rows, experts), float("-inf"))
    ids = keys.topk(topk - shared, dim=-1).indices
    weights = scores.gather(1, ids)
    weights = weights / weights.sum(-1, keepdim=True) * (factor if on_output else 1.0)
    if shared:
        more = torch.arange(experts, experts + shared, device=ids.device).expand(rows, -1)
        ids = torch.cat([ids, more], 1)
        weights = torch.cat([weights, torch.full((rows, shared), 1.0 if on_output else 1 / factor, dtype=torch.float64, device=ids.device)], 1)
    return weights, ids


def same_choice(weights, ids, expected_weights, expected_ids):
    """Ids as sets: two scores within f32's rounding of each other may change places."""
    order, expected_order = ids.argsort(1), expected_ids.argsort(1)
    rows_equal = (ids.gather(1, order).long() == expected_ids.gather(1, expected_order)).all(1)
    a, b = weights.gather(1, order).double()[rows_equal], expected_weights.gather(1, expected_order)[rows_equal]
    return rows_equal.float().mean().item(), (a - b).abs().max().item() if a.numel() else 0.0


def silu_mlp(x, w1, w2):
    gate, up = (x.double() @ w1.double().T).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up) @ w2.double().T


def experts_reference(x, w1, w2, weights, ids):
    out = torch.zeros(x.shape[0], w2.shape[1], dtype=torch.float64, device=x.device)
    for t, c in itertools.product(range(ids.shape[0]), range(ids.shape[1])):
        e = ids[t, c].item()
        if e >= 0:
            out[t] += weights[t, c].double() * silu_mlp(x[t], w1[e], w2[e])
    return out


def nmse(got, expected):
    return ((got.double() - expected).square().sum() / expected.square().sum()).item()


# ---- claims ---------------------------------------------------------------------------------------------------------


def fused_gate():
    params = ((128, 4, 2, 4), (256, 8, 4, 8), (512, 16, 8, 16), (384, 1, 1, 8), (160, 8, 3, 6), (64, 2, 2, 4), (128, 8, 2, 8),
              (128, 8, 4, 6), (256, 4, 2, 8), (512, 8, 4, 8), (96, 3, 2, 4), (60, 5, 2, 4), (72, 9, 1, 8))
    rows = [*range(1, 10), 16, 33, 128, 1024, 4096]
    for (experts, groups, topk_group, k), shared, on_output in itertools.product(params, (0, 1, 2), (False, True)):
        worst_rows, worst_weight, equal = 1.0, 0.0, True
        for t, dtype in itertools.product(rows, (torch.float32, torch.bfloat16)):
            logits = normal(t, experts, seed=t + experts, dtype=torch.float32).to(dtype)
            bias = normal(experts, seed=7, scale=0.1)
            settings = (groups, topk_group, k + shared, shared, 2.5, on_output)
            weights, ids = moefuse.moe_fused_gate(logits, bias, *settings)
            equal = equal and as_on_cpu(moefuse.moe_fused_gate, (weights, ids), logits, bias, *settings)
            expected = gate_reference(logits, bias, groups, topk_group, k + shared, shared, 2.5, on_output)
            if dtype == torch.bfloat16:  # ties are common: only the weights' sum is compared
                routed = weights[:, :k].double().sum(1)
                worst_weight = max(worst_weight, (routed - (2.5 if on_output else 1.0)).abs().max().item())
                continue
            rows_equal, difference = same_choice(weights, ids, *expected)
            worst_rows, worst_weight = min(worst_rows, rows_equal), max(worst_weight, difference)
        claim(f"moe_fused_gate {experts} experts, groups {groups}/{topk_group}, top {k} + {shared}{', factor on the output' if on_output else ''}",
              worst_rows > 0.998 and worst_weight < 2e-6 and equal, f"{worst_rows} {worst_weight} {equal}")
    logits = normal(64, 256, seed=1)
    a = moefuse.moe_fused_gate(logits, torch.zeros(256, device=DEVICE), 8, 4, 8)
    b = moefuse.moe_fused_gate(logits[10:11], torch.zeros(256, device=DEVICE), 8, 4, 8)
    claim("a row alone has the bits that it has in a batch", torch.equal(a[0][10:11], b[0]) and torch.equal(a[1][10:11], b[1]))
    wide = torch.zeros(64, 300, device=DEVICE)
    wide[:, :256] = logits
    c = moefuse.moe_fused_gate(wide[:, :256], torch.zeros(256, device=DEVICE), 8, 4, 8)
    claim("rows with a stride give the same", torch.equal(a[0], c[0]) and torch.equal(a[1], c[1]))
    empty = moefuse.moe_fused_gate(logits[:0], torch.zeros(256, device=DEVICE), 8, 4, 9, 1, 2.5)
    claim("an empty batch gives [0, topk]", list(empty[0].shape) == [0, 9] and list(empty[1].shape) == [0, 9])


def every_scoring():
    """T x N x K of section 9's grid as far as a second allows, every scoring, bias domain and renormalisation."""
    domains = {"softmax": ("none", "score"), "sigmoid": ("none", "score"), "sqrtsoftplus": ("none", "score"),
               "sqrtsoftplus_log1p": ("none",), "topk_softmax": ("none", "logit"), "topk_sigmoid": ("none",)}
    for scoring, renorm in itertools.product(domains, ("none", "sum", "sum_eps", "sum_floor")):
        if scoring.startswith("topk") and renorm != "none":
            continue
        equal, unique, cases = True, True, 0
        for domain, (experts, k), t in itertools.product(domains[scoring], ((1, 1), (8, 2), (60, 4), (64, 6), (129, 7), (128, 8),
                                                         (256, 8), (384, 12), (513, 22), (1024, 32)), (1, 5, 33, 257)):
            if scoring == "topk_sigmoid" and k > 1:  # its weights scale the experts' input
                continue
            factor = 1.0 if scoring == "topk_sigmoid" else 2.5
            eps = {"sum_eps": 1e-20, "sum_floor": 1e-12}.get(renorm)
            gate = moefuse.gate_config(experts, k, scoring=scoring, bias_domain=domain, renorm=renorm, renorm_eps=eps,
                                       routed_scaling_factor=factor, num_shared_slots=cases % 3)
            logits = normal(t, experts, seed=t + experts, dtype=(torch.float32, torch.bfloat16, torch.float16)[cases % 3])
            bias = normal(experts, seed=3, scale=0.1) if domain != "none" else None
            weights, ids = moefuse.run_gate(gate, logits, bias)
            equal = equal and as_on_cpu(lambda l, b: moefuse.run_gate(gate, l, b), (weights, ids), logits, bias)
            ordered = ids.sort(1).values
            unique = unique and bool((ordered[:, 1:] != ordered[:, :-1]).all()) and int(ids.min()) >= 0
            cases += 1
        claim(f"run_gate {scoring}, renorm {renorm}: {cases} cases with ids that differ", equal and unique, f"{equal} {unique}")


def sum_reduce():
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)):
        worst, equal = 0.0, True
        for t, c, h in itertools.product((1, 2, 7, 33, 128, 222), (1, 2, 3, 4, 5, 6, 8, 9, 12), (1, 8, 24, 31, 128, 511, 1000, 4096)):
            x = normal(t, c, h, seed=t + c + h, dtype=dtype)
            out = torch.empty(t, h, dtype=dtype, device=DEVICE)
            moefuse.moe_sum_reduce(x, out, 2.5)
            if DEVICE != "cpu":
                on_cpu = torch.empty(t, h, dtype=dtype)
                moefuse.moe_sum_reduce(x.cpu(), on_cpu, 2.5)
                equal = equal and torch.equal(out.cpu(), on_cpu)
            expected = x.double().sum(1) * 2.5
            subnormal = 2.0**-25 if dtype == torch.float16 else 1e-40  # half a step of the smallest numbers
            beyond = ((out.double() - expected).abs() - subnormal).clamp(min=0)
            worst = max(worst, (beyond / (x.double().abs().sum(1) * 2.5 + 1e-30)).max().item())
        claim(f"moe_sum_reduce in {dtype}: within {bound:g} of the sum of magnitudes", worst < bound and equal, f"{worst} {equal}")
    x, out = normal(1024, 1, 8, seed=3).expand(1024, 1, 8).repeat(600, 1, 1), torch.empty(614400, 8, device=DEVICE)
    moefuse.moe_sum_reduce(x, out, 1.0)
    claim("moe_sum_reduce of 614,400 rows", torch.equal(out, x[:, 0]))
    x, out = normal(5, 3, 16, seed=3), torch.empty(5, 16, device=DEVICE)
    weights = normal(5, 3, seed=4)
    ids = torch.tensor([[0, -1, 2]] * 5, dtype=torch.int32, device=DEVICE)
    x[:, 1] = float("nan")
    moefuse.moe_sum_reduce(x, out, 2.0, topk_weights=weights, topk_ids=ids, num_shared_columns=1)
    expected = 2.0 * weights[:, :1].double() * x[:, 0].double() + weights[:, 2:].double() * x[:, 2].double()
    claim("weights, dropped columns and shared columns count", torch.allclose(out.double(), expected, rtol=1e-6, atol=1e-6), out)


def align():
    good = 0
    cases = list(itertools.product((1, 3, 64, 256, 2256), (1, 2, 8, 16), (32, 64, 128), (64, 160, 256, 257, 1025)))
    for t, k, block, experts in cases:
        g = torch.Generator().manual_seed(t * k)
        ids = torch.randint(-1, experts, (t, k), generator=g, dtype=torch.int32).to(DEVICE)
        capacity = moefuse.align_capacity(t, k, block, experts)
        rows = torch.full((capacity,), -7, dtype=torch.int32, device=DEVICE)
        blocks = torch.full((capacity // block,), -7, dtype=torch.int32, device=DEVICE)
        total = torch.zeros(1, dtype=torch.int32, device=DEVICE)
        moefuse.moe_align_block_size(ids, experts, block, rows, blocks, total)
        flat, expected_rows, expected_blocks = ids.flatten().cpu(), [], []
        for e in range(experts):
            here = (flat == e).nonzero().flatten().tolist()
            padded = -(-len(here) // block) * block
            expected_rows += here + [t * k] * (padded - len(here))
            expected_blocks += [e] * (padded // block)
        n = total.item()
        good += n == len(expected_rows) and rows[:n].tolist() == expected_rows and blocks[: n // block].tolist() == expected_blocks
    claim(f"moe_align_block_size: {len(cases)} cases equal a stable sort", good == len(cases), good)


def quantised(w, kind):
    """(codes, scale, the values that they stand for)"""
    if kind == "fp8_channel":
        scale = w.abs().amax(2, keepdim=True) / 448
        codes = (w / scale).to(torch.float8_e4m3fn)
        return codes, scale, codes.float() * scale
    if kind == "fp8_block":
        e, n, k = w.shape
        blocks = torch.nn.functional.pad(w, (0, -k % 128, 0, -n % 128)).view(e, -(-n // 128), 128, -(-k // 128), 128)
        scale = blocks.abs().amax((2, 4)) / 448
        spread = scale.repeat_interleave(128, 1)[:, :n].repeat_interleave(128, 2)[:, :, :k]
        codes = (w / spread).to(torch.float8_e4m3fn)
        return codes, scale, codes.float() * spread
    if kind == "int8_channel":
        scale = w.abs().amax(2, keepdim=True) / 127
        codes = (w / scale).round().to(torch.int8)
        return codes, scale, codes.float() * scale
    if kind == "int4_group":
        e, n, k = w.shape
        scale = w.view(e, n, k // 32, 32).abs().amax(3) / 7.5
        codes = ((w / scale.repeat_interleave(32, 2)).round() + 8).clamp(0, 15).to(torch.uint8)
        return codes[..., 0::2] | codes[..., 1::2] << 4, scale, (codes.float() - 8) * scale.repeat_interleave(32, 2)
    if kind == "mxfp4":
        e, n, k = w.shape
        values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], device=w.device)
        power = (w.view(e, n, k // 32, 32).abs().amax(3) / 6).log2().ceil().int()
        spread = torch.exp2(power.float()).repeat_interleave(32, 2)
        codes = ((w / spread).unsqueeze(-1) - values).abs().argmin(-1).to(torch.uint8)
        return codes[..., 0::2] | codes[..., 1::2] << 4, (power + 127).to(torch.uint8), values[codes.long()] * spread
    return w, None, w.float()


def experts():
    t, k, e, h, i = 7, 3, 5, 256, 128
    ids = torch.stack([torch.randperm(e, generator=torch.Generator().manual_seed(n))[:k] for n in range(t)]).int().to(DEVICE)
    ids[2, 1] = -1
    weights = normal(t, k, seed=2).abs()
    for dtype, bound in ((torch.float32, 1e-11), (torch.bfloat16, 3e-5), (torch.float16, 1e-6)):
        x, w1, w2 = normal(t, h, seed=5, dtype=dtype), normal(e, 2 * i, h, seed=6, dtype=dtype, scale=0.06), normal(e, h, i, seed=8, dtype=dtype, scale=0.09)
        out = moefuse.fused_experts(x, w1, w2, weights, ids)
        claim(f"fused_experts in {dtype}", nmse(out, experts_reference(x, w1, w2, weights, ids)) < bound,
              nmse(out, experts_reference(x, w1, w2, weights, ids)))
        kept = x.clone()
        moefuse.fused_experts(kept, w1, w2, weights, ids, inplace=True)
        claim(f"in place gives the same bits in {dtype}", torch.equal(kept, out))
    x, w1, w2 = normal(t, h, seed=5, dtype=torch.bfloat16), normal(e, 2 * i, h, seed=6, scale=0.06), normal(e, h, i, seed=8, scale=0.09)
    for kind in ("fp8_channel", "fp8_block", "int8_channel", "int4_group", "mxfp4"):
        (c1, s1, v1), (c2, s2, v2) = quantised(w1, kind), quantised(w2, kind)
        more = {"fp8_block": {"block_shape": [128, 128]}, "int4_group": {"weight_format": kind, "group_size": 32},
                "mxfp4": {"weight_format": kind}}.get(kind, {})
        out = moefuse.fused_experts(x, c1, c2, weights, ids, w1_scale=s1, w2_scale=s2, **more)
        error = nmse(out, experts_reference(x, v1, v2, weights, ids))
        claim(f"fused_experts with {kind} weights", error < 3e-5, error)
    before = len(moefuse.experts._tables)
    w1, w2 = normal(e, 2 * i, h, seed=16, scale=0.06), normal(e, h, i, seed=18, scale=0.09)
    x = normal(t, h, seed=5)
    first = moefuse.fused_experts(x, w1, w2, weights, ids)
    claim("the table of the same weights is made once", torch.equal(moefuse.fused_experts(x, w1, w2, weights, ids), first) and
          len(moefuse.experts._tables) == before + 1)
    w1.mul_(2.0)
    claim("weights changed in place are seen", not torch.equal(moefuse.fused_experts(x, w1, w2, weights, ids), first))
    del w1
    gc.collect()
    claim("and it goes with them", len(moefuse.experts._tables) == before, len(moefuse.experts._tables))


def layer():
    t, e, s, k, h, i = 9, 16, 2, 4, 128, 64
    x = normal(t, h, seed=1, dtype=torch.bfloat16)
    w1, w2 = normal(e, 2 * i, h, seed=2, dtype=torch.bfloat16, scale=0.09), normal(e, h, i, seed=3, dtype=torch.bfloat16, scale=0.12)
    sw1, sw2 = normal(s, 2 * i, h, seed=4, dtype=torch.bfloat16, scale=0.09), normal(s, h, i, seed=5, dtype=torch.bfloat16, scale=0.12)
    bias, logits = normal(e, seed=6, scale=0.1), normal(t, e, seed=7)
    table = moefuse.Experts(w1, w2, shared_w1=sw1, shared_w2=sw2)
    config = moefuse.gate_config(e, k, scoring="sigmoid", bias_domain="score", renorm="sum_eps", n_group=4, topk_group=2,
                                 group_score="top2_sum", num_shared_slots=s, routed_scaling_factor=2.5)
    out = moefuse.moe_layer(x, logits, table, config, e_score_correction_bias=bias, y_dtype=torch.float32)
    weights, ids = gate_reference(logits, bias, 4, 2, k + s, s, 2.5, True)
    expected = experts_reference(x, torch.cat([w1, sw1]), torch.cat([w2, sw2]), weights, ids)
    claim("moe_layer with two shared slots", nmse(out, expected) < 3e-5, nmse(out, expected))
    steps = moefuse.run_gate(config, logits, bias)
    y = table(x, steps[1], out_dtype=torch.float32)
    parts = torch.empty_like(x)
    # y in f32, out in bf16: as the layer does it
    moefuse.moe_sum_reduce(y, parts, 1.0, topk_weights=steps[0], topk_ids=steps[1], num_shared_columns=s)
    claim("gate, experts and sum-reduce one by one give the layer's bits", torch.equal(parts, out))
    one = moefuse.moe_layer(x[4:5], logits[4:5], table, config, e_score_correction_bias=bias, y_dtype=torch.float32)
    claim("a token alone has the bits that it has in a batch", torch.equal(one, out[4:5]))


def one_layer(seed=2):
    """(table, gate, weights) of a small layer with a shared slot."""
    e, h, i = 16, 128, 64
    w1, w2 = normal(e, 2 * i, h, seed=seed, dtype=torch.bfloat16, scale=0.09), normal(e, h, i, seed=seed + 1, dtype=torch.bfloat16, scale=0.12)
    sw1, sw2 = normal(1, 2 * i, h, seed=seed + 2, dtype=torch.bfloat16, scale=0.09), normal(1, h, i, seed=seed + 3, dtype=torch.bfloat16, scale=0.12)
    gate = moefuse.gate_config(e, 4, scoring="sigmoid", bias_domain="score", renorm="sum_eps", n_group=4, topk_group=2,
                               group_score="top2_sum", num_shared_slots=1, routed_scaling_factor=2.5)
    return moefuse.Experts(w1, w2, shared_w1=sw1, shared_w2=sw2), gate, (w1, w2)


def every_op(table, gate, weights):
    """A function that calls every op, over tensors only."""
    w1, w2 = weights

    def step(x, logits, bias):
        rows = x.shape[0]
        routed, ids = moefuse.moe_fused_gate(logits * 2, bias, 4, 2, 5, 1, 2.5)
        own, own_ids = moefuse.run_gate(gate, logits, bias)
        y = table(x, own_ids, out_dtype=torch.float32)
        out = torch.empty_like(x)
        moefuse.moe_sum_reduce(y, out, 1.0, topk_weights=own, topk_ids=own_ids, num_shared_columns=1)
        capacity = rows * 5 + 17 * 15
        blocks = (ids.new_empty(capacity), ids.new_empty(-(-capacity // 16)), ids.new_empty(1))
        moefuse.moe_align_block_size(ids, 17, 16, *blocks)
        mixed = moefuse.fused_experts(x, w1, w2, routed[:, :4].contiguous(), ids[:, :4].contiguous())
        return moefuse.moe_layer(x, logits, table, gate, e_score_correction_bias=bias, y_dtype=torch.float32), out, mixed + 1, ids, blocks[2]

    return step


def torch_side():
    table, gate, weights = one_layer()
    step = every_op(table, gate, weights)
    x, logits, bias = normal(6, 128, seed=1, dtype=torch.bfloat16), normal(6, 16, seed=3), normal(16, seed=4, scale=0.1)
    eager = step(x, logits, bias)
    claim("gate, experts and combine one by one give the layer's bits", torch.equal(eager[0], eager[1]))
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(x, logits, bias)
    claim("torch.compile takes all ops without a graph break", all(torch.equal(a, b) for a, b in zip(eager, compiled)))
    if DEVICE == "cuda":
        compiled = torch.compile(step, fullgraph=True)(x, logits, bias)
        claim("and so does its default backend", all(torch.equal(a, b) for a, b in zip(eager, compiled)))

    def in_place(x):
        moefuse.fused_experts(x, *weights, torch.ones(6, 4, device=DEVICE), eager[3][:, :4].contiguous(), inplace=True)
        return x

    kept, other = x.clone(), x.clone()
    torch.compile(in_place, fullgraph=True, backend="aot_eager")(kept)
    claim("and writes in place", torch.equal(in_place(other), kept) and not torch.equal(kept, x))
    ops = torch.ops.moefuse
    f32, out = normal(6, 5, 32, seed=2), torch.empty(6, 32, device=DEVICE)
    torch.library.opcheck(ops.moe_fused_gate.default, (logits, bias, 4, 2, 5, 1, 2.5, False))
    torch.library.opcheck(ops.run_gate.default, (logits, bias, None, None, gate.number, gate.columns))
    torch.library.opcheck(ops.moe_sum_reduce.default, (f32, out, 1.0))
    torch.library.opcheck(ops.experts.default, (x, eager[3], None, table.number, 128, torch.float32))
    torch.library.opcheck(ops.moe_layer.default, (x, logits, bias, None, None, table.number, gate.number, torch.float32))
    claim("torch.library.opcheck accepts them", True)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: moefuse.moe_fused_gate(logits, bias, 4, 2, 5, 1, 2.5)[1], range(50)))
    claim("calls from several threads take turns", all(torch.equal(r, results[0]) for r in results))


def cuda_side():
    """Streams and graphs."""
    if DEVICE != "cuda":
        return
    table, gate, weights = one_layer(seed=20)
    step = every_op(table, gate, weights)
    x, logits, bias = normal(6, 128, seed=1, dtype=torch.bfloat16), normal(6, 16, seed=3), normal(16, seed=4, scale=0.1)
    step(x, logits, bias)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(x, logits, bias)
    good = True
    for seed in (9, 10, 11):
        x.copy_(normal(6, 128, seed=seed, dtype=torch.bfloat16))
        logits.copy_(normal(6, 16, seed=seed + 10))
        step(normal(300, 128, seed=1, dtype=torch.bfloat16), normal(300, 16, seed=2), bias)  # larger, between the replays
        graph.replay()
        torch.cuda.synchronize()
        good = good and all(torch.equal(a, b) for a, b in zip(captured, step(x, logits, bias)))
    claim("a CUDA graph replays every op on new input", good)
    mlp = torch.compile(lambda x, logits: moefuse.moe_layer(x, logits, table, gate, e_score_correction_bias=bias) * 2, fullgraph=True,
                        mode="reduce-overhead")
    for _ in range(4):
        got = mlp(x, logits).clone()
    claim("torch.compile's own CUDA graphs, too", torch.equal(got, moefuse.moe_layer(x, logits, table, gate, e_score_correction_bias=bias) * 2))

    # The op must wait for what its stream does before: 50 ms of sleep, then the input.
    stream, good = torch.cuda.Stream(), True
    for seed in range(5):
        later = normal(6, 16, seed=30 + seed)
        expected = moefuse.run_gate(gate, later, bias)[1]
        slow = torch.zeros_like(logits)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            slow.copy_(later)
            ids = moefuse.run_gate(gate, slow, bias)[1]
        again = moefuse.run_gate(gate, later, bias)[1]  # on the stream of before, after the other
        stream.synchronize()
        torch.cuda.synchronize()
        good = good and torch.equal(ids, expected) and torch.equal(again, expected)
    claim("ops go to torch's current stream", good)
    w1, w2 = (w.clone() for w in weights)
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            moefuse.fused_experts(x, w1, w2, torch.ones(6, 4, device=DEVICE), captured[3][:, :4].contiguous())
        claim("a table that a capture would make is refused", False)
    except RuntimeError as error:
        claim("a table that a capture would make is refused", "before the capture" in str(error), error)
    torch.cuda.synchronize()
    for text, call, *parts in (
            ("logits here, bias on the CPU", lambda: moefuse.moe_fused_gate(logits, bias.cpu(), 4, 2, 5, 1, 2.5), "e_score_correction_bias", "cuda:0", "cpu"),
            ("x on the CPU", lambda: table(x.cpu(), captured[3]), "x", "cuda:0", "cpu"),
            ("w2 on the CPU", lambda: moefuse.Experts(w1, w2.cpu()), "w2", "cuda:0", "cpu"),
            ("a scale on the CPU", lambda: moefuse.Experts(w1.char(), w2.char(), w1_scale=torch.ones(16, 128), w2_scale=torch.ones(16, 128, device=DEVICE)),
             "w1_scale", "cuda:0", "cpu"),
            ("weights on the CPU", lambda: moefuse.fused_experts(x, w1.cpu(), w2.cpu(), torch.ones(6, 4, device=DEVICE), captured[3][:, :4]), "x", "cuda:0", "cpu"),
            ("an output on the CPU", lambda: moefuse.moe_sum_reduce(normal(4, 2, 8, seed=1), torch.empty(4, 8), 1.0), "output_tensor", "cuda:0", "cpu"),
            ("x of another dtype", lambda: table(x.float(), captured[3]), "x", "bf16")):
        ok, said = refused(call, *parts)
        claim(f"{text} is a ValueError that names it", ok, said)


def refused(call, *parts):
    try:
        call()
    except ValueError as error:
        return all(p in str(error) for p in parts), str(error)
    return False, "no error"


def refusals():
    logits, bias = normal(4, 64, seed=1), torch.zeros(64, device=DEVICE)
    for text, call, *parts in (
            ("a bias of another length", lambda: moefuse.moe_fused_gate(logits, bias[:63], 4, 2, 4), "e_score_correction_bias", "64"),
            ("groups that do not divide", lambda: moefuse.moe_fused_gate(logits, bias, 5, 2, 4), "n_group"),
            ("top-k past the experts", lambda: moefuse.moe_fused_gate(logits, bias, 1, 1, 65), "top_k"),
            ("integer logits", lambda: moefuse.moe_fused_gate(logits.int(), bias, 4, 2, 4), "router_logits", "i32"),
            ("a shared weight without its factor", lambda: moefuse.moe_fused_gate(logits, bias, 4, 2, 5, 1, 0), "routed_scaling_factor"),
            ("an output of another shape", lambda: moefuse.moe_sum_reduce(normal(4, 2, 8, seed=1), torch.empty(4, 9, device=DEVICE), 1.0), "out"),
            ("weights that do not fit", lambda: moefuse.Experts(normal(2, 16, 8, seed=1), normal(2, 8, 9, seed=1)), "w1", "w2"),
            ("codes without scales", lambda: moefuse.Experts(torch.zeros(2, 16, 8, dtype=torch.int8, device=DEVICE),
                                                             torch.zeros(2, 8, 8, dtype=torch.int8, device=DEVICE)), "w1", "scales"),
            ("an unknown scoring", lambda: moefuse.gate_config(8, 2, scoring="softmx", routed_scaling_factor=1.0), "scoring", "softmax")):
        ok, said = refused(call, *parts)
        claim(f"{text} is a ValueError that names it", ok, said)


def main():
    global DEVICE
    for DEVICE in sys.argv[1:] or (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]):
        print(f"# {moefuse.device_description(DEVICE)}, torch {torch.__version__}")
        for group in (fused_gate, every_scoring, sum_reduce, align, experts, layer, torch_side, cuda_side, refusals):
            group()
    status = plan()
    print(f"{counts['claims'] - counts['failures']} passed, {counts['failures']} failed")
    sys.exit(status)


main()
