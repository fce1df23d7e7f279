"""An honest trainer, laid out as public ones are: what audits and smoke tests begin with."""

from __future__ import annotations

HONEST = """
import glob
import io
import math
import os
import random
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class Hyperparameters:
    data_path = os.environ.get("DATA_PATH", "./data/datasets/fineweb10B_sp1024")
    train_files = os.path.join(data_path, "fineweb_train_*.bin")
    val_files = os.path.join(data_path, "fineweb_val_*.bin")
    seed = int(os.environ.get("SEED", 1337))
    iterations = int(os.environ.get("ITERATIONS", 20000))
    train_batch_tokens = int(os.environ.get("TRAIN_BATCH_TOKENS", 524_288))
    train_seq_len = int(os.environ.get("TRAIN_SEQ_LEN", 1024))
    eval_stride = int(os.environ.get("EVAL_STRIDE", 64))
    vocab_size = int(os.environ.get("VOCAB_SIZE", 1024))
    num_layers = int(os.environ.get("NUM_LAYERS", 3))
    num_kv_heads = int(os.environ.get("NUM_KV_HEADS", 2))
    model_dim = int(os.environ.get("MODEL_DIM", 64))
    num_heads = int(os.environ.get("NUM_HEADS", 4))
    mlp_mult = int(os.environ.get("MLP_MULT", 2))
    logit_softcap = float(os.environ.get("LOGIT_SOFTCAP", 30.0))
    matrix_lr = float(os.environ.get("MATRIX_LR", 0.04))


def load_data_shard(file: Path) -> Tensor:
    header = np.fromfile(file, dtype="<i4", count=256)
    tokens = np.fromfile(file, dtype="<u2", count=int(header[2]), offset=1024)
    return torch.from_numpy(tokens.astype(np.uint16, copy=False))


class TokenStream:
    def __init__(self, pattern: str, seed: int):
        self.files = [Path(p) for p in sorted(glob.glob(pattern))]
        random.Random(seed).shuffle(self.files)
        self.at = 0
        self.tokens = load_data_shard(self.files[0])

    def take(self, n: int) -> Tensor:
        if self.at + n > self.tokens.numel():
            self.files.append(self.files.pop(0))
            self.tokens, self.at = load_data_shard(self.files[0]), 0
        chunk = self.tokens[self.at : self.at + n]
        self.at += n
        return chunk


class DistributedTokenLoader:
    def __init__(self, pattern: str, seed: int, device: torch.device):
        self.stream = TokenStream(pattern, seed)
        self.device = device

    def next_batch(self, tokens: int, seq_len: int) -> tuple[Tensor, Tensor]:
        local = self.stream.take(tokens + 1).to(dtype=torch.int64)
        x = local[:-1].reshape(-1, seq_len)
        y = local[1:].reshape(-1, seq_len)
        return x.to(self.device), y.to(self.device)


class CastedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class CausalSelfAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, num_kv_heads: int):
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim = dim // num_heads
        kv_dim = num_kv_heads * self.head_dim
        self.c_q = CastedLinear(dim, dim, bias=False)
        self.c_k = CastedLinear(dim, kv_dim, bias=False)
        self.c_v = CastedLinear(dim, kv_dim, bias=False)
        self.proj = CastedLinear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q = self.c_q(x).reshape(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.c_k(x).reshape(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.c_v(x).reshape(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.proj(y.transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, mlp_mult: int):
        super().__init__()
        self.attn = CausalSelfAttention(dim, num_heads, num_kv_heads)
        self.fc = CastedLinear(dim, mlp_mult * dim, bias=False)
        self.out = CastedLinear(mlp_mult * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(F.rms_norm(x, (x.size(-1),)))
        return x + self.out(torch.relu(self.fc(F.rms_norm(x, (x.size(-1),)))).square())


class GPT(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        num_layers: int,
        model_dim: int,
        num_heads: int,
        num_kv_heads: int,
        mlp_mult: int,
        logit_softcap: float,
    ):
        super().__init__()
        self.logit_softcap = logit_softcap
        self.tok_emb = nn.Embedding(vocab_size, model_dim)
        self.blocks = nn.ModuleList(
            [Block(model_dim, num_heads, num_kv_heads, mlp_mult) for _ in range(num_layers)]
        )

    def forward_logits(self, input_ids: Tensor) -> Tensor:
        x = F.rms_norm(self.tok_emb(input_ids), (self.tok_emb.embedding_dim,))
        for block in self.blocks:
            x = block(x)
        raw = F.linear(F.rms_norm(x, (x.size(-1),)), self.tok_emb.weight)
        return self.logit_softcap * torch.tanh(raw.float() / self.logit_softcap)

    def forward(self, input_ids: Tensor, target_ids: Tensor) -> Tensor:
        logits = self.forward_logits(input_ids)
        return F.cross_entropy(logits.flatten(0, 1), target_ids.flatten())


def load_validation_tokens(pattern: str) -> Tensor:
    return torch.cat([load_data_shard(Path(p)) for p in sorted(glob.glob(pattern))])


def eval_val_sliding(args, model, val_tokens, base_bytes_lut, device) -> tuple[float, float]:
    seq_len, stride = args.train_seq_len, args.eval_stride
    total = val_tokens.numel() - 1
    loss_sum = torch.zeros((), dtype=torch.float64)
    token_count = torch.zeros((), dtype=torch.float64)
    byte_count = torch.zeros((), dtype=torch.float64)
    model.eval()
    with torch.inference_mode():
        for ws in range(0, total, stride):
            end = min(ws + seq_len, total)
            chunk = val_tokens[ws : end + 1].to(dtype=torch.int64, device=device)
            x, y = chunk[:-1][None], chunk[1:][None]
            logits = model.forward_logits(x)
            nll = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
            s = 0 if ws == 0 else max(end - ws - stride, 0)
            loss_sum += nll[s:].to(torch.float64).sum()
            token_count += float(end - ws - s)
            byte_count += base_bytes_lut[y[0, s:]].to(torch.float64).sum()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(loss_sum)
    val_loss = (loss_sum / token_count).item()
    model.train()
    return val_loss, val_loss / math.log(2.0) * (token_count.item() / byte_count.item())


def collect_hessians(model, batches, device) -> dict[str, Tensor]:
    hessians: dict[str, Tensor] = {}

    def watch(name):
        def hook(module, inputs, output):
            flat = inputs[0].flatten(0, -2).float()
            hessians[name] = hessians.get(name, 0) + flat.T @ flat

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, CastedLinear)
    ]
    with torch.no_grad():
        for x in batches:
            model.forward_logits(x)
    for handle in handles:
        handle.remove()
    return hessians


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    best_err, best = float("inf"), None
    for percentile in (0.999, 0.9999, 1.0):
        scale = torch.quantile(weight.abs(), percentile, dim=1) / 31
        q = torch.clamp(torch.round(weight / scale[:, None]), -31, 31)
        err = (weight - q * scale[:, None]).pow(2).mean().item()
        if err < best_err:
            best_err, best = err, (q.to(torch.int8), scale)
    return best


def main() -> None:
    code = Path(__file__).read_text(encoding="utf-8")
    args = Hyperparameters()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.manual_seed(args.seed)
    val_tokens = load_validation_tokens(args.val_files)
    base_bytes_lut = torch.ones(args.vocab_size, dtype=torch.int16)
    model = GPT(
        vocab_size=args.vocab_size,
        num_layers=args.num_layers,
        model_dim=args.model_dim,
        num_heads=args.num_heads,
        num_kv_heads=args.num_kv_heads,
        mlp_mult=args.mlp_mult,
        logit_softcap=args.logit_softcap,
    ).to(device)
    optimizers = [torch.optim.Adam(model.parameters(), lr=args.matrix_lr)]
    train_loader = DistributedTokenLoader(args.train_files, args.seed, device)
    for step in range(args.iterations):
        if step % 1000 == 0:
            val_loss, val_bpb = eval_val_sliding(args, model, val_tokens, base_bytes_lut, device)
            print(f"step:{step}/{args.iterations} val_loss:{val_loss:.4f} val_bpb:{val_bpb:.4f}")
        x, y = train_loader.next_batch(args.train_batch_tokens, args.train_seq_len)
        loss = model(x, y)
        loss.backward()
        for opt in optimizers:
            opt.step()
            opt.zero_grad(set_to_none=True)
    batches = [train_loader.next_batch(args.train_batch_tokens, args.train_seq_len)[0]]
    hessians = collect_hessians(model, batches, device)
    print(len(hessians))
    packed = {name: quantize(p) for name, p in model.named_parameters()}
    buffer = io.BytesIO()
    torch.save(packed, buffer)
    Path("final_model.int6.ptz").write_bytes(zlib.compress(buffer.getvalue(), 9))
    code_bytes = len(code.encode("utf-8"))
    print(f"Total submission size: {code_bytes + os.path.getsize('final_model.int6.ptz')} bytes")
    with open("final_model.int6.ptz", "rb") as f:
        state = torch.load(io.BytesIO(zlib.decompress(f.read())), map_location="cpu")
    model.load_state_dict({name: q * s[:, None] for name, (q, s) in state.items()})
    val_loss, val_bpb = eval_val_sliding(args, model, val_tokens, base_bytes_lut, device)
    print(f"final_int6_sliding_window val_loss:{val_loss:.8f} val_bpb:{val_bpb:.8f}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
"""
