#!/usr/bin/env python3
"""Trains models/word-problems: a small DeepSeek-V3 that solves grade-school word problems step by step.

One command does everything inside a time budget: it trains a byte-level BPE tokenizer on generated problems, trains
the model on an endless fresh stream of them (make_word_problems.py, in worker processes), writes the checkpoint in
the layout DeepSeek released (bf16, and an FP8 copy with 128 x 128 block scales), compares it with transformers'
DeepseekV3ForCausalLM, and measures greedy accuracy on 1,000 held-out problems for both:

    python tools/train_word_problems.py --out models/word-problems --minutes 8

The learning rate follows the elapsed share of the budget, so a slower machine trains fewer steps and still ends
properly.  A line is printed every few seconds and a usable checkpoint is written every minute.

What is DeepSeek-V3's here: multi-head latent attention with both low-rank projections and interleaved rotary pairs,
a dense first layer, a sigmoid gate with groups whose e_score_correction_bias is moved after each step by
gamma * sign(mean load - load) and never by a gradient (arXiv 2408.15664), one shared expert, a scaled and
renormalised top-k.  During the last third every other step sees weights rounded to FP8, so both copies work.

`--try` is a tiny run of a few dozen steps on a CPU through all of the above.
"""
import os

# Workers are forked: the tokenizer's own thread pool must not exist.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import json
import math
import multiprocessing as mp
import random
import shutil
import sys
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

import make_word_problems as problems

BOS, EOS, PAD, USER, ASSISTANT = range(5)
SPECIAL = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>"]

CONFIG = dict(
    vocab_size=1024, hidden_size=256, intermediate_size=896, moe_intermediate_size=64, num_hidden_layers=6,
    num_attention_heads=8, num_key_value_heads=8, q_lora_rank=96, kv_lora_rank=64, qk_nope_head_dim=32,
    qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=20, n_shared_experts=1, num_experts_per_tok=4, n_group=4,
    topk_group=2, first_k_dense_replace=1, routed_scaling_factor=2.5, max_position_embeddings=1024,
    rope_theta=10000.0, rms_norm_eps=1e-6)

TINY = dict(CONFIG, vocab_size=640, hidden_size=128, intermediate_size=192, moe_intermediate_size=32,
            num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=48, kv_lora_rank=32)

SYSTEM_TEXTS = ("You are a helpful assistant.", "You solve small word problems.", "Answer step by step.",
                "You are a careful tutor. Think step by step.", "You are a helpful assistant that solves math problems.",
                "You are a math teacher.", "Solve the problem and end with #### and the answer.", "Be brief.",
                "You are a friendly assistant. Show your work.")

# The Jinja template of DeepSeek-V3, without tools.
CHAT_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system_prompt='') %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}"
    "{%- endif %}{%- endfor %}"
    "{{ bos_token }}{{ ns.system_prompt }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}{{ '<｜Assistant｜>' + (message['content'] or '') + '<｜end▁of▁sentence｜>' }}{%- endif %}"
    "{%- endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}")


def log(*args):
    print(*args, flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Text to tokens

def conversation(rng):
    """One document: usually one exchange, sometimes two or three, sometimes after a system text."""
    turns = 1 if rng.random() < .9 else 2 if rng.random() < .8 else 3
    text = SPECIAL[BOS]
    if rng.random() < .06:
        text += rng.choice(SYSTEM_TEXTS)
    for _ in range(turns):
        q, a = problems.make_training_example(rng)
        text += SPECIAL[USER] + q + SPECIAL[ASSISTANT] + a + SPECIAL[EOS]
    return text


def train_tokenizer(path, vocab_size, examples, seed):
    """DeepSeek-V3's kind of pre-tokenizer with one token per digit, and all 256 bytes, so that any text encodes."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
        pre_tokenizers.Split(Regex(
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    rng = random.Random(f"tokenizer {seed}")

    def texts():
        for _ in range(examples):
            q, a = problems.make_training_example(rng)
            yield q
            yield a
        for _ in range(examples // 300):
            yield from SYSTEM_TEXTS
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tok.train_from_iterator(texts(), trainer)
    tok.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[BOS]} $A", pair=f"{SPECIAL[BOS]} $A {SPECIAL[BOS]}:1 $B:1", special_tokens=[(SPECIAL[BOS], BOS)])
    if tok.get_vocab_size() != vocab_size:
        raise SystemExit(f"the tokenizer has {tok.get_vocab_size()} tokens, expected {vocab_size}")
    tok.save(path)


def pack(docs, length, rng):
    """Rows of `length` tokens filled with whole documents, the longest that still fits first."""
    by_length = {}
    for d in docs:
        if len(d) <= length:
            by_length.setdefault(len(d), []).append(d)
    sizes = sorted(by_length)
    rows = []
    while sizes:
        row, room = [], length
        while True:
            fit = [s for s in sizes if s <= room]
            if not fit:
                break
            # The first document of a row is a random one, so that rows do not sort themselves by length.
            s = fit[-1] if row else rng.choice(fit)
            row += by_length[s].pop()
            room -= s
            if not by_length[s]:
                sizes.remove(s)
        rows.append(row + [PAD] * room)
    rng.shuffle(rows)
    return np.array(rows, dtype=np.uint16)


def data_worker(index, num_workers, queue, tokenizer_path, seed, chunk_size, length):
    """Makes chunks index, index + num_workers, ... of the stream; what a chunk holds depends on its number alone."""
    from tokenizers import Tokenizer
    torch.set_num_threads(1)
    tok = Tokenizer.from_file(tokenizer_path)
    chunk = index
    while True:
        rng = random.Random(f"train {seed} {chunk}")
        texts = [conversation(rng) for _ in range(chunk_size)]
        docs = [e.ids for e in tok.encode_batch(texts, add_special_tokens=False)]
        queue.put(pack(docs, length, rng))
        chunk += num_workers


class Stream:
    """Batches of rows from the workers, in chunk order."""

    def __init__(self, args, tokenizer_path, device):
        ctx = mp.get_context("fork")
        self.queues = [ctx.Queue(maxsize=3) for _ in range(args.workers)]
        self.workers = [ctx.Process(target=data_worker, daemon=True, args=(
            i, args.workers, q, tokenizer_path, args.seed, args.chunk, args.length)) for i, q in enumerate(self.queues)]
        for w in self.workers:
            w.start()
        self.turn, self.rows, self.batch, self.device, self.waited = 0, None, args.rows, device, 0.0

    def next(self):
        parts = [] if self.rows is None else [self.rows]
        while sum(len(p) for p in parts) < self.batch:
            begun = time.time()
            while True:
                try:
                    chunk = self.queues[self.turn % len(self.queues)].get(timeout=20)
                    break
                except Exception:
                    if not self.workers[self.turn % len(self.queues)].is_alive():
                        raise SystemExit("a data worker died")
            self.turn += 1
            self.waited += time.time() - begun
            rows = torch.from_numpy(chunk.astype(np.int32))
            parts.append(rows.pin_memory().to(self.device, non_blocking=True) if self.device == "cuda" else rows)
        rows = torch.cat(parts) if len(parts) > 1 else parts[0]
        self.rows = rows[self.batch:]
        return rows[:self.batch].long()

    def close(self):
        for w in self.workers:
            w.terminate()
        for w in self.workers:
            w.join(timeout=5)


# ---------------------------------------------------------------------------------------------------------------------
# The model: DeepSeek-V3's arithmetic, with experts stacked so that one matrix product serves all of them

def rms_norm(x, weight, eps):
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
    return (y * weight).to(x.dtype)


def rotate(x, cos, sin):
    """Rotary embedding on interleaved pairs; x [B, heads, L, rope_dim], cos and sin [L, rope_dim / 2]."""
    a, b = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2).to(x.dtype)


def rank(a):
    """How many entries of the last dimension beat each entry; of equals the lower index wins."""
    n = a.shape[-1]
    lower = torch.ones(n, n, dtype=torch.bool, device=a.device).tril(-1)
    mine, other = a.unsqueeze(-1), a.unsqueeze(-2)
    return ((other > mine) | ((other == mine) & lower)).sum(-1)


def parameter(*shape, std):
    return nn.Parameter(torch.randn(*shape) * std)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, d, h = c, c["hidden_size"], c["num_attention_heads"]
        nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        out_std = (h * v) ** -.5 / math.sqrt(2 * c["num_hidden_layers"])
        self.q_a_proj = parameter(c["q_lora_rank"], d, std=d ** -.5)
        self.q_a_layernorm = nn.Parameter(torch.ones(c["q_lora_rank"]))
        self.q_b_proj = parameter(h * (nope + rope), c["q_lora_rank"], std=c["q_lora_rank"] ** -.5)
        self.kv_a_proj_with_mqa = parameter(c["kv_lora_rank"] + rope, d, std=d ** -.5)
        self.kv_a_layernorm = nn.Parameter(torch.ones(c["kv_lora_rank"]))
        self.kv_b_proj = parameter(h * (nope + v), c["kv_lora_rank"], std=c["kv_lora_rank"] ** -.5)
        self.o_proj = parameter(d, h * v, std=out_std)

    def forward(self, x, cos, sin, mask, cache=None):
        c, eps = self.c, self.c["rms_norm_eps"]
        batch, length, _ = x.shape
        h, nope, rope, vd = c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        q = F.linear(rms_norm(F.linear(x, self.q_a_proj), self.q_a_layernorm, eps), self.q_b_proj)
        q = q.view(batch, length, h, nope + rope).transpose(1, 2)
        latent, k_rope = F.linear(x, self.kv_a_proj_with_mqa).split((c["kv_lora_rank"], rope), -1)
        kv = F.linear(rms_norm(latent, self.kv_a_layernorm, eps), self.kv_b_proj)
        k, v = kv.view(batch, length, h, nope + vd).transpose(1, 2).split((nope, vd), -1)
        q = torch.cat((q[..., :nope], rotate(q[..., nope:], cos, sin)), -1)
        k = torch.cat((k, rotate(k_rope.unsqueeze(1), cos, sin).expand(-1, h, -1, -1)), -1)
        # Equal head sizes let every attention kernel take it.
        v = F.pad(v, (0, nope + rope - vd))
        if cache is not None:
            k, v = cache.append(k, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=(nope + rope) ** -.5)
        return F.linear(y[..., :vd].transpose(1, 2).reshape(batch, length, h * vd), self.o_proj)


class Mlp(nn.Module):
    """n gated MLPs side by side: up [n, gate or up, width, hidden], down [n, width, hidden] (transposed)."""

    def __init__(self, c, n, width):
        super().__init__()
        d = c["hidden_size"]
        self.up = parameter(n, 2, width, d, std=d ** -.5)
        self.down = parameter(n, width, d, std=width ** -.5 / math.sqrt(2 * c["num_hidden_layers"]))

    def forward(self, x, weights=None):
        n, _, width, d = self.up.shape
        h = F.linear(x, self.up.view(n * 2 * width, d)).view(-1, n, 2, width)
        h = F.silu(h[:, :, 0]) * h[:, :, 1]
        if weights is not None:
            h = h * weights.unsqueeze(-1).to(h.dtype)
        return h.reshape(-1, n * width) @ self.down.view(n * width, d)


class Moe(nn.Module):
    """The gate and its experts.  Every expert runs on every token and the unchosen weigh 0: at this size one large
    product is faster than sorting, and the result is the same.  The shared expert is the last one, with weight 1."""

    def __init__(self, c):
        super().__init__()
        self.c, n = c, c["n_routed_experts"]
        self.gate = parameter(n, c["hidden_size"], std=.02)
        self.register_buffer("bias", torch.zeros(n))
        self.experts = Mlp(c, n + c["n_shared_experts"], c["moe_intermediate_size"])

    def choose(self, scores):
        """Which experts win (bool [T, n]): the bias steers this and nothing else."""
        c = self.c
        biased = scores.detach() + self.bias
        groups = biased.view(len(biased), c["n_group"], -1)
        group_scores = torch.where(rank(groups) < 2, groups, 0.).sum(-1)
        keep = (rank(group_scores) < c["topk_group"]).unsqueeze(-1).expand_as(groups).reshape(biased.shape)
        return (rank(torch.where(keep, biased, float("-inf"))) < c["num_experts_per_tok"]) & keep

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            scores = torch.sigmoid(F.linear(x.float(), self.gate.float()))
            with torch.no_grad():
                chosen = self.choose(scores)
            weights = torch.where(chosen, scores, 0.)
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.c["routed_scaling_factor"]
            weights = torch.cat((weights, weights.new_ones(len(weights), self.c["n_shared_experts"])), -1)
        return self.experts(x, weights), chosen


class Layer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        self.c = c
        self.input_layernorm = nn.Parameter(torch.ones(c["hidden_size"]))
        self.post_attention_layernorm = nn.Parameter(torch.ones(c["hidden_size"]))
        self.attention = Attention(c)
        self.dense = index < c["first_k_dense_replace"]
        self.mlp = Mlp(c, 1, c["intermediate_size"]) if self.dense else Moe(c)

    def forward(self, x, cos, sin, mask, cache=None):
        eps = self.c["rms_norm_eps"]
        x = x + self.attention(rms_norm(x, self.input_layernorm, eps), cos, sin, mask, cache)
        flat = rms_norm(x, self.post_attention_layernorm, eps).reshape(-1, x.shape[-1])
        y, chosen = (self.mlp(flat), None) if self.dense else self.mlp(flat)
        return x + y.view(x.shape), chosen


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embed = parameter(c["vocab_size"], c["hidden_size"], std=.1)
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c["num_hidden_layers"]))
        self.norm = nn.Parameter(torch.ones(c["hidden_size"]))
        self.lm_head = parameter(c["vocab_size"], c["hidden_size"], std=c["hidden_size"] ** -.5 / 2)
        rope = c["qk_rope_head_dim"]
        angle = torch.arange(c["max_position_embeddings"]).float()[:, None] * \
            (c["rope_theta"] ** (-torch.arange(0, rope, 2).float() / rope))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids, mask, start=0, caches=None, last_only=False):
        length = ids.shape[1]
        cos, sin = self.cos[start:start + length], self.sin[start:start + length]
        x = F.embedding(ids, self.embed)
        chosen = []
        for i, layer in enumerate(self.layers):
            x, won = layer(x, cos, sin, mask, caches[i] if caches else None)
            if won is not None:
                chosen.append(won)
        if last_only:
            x = x[:, -1:]
        return F.linear(rms_norm(x, self.norm, self.c["rms_norm_eps"]), self.lm_head), chosen

    def loss(self, ids, question_weight):
        """Next-token loss inside each document: answers count fully, questions a little.  Also the answers' own
        loss and each expert's share of the tokens, [MoE layers, experts]."""
        doc = (ids == BOS).cumsum(1)
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        mask = ((doc.unsqueeze(2) == doc.unsqueeze(1)) & causal).unsqueeze(1)
        logits, chosen = self(ids, mask)
        # A position's target belongs to an answer when an <｜Assistant｜> is open there.
        answer = ((ids == ASSISTANT).cumsum(1) > (ids == EOS).cumsum(1))[:, :-1]
        target = ids[:, 1:]
        counted = (target != PAD) & (target != BOS)
        weight = torch.where(answer, 1., question_weight) * counted
        each = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]).float(), target.reshape(-1),
                               reduction="none").view(target.shape)
        loss = (each * weight).sum() / weight.sum()
        with torch.no_grad():
            in_answer = (answer & counted).float()
            answer_loss = (each * in_answer).sum() / in_answer.sum()
            real = (ids != PAD).reshape(-1, 1).float()
            load = torch.stack([(won * real).sum(0) / real.sum() for won in chosen])
        return loss, answer_loss, load


class Cache:
    """Keys and values of one layer, room for `size` columns."""

    def __init__(self, size):
        self.size, self.used, self.k, self.v = size, 0, None, None

    def append(self, k, v):
        if self.k is None:
            shape = (k.shape[0], k.shape[1], self.size)
            self.k, self.v = k.new_zeros(*shape, k.shape[3]), v.new_zeros(*shape, v.shape[3])
        end = self.used + k.shape[2]
        self.k[:, :, self.used:end], self.v[:, :, self.used:end] = k, v
        self.used = end
        return self.k[:, :, :end], self.v[:, :, :end]


@torch.no_grad()
def generate(model, prompts, max_new):
    """Greedy answers for a list of prompts (token lists): prompts end at the same column, padded on the left."""
    device = model.embed.device
    longest = max(map(len, prompts))
    max_new = min(max_new, model.c["max_position_embeddings"] - longest)
    ids = torch.tensor([[PAD] * (longest - len(p)) + p for p in prompts], device=device)
    first = torch.tensor([longest - len(p) for p in prompts], device=device)
    caches = [Cache(longest + max_new) for _ in model.layers]
    q = torch.arange(longest, device=device)
    # Padding looks at itself, since a row that looks at nothing has no softmax.
    mask = (q[None, :] <= q[:, None]) & ((q >= first[:, None, None]) | (q[None, :] == q[:, None]))
    logits, _ = model(ids, mask.unsqueeze(1), 0, caches, last_only=True)
    out, done = [], torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for step in range(max_new):
        token = logits[:, -1].argmax(-1)
        token = torch.where(done, PAD, token)
        out.append(token)
        done |= token == EOS
        if step % 8 == 7 and bool(done.all()) or step == max_new - 1:
            break
        at = longest + step
        columns = torch.arange(at + 1, device=device)
        mask = (columns >= first[:, None])[:, None, None, :]
        logits, _ = model(token[:, None], mask, at, caches)
    return [[t for t in row if t not in (PAD, EOS)] for row in torch.stack(out, 1).tolist()]


def measure(model, tok, held_out, batch, max_new=200):
    """The share of problems whose last `####` number is right, and the wrong ones."""
    wrong = []
    order = sorted(range(len(held_out)), key=lambda i: len(held_out[i]["question"]))
    for begin in range(0, len(order), batch):
        part = [held_out[i] for i in order[begin:begin + batch]]
        prompts = [[BOS, USER] + tok.encode(p["question"], add_special_tokens=False).ids + [ASSISTANT] for p in part]
        for p, ids in zip(part, generate(model, prompts, max_new)):
            text = tok.decode(ids)
            if problems.final_answer(text) != problems.final_answer(p["answer"]):
                wrong.append({"template": p["template"], "question": p["question"], "answer": p["answer"], "said": text})
    return 1 - len(wrong) / len(held_out), wrong


# ---------------------------------------------------------------------------------------------------------------------
# FP8 with one scale per 128 x 128 block, as DeepSeek-V3 is released: weight = q * weight_scale_inv

def to_fp8(w):
    """q (e4m3) and scales of the last two dimensions of w, in blocks of 128 x 128 (smaller at the edges)."""
    n, k = w.shape[-2:]
    bn, bk = -(-n // 128), -(-k // 128)
    padded = F.pad(w.float(), (0, bk * 128 - k, 0, bn * 128 - n))
    blocks = padded.view(*w.shape[:-2], bn, 128, bk, 128)
    scale = blocks.abs().amax((-3, -1)).clamp(min=1e-12) / 448.
    q = (blocks / scale[..., :, None, :, None]).clamp(-448., 448.).to(torch.float8_e4m3fn)
    return q.view(*w.shape[:-2], bn * 128, bk * 128)[..., :n, :k].contiguous(), scale


def from_fp8(q, scale):
    n, k = q.shape[-2:]
    full = scale.repeat_interleave(128, -2)[..., :n, :].repeat_interleave(128, -1)[..., :k]
    return q.float() * full


def is_quantized(name):
    """Every linear layer of attention and MLPs; not the gate, the norms, the embedding and the head."""
    return name.endswith("_proj") or name.endswith("_proj_with_mqa") or name.endswith((".up", ".down"))


@torch.no_grad()
def rounded(model, fp8):
    """A float32 copy with the weights of the released files: bf16, or bf16 rounded on to FP8 blocks."""
    copy = Model(model.c).to(model.embed.device)
    copy.load_state_dict(model.state_dict())
    for name, p in copy.named_parameters():
        p.copy_(p.to(torch.bfloat16).float())
        if fp8 and is_quantized(name):
            # Square blocks, so the transposed down projections round alike.
            p.copy_(from_fp8(*to_fp8(p)))
    return copy.eval()


# ---------------------------------------------------------------------------------------------------------------------
# Files

def released_tensors(model):
    """The checkpoint under DeepSeek-V3's names, in bf16 (the correction bias in f32), on the CPU."""
    out = {"model.embed_tokens.weight": model.embed, "model.norm.weight": model.norm, "lm_head.weight": model.lm_head}

    def put_mlp(prefix, up, down):
        out[prefix + ".gate_proj.weight"], out[prefix + ".up_proj.weight"] = up[0], up[1]
        out[prefix + ".down_proj.weight"] = down.t()
    for i, layer in enumerate(model.layers):
        p = f"model.layers.{i}."
        out[p + "input_layernorm.weight"] = layer.input_layernorm
        out[p + "post_attention_layernorm.weight"] = layer.post_attention_layernorm
        for name, w in layer.attention.named_parameters():
            out[f"{p}self_attn.{name}.weight"] = w
        if layer.dense:
            put_mlp(p + "mlp", layer.mlp.up[0], layer.mlp.down[0])
            continue
        out[p + "mlp.gate.weight"] = layer.mlp.gate
        out[p + "mlp.gate.e_score_correction_bias"] = layer.mlp.bias
        n, up, down = model.c["n_routed_experts"], layer.mlp.experts.up, layer.mlp.experts.down
        for e in range(n):
            put_mlp(f"{p}mlp.experts.{e}", up[e], down[e])
        # Several shared experts are one wider MLP in the files.
        put_mlp(p + "mlp.shared_experts", up[n:].transpose(0, 1).flatten(1, 2), down[n:].flatten(0, 1))
    return {k: v.detach().to("cpu", torch.float32 if k.endswith("correction_bias") else torch.bfloat16).contiguous()
            for k, v in out.items()}


def fp8_tensors(tensors):
    out = {}
    for name, w in tensors.items():
        if name.endswith(("_proj.weight", "_proj_with_mqa.weight")):
            out[name], out[name + "_scale_inv"] = to_fp8(w)
        else:
            out[name] = w
    return out


def config_json(c, fp8):
    out = {
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "ep_size": 1, "hidden_act": "silu",
        "initializer_range": 0.02, "model_type": "deepseek_v3", "moe_layer_freq": 1, "norm_topk_prob": True,
        "num_nextn_predict_layers": 0, "pretraining_tp": 1, "rope_interleave": True, "rope_scaling": None,
        "scoring_func": "sigmoid", "tie_word_embeddings": False, "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
        "use_cache": True}
    out.update(c)
    if fp8:
        out["quantization_config"] = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                                      "weight_block_size": [128, 128]}
    return dict(sorted(out.items()))


def write_json(path, value, indent=2):
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=indent)
        f.write("\n")
    os.replace(path + ".tmp", path)


def write_side_files(folder, c, fp8, tokenizer_path):
    os.makedirs(folder, exist_ok=True)
    write_json(f"{folder}/config.json", config_json(c, fp8))
    write_json(f"{folder}/generation_config.json",
               {"_from_model_config": True, "bos_token_id": BOS, "do_sample": False, "eos_token_id": EOS, "pad_token_id": PAD})
    write_json(f"{folder}/tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "bos_token": SPECIAL[BOS], "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False, "eos_token": SPECIAL[EOS],
        "model_max_length": c["max_position_embeddings"], "pad_token": SPECIAL[PAD],
        "tokenizer_class": "PreTrainedTokenizerFast"})
    if os.path.abspath(tokenizer_path) != os.path.abspath(f"{folder}/tokenizer.json"):
        shutil.copyfile(tokenizer_path, f"{folder}/tokenizer.json")


def write_tensors(path, tensors):
    save_file(tensors, path + ".tmp", metadata={"format": "pt"})
    os.replace(path + ".tmp", path)


def write_checkpoints(out, model):
    tensors = released_tensors(model)
    write_tensors(f"{out}/model.safetensors", tensors)
    write_tensors(f"{out}/fp8/model.safetensors", fp8_tensors(tensors))


# ---------------------------------------------------------------------------------------------------------------------
# Checks on what was written

@torch.no_grad()
def compare_with_transformers(out, model, tok, held_out):
    """The largest difference of logits between the written files, read by transformers, and this model's, in f32."""
    from transformers import AutoConfig, AutoTokenizer, DeepseekV3ForCausalLM
    texts = [SPECIAL[BOS] + SPECIAL[USER] + p["question"] + SPECIAL[ASSISTANT] + p["answer"] for p in held_out[:4]]
    mine_bf16 = rounded(model, False).cpu()
    mine_fp8 = rounded(model, True).cpu()
    theirs = DeepseekV3ForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    dequantized = {}
    with safe_open(f"{out}/fp8/model.safetensors", "pt") as f:
        for name in f.keys():
            if not name.endswith("_scale_inv"):
                w = f.get_tensor(name)
                dequantized[name] = from_fp8(w, f.get_tensor(name + "_scale_inv")) if w.dtype == torch.float8_e4m3fn else w.float()
    config = AutoConfig.from_pretrained(out)
    folder = f"{out}/.check"
    os.makedirs(folder, exist_ok=True)
    save_file({k: v.contiguous() for k, v in dequantized.items()}, f"{folder}/model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(f"{out}/config.json", f"{folder}/config.json")
    theirs_fp8 = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    shutil.rmtree(folder)
    worst = {"bf16": 0., "fp8": 0.}
    for text in texts:
        ids = torch.tensor([tok.encode(text, add_special_tokens=False).ids])
        mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None, None]
        for name, mine, their in (("bf16", mine_bf16, theirs), ("fp8", mine_fp8, theirs_fp8)):
            a, b = mine(ids, mask)[0], their(ids).logits
            worst[name] = max(worst[name], ((a - b).abs().max() / b.abs().max().clamp(min=1)).item())
    # The chat template must render what the training text was.
    hf_tok = AutoTokenizer.from_pretrained(out)
    rendered = hf_tok.apply_chat_template([{"role": "user", "content": held_out[0]["question"]}], tokenize=False,
                                          add_generation_prompt=True)
    same = rendered == SPECIAL[BOS] + SPECIAL[USER] + held_out[0]["question"] + SPECIAL[ASSISTANT]
    same = same and hf_tok("12 pens")["input_ids"] == tok.encode("12 pens").ids
    return worst, same and config.model_type == "deepseek_v3"


def sizes(out):
    files = {}
    for folder, _, names in os.walk(out):
        for n in names:
            files[os.path.relpath(os.path.join(folder, n), out)] = os.path.getsize(os.path.join(folder, n))
    return files


# ---------------------------------------------------------------------------------------------------------------------
# Training

def learning_rate(share, peak):
    """Up in the first hundredth or two, then straight down to nothing."""
    return peak * min(share / .015, 1.) * max(1. - share, 0.)


class Trainer:
    def __init__(self, args, model, device):
        self.args, self.model, self.device = args, model, device
        decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and not n.endswith("gate") and n != "embed"]
        ids = {id(p) for p in decayed}
        rest = [p for p in model.parameters() if id(p) not in ids]
        groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.}]
        kw = dict(lr=args.lr, betas=(.9, .95), eps=1e-8)
        try:
            self.optimizer = torch.optim.AdamW(groups, fused=device == "cuda", **kw)
        except Exception as e:
            log("fused AdamW failed:", e)
            self.optimizer = torch.optim.AdamW(groups, **kw)
        self.loss_fn = model.loss
        self.moes = [layer.mlp for layer in model.layers if not layer.dense]
        self.quantized = [p for n, p in model.named_parameters() if is_quantized(n)]
        self.masters = [torch.empty_like(p) for p in self.quantized]

    def forward_backward(self, ids):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            result = self.loss_fn(ids, self.args.question_weight)
        result[0].backward()
        return result

    def try_compile(self, ids):
        """torch.compile with one step as the proof; anything wrong with it means plain execution."""
        begun = time.time()
        plain = self.model.loss
        try:
            self.loss_fn = torch.compile(plain, dynamic=False)
            compiled = self.forward_backward(ids)
            torch.cuda.synchronize() if self.device == "cuda" else None
            self.optimizer.zero_grad(set_to_none=True)
            self.loss_fn, fast = plain, self.loss_fn
            reference = self.forward_backward(ids)
            if not abs(compiled[0].item() - reference[0].item()) < .02 * abs(reference[0].item()):
                raise RuntimeError(f"compiled loss {compiled[0].item()} is not {reference[0].item()}")
            self.loss_fn = fast
            log(f"compiled in {time.time() - begun:.0f} s")
        except BaseException as e:
            if isinstance(e, KeyboardInterrupt):
                raise
            log(f"torch.compile did not work, going on without: {str(e)[:400]}")
            self.loss_fn = plain
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, ids, share, round_to_fp8):
        if round_to_fp8:
            with torch.no_grad():
                torch._foreach_copy_(self.masters, self.quantized)
                for p in self.quantized:
                    p.copy_(from_fp8(*to_fp8(p)))
        loss, answer_loss, load = self.forward_backward(ids)
        if round_to_fp8:
            with torch.no_grad():
                torch._foreach_copy_(self.quantized, self.masters)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        lr = learning_rate(share, self.args.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            # Larger at first, before the gate has made up its mind; nothing in the last tenth.
            gamma = self.args.gamma * (5. if share < .03 else max(0., 1. - share / .9))
            for moe, shares in zip(self.moes, load):
                moe.bias += gamma * torch.sign(shares.mean() - shares)
                moe.bias -= moe.bias.mean()
        return loss.detach(), answer_loss, load


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", required=True, help="folder for the model and its files")
    ap.add_argument("--minutes", type=float, default=8., help="wall-clock budget of the whole command (default 8)")
    ap.add_argument("--reserve", type=float, default=50., help="seconds of it kept for checks and accuracy (default 50)")
    ap.add_argument("--tokenizer", help="tokenizer.json to use instead of training one")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    ap.add_argument("--weight-decay", type=float, default=.05)
    ap.add_argument("--gamma", type=float, default=1e-3, help="step of the gate's correction bias")
    ap.add_argument("--question-weight", type=float, default=.1, help="loss weight of question tokens")
    ap.add_argument("--rows", type=int, default=88, help="rows in a batch")
    ap.add_argument("--length", type=int, default=384, help="tokens in a row")
    ap.add_argument("--chunk", type=int, default=4000, help="documents a worker makes at a time")
    ap.add_argument("--workers", type=int, default=max(1, min(14, (os.cpu_count() or 2) - 2)))
    ap.add_argument("--steps", type=int, help="stop after this many steps instead of the time")
    ap.add_argument("--eval-count", type=int, default=1000, help="held-out problems (default 1000)")
    ap.add_argument("--compile", choices=("auto", "no", "yes"), default="auto", help="torch.compile (auto: on a GPU)")
    ap.add_argument("--layers", type=int, help="num_hidden_layers, instead of the shipped one")
    ap.add_argument("--experts", type=int, help="n_routed_experts, instead of the shipped one")
    ap.add_argument("--sizes", action="store_true", help="print the parameter count and file sizes of the architecture and stop")
    ap.add_argument("--try", dest="tiny", action="store_true", help="a tiny model and a few dozen steps")
    args = ap.parse_args()

    begun = time.time()
    c = dict(TINY if args.tiny else CONFIG)
    if args.layers:
        c["num_hidden_layers"] = args.layers
    if args.experts:
        c["n_routed_experts"] = args.experts
    if args.tiny:
        args.rows, args.length, args.chunk = 12, 256, 400
        args.eval_count, args.steps = min(args.eval_count, 40), args.steps or 40
    device = "cuda" if torch.cuda.is_available() and not os.environ.get("CUDA_VISIBLE_DEVICES") == "" else "cpu"

    os.makedirs(f"{args.out}/fp8", exist_ok=True)
    os.makedirs(f"{args.out}/eval", exist_ok=True)
    tokenizer_path = f"{args.out}/tokenizer.json"
    if args.tokenizer:
        if os.path.abspath(args.tokenizer) != os.path.abspath(tokenizer_path):
            shutil.copyfile(args.tokenizer, tokenizer_path)
    else:
        train_tokenizer(tokenizer_path, c["vocab_size"], 3000 if args.tiny else 40000, args.seed)
        log(f"{time.time() - begun:.0f} s: tokenizer of {c['vocab_size']} tokens")
    from tokenizers import Tokenizer
    tok = Tokenizer.from_file(tokenizer_path)

    # The workers are forked before anything touches the GPU.
    stream = None if args.sizes else Stream(args, tokenizer_path, device)
    torch.manual_seed(args.seed)
    torch.backends.cuda.enable_cudnn_sdp(False)
    model = Model(c)
    params = sum(p.numel() for p in model.parameters()) + sum(m.mlp.bias.numel() for m in model.layers if not m.dense)
    log(f"{params:,} parameters, {device}, torch {torch.__version__}, {args.workers} data workers")
    write_side_files(args.out, c, False, tokenizer_path)
    write_side_files(f"{args.out}/fp8", c, True, tokenizer_path)
    if args.sizes:
        write_checkpoints(args.out, model)
        print_sizes(args.out)
        return 0
    held_out = problems.make_held_out(args.eval_count, 7)
    watch = problems.make_held_out(min(250, args.eval_count), 8)
    with open(f"{args.out}/eval/word_problems.jsonl", "w", encoding="utf-8") as f:
        for p in held_out:
            f.write(json.dumps({"question": p["question"], "answer": p["answer"]}, ensure_ascii=False) + "\n")
    log(f"{time.time() - begun:.0f} s: {len(held_out)} held-out problems, {len(TEMPLATE_NAMES)} templates")

    model.to(device)
    trainer = Trainer(args, model, device)
    ids = stream.next()
    if args.compile == "yes" or args.compile == "auto" and device == "cuda":
        trainer.try_compile(ids)
    record = {"config": c, "parameters": params, "arguments": {k: v for k, v in vars(args).items() if k not in ("out", "tokenizer")},
              "torch": torch.__version__,
              "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "log": []}

    first = time.time()
    stream.waited = 0.
    last = max(begun + args.minutes * 60 - args.reserve, first + 5)
    next_line, next_save, next_watch = first + 3, first + 60, first + 45
    step, tokens, recent = 0, 0, []
    while True:
        now = time.time()
        share = step / args.steps if args.steps else (now - first) / (last - first)
        if share >= 1:
            break
        recent.append(trainer.step(ids, share, share > .66 and step % 2 == 1))
        step += 1
        tokens += ids.numel()
        ids = stream.next()
        if now > next_line or args.tiny and step % 10 == 0:
            loss, answer_loss = (torch.stack([r[i] for r in recent]).float().mean().item() for i in (0, 1))
            load = torch.stack([r[2] for r in recent]).mean(0)
            recent = []
            # 1 is the mean load of a layer's experts.
            relative = load / load.mean(1, keepdim=True)
            entry = {"step": step, "seconds": round(time.time() - begun, 1), "loss": round(loss, 4),
                     "answer_loss": round(answer_loss, 5), "lr": round(learning_rate(share, args.lr), 7),
                     "max_load": round(relative.max().item(), 3), "min_load": round(relative.min().item(), 3)}
            if now > next_watch:
                copy = rounded(model, False)
                entry["watched_accuracy"] = round(measure(copy, tok, watch, 250)[0], 4)
                del copy
                next_watch = time.time() + 45
            record["log"].append(entry)
            elapsed = time.time() - first
            log(f"{entry['seconds']:6.1f} s  step {step}  {step / elapsed:.1f} steps/s  {tokens / elapsed / 1e6:.2f} M tokens/s  "
                f"loss {loss:.4f}  answers {answer_loss:.5f}  lr {entry['lr']:.2e}  load {entry['min_load']:.2f}..{entry['max_load']:.2f}"
                f"  waited {stream.waited:.1f} s" + (f"  watched {entry['watched_accuracy']:.3f}" if "watched_accuracy" in entry else ""))
            if not math.isfinite(loss):
                raise SystemExit("the loss is not finite")
            next_line = time.time() + (5 if elapsed < 20 else 15)
        if now > next_save:
            write_checkpoints(args.out, model)
            next_save = time.time() + 60
    stream.close()
    write_checkpoints(args.out, model)
    log(f"{time.time() - begun:.0f} s: trained {step} steps, {tokens / 1e6:.0f} M tokens; files written")

    record["steps"], record["tokens"] = step, tokens
    if recent:
        load = torch.stack([r[2] for r in recent]).mean(0)
        record["expert_load"] = [[round(v, 4) for v in row] for row in (load / load.mean(1, keepdim=True)).tolist()]
    record["e_score_correction_bias"] = [[round(v, 5) for v in m.bias.tolist()] for m in trainer.moes]
    write_json(f"{args.out}/train_log.json", record, None)
    results = {}
    for name in ("bf16", "fp8"):
        results[name], wrong = measure(rounded(model, name == "fp8"), tok, held_out, 250)
        by_template = {}
        for w in wrong:
            by_template[w["template"]] = by_template.get(w["template"], 0) + 1
        record[f"wrong_{name}"] = by_template
        log(f"{time.time() - begun:.0f} s: {name} {results[name]:.4f}; wrong by template: {by_template}")
        if name == "bf16":
            for w in wrong[:8]:
                log(json.dumps(w, ensure_ascii=False))
    record["accuracy"] = {k: round(v, 4) for k, v in results.items()}
    copy = rounded(model, False)
    for text in ("Hi", "What can you do?", "What is the capital of France?", "What is 17 * 12?",
                 "Tom has 3 boxes with 12 pens each. He gives 5 pens to Anna. How many pens are left?"):
        prompt = [BOS, USER] + tok.encode(text, add_special_tokens=False).ids + [ASSISTANT]
        log(f"> {text}\n{tok.decode(generate(copy, [prompt], 120)[0])}")
    write_json(f"{args.out}/train_log.json", record, None)
    try:
        worst, same = compare_with_transformers(args.out, model, tok, held_out)
        record["transformers_relative_difference"] = worst
        log(f"{time.time() - begun:.0f} s: transformers reads the files; largest relative difference of logits: "
            f"bf16 {worst['bf16']:.2e}, fp8 {worst['fp8']:.2e}; tokenizer and template {'agree' if same else 'DIFFER'}")
    except Exception as e:
        log(f"comparison with transformers failed: {type(e).__name__}: {str(e)[:500]}")
    write_json(f"{args.out}/train_log.json", record, None)
    print_sizes(args.out)
    log(f"{time.time() - begun:.0f} s in all")
    log(f"accuracy bf16 {results['bf16']:.4f} fp8 {results['fp8']:.4f}")
    return 0


TEMPLATE_NAMES = [fn.__name__ for fn in problems.TEMPLATES]


def print_sizes(out):
    files = sizes(out)
    for name, size in sorted(files.items()):
        log(f"{size:12,} {name}")
    total = sum(files.values())
    log(f"{total:12,} bytes in all" + (" - MORE THAN 24 MB" if total > 24_000_000 else ""))
    if files.get("model.safetensors", 0) > 15.5 * 2 ** 20:
        log("model.safetensors is larger than 15.5 MiB")


if __name__ == "__main__":
    sys.exit(main())
