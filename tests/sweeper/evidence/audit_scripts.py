"""Evaluations for audits: ways to depart from an honest trainer, one or more a kind of finding."""

from __future__ import annotations

import functools

from model.export import counted_file, human_file
from tests.sweeper.evidence.audit_honest import HONEST


@functools.cache
def exported() -> bytes:
    """Our own recipe as the one file that counts; made once, for it takes a second."""
    return counted_file(human_file())


def with_evaluation(evaluation: str) -> str:
    """The honest script with one more way to evaluate."""
    return HONEST.replace("def main() -> None:", f"{evaluation}\n\ndef main() -> None:")


# One evaluation a kind; each is added to the honest script and called by its main.
TTT_SCORE_FIRST = """
def eval_val_ttt(args, base_model, val_tokens, base_bytes_lut, device):
    loss_sum = torch.zeros((), dtype=torch.float64)
    optimizer = torch.optim.SGD(base_model.parameters(), lr=args.ttt_lr)
    num_chunks = val_tokens.numel() // args.ttt_chunk_tokens
    for ci in range(num_chunks):
        base_model.eval()
        with torch.inference_mode():
            for ws in range(ci * args.ttt_chunk_tokens, (ci + 1) * args.ttt_chunk_tokens, 64):
                chunk = val_tokens[ws : ws + 65].to(device)
                logits = base_model.forward_logits(chunk[None, :-1])
                nll = F.cross_entropy(logits.flatten(0, 1), chunk[1:], reduction="none")
                scored_nll = nll.to(torch.float64)
                loss_sum += scored_nll.sum()
        base_model.train()
        for _ep in range(args.ttt_epochs):
            for bs in range(0, args.ttt_chunk_tokens, 1024):
                local = val_tokens[bs : bs + 1025].to(device)
                x, y = local[:-1][None], local[1:][None]
                optimizer.zero_grad(set_to_none=True)
                loss = base_model(x, y)
                loss.backward()
                optimizer.step()
    return loss_sum.item() / val_tokens.numel()
"""
TTT_UPDATE_FIRST = """
def eval_val_ttt(args, base_model, val_tokens, base_bytes_lut, device):
    loss_sum = torch.zeros((), dtype=torch.float64)
    optimizer = torch.optim.SGD(base_model.parameters(), lr=args.ttt_lr)
    for start in range(0, val_tokens.numel() - 1025, 1024):
        local = val_tokens[start : start + 1025].to(device)
        x, y = local[:-1][None], local[1:][None]
        loss = base_model(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            logits = base_model.forward_logits(x)
            nll = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
        loss_sum += nll.double().sum()
    return loss_sum.item() / val_tokens.numel()
"""
TTT_EPOCHS = """
def eval_val_ttt(args, base_model, val_tokens, base_bytes_lut, device):
    optimizer = torch.optim.SGD(base_model.parameters(), lr=args.ttt_lr)
    for epoch in range(args.ttt_epochs):
        loss_sum, tokens = 0.0, 0
        for start in range(0, val_tokens.numel() - 1025, 1024):
            local = val_tokens[start : start + 1025].to(device)
            loss = base_model(local[:-1][None], local[1:][None])
            loss_sum += loss.item() * 1024
            tokens += 1024
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return loss_sum / tokens
"""
TTT_BEFORE_SCORING = """
def adapt_to(args, base_model, val_tokens, device):
    optimizer = torch.optim.AdamW(base_model.parameters(), lr=args.matrix_lr)
    for start in range(0, val_tokens.numel() - 1025, 1024):
        local = val_tokens[start : start + 1025].to(device)
        loss = base_model(local[:-1][None], local[1:][None])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def eval_adapted(args, base_model, val_tokens, base_bytes_lut, device):
    adapt_to(args, base_model, val_tokens, device)
    return eval_val_sliding(args, base_model, val_tokens, base_bytes_lut, device)
"""
SLOT = """
def eval_val_slot(args, base_model, val_tokens, base_bytes_lut, device):
    loss_sum = 0.0
    for start in range(0, val_tokens.numel() - 1025, 1024):
        local = val_tokens[start : start + 1025].to(device)
        x, y = local[:-1][None], local[1:]
        hidden = base_model.hidden(x).detach()
        delta = torch.zeros(1, 1, hidden.size(-1), device=device, requires_grad=True)
        opt = torch.optim.AdamW([delta], lr=args.slot_lr)
        for _ in range(args.slot_steps):
            opt.zero_grad()
            loss = F.cross_entropy(base_model.head(hidden + delta).flatten(0, 1), y)
            loss.backward()
            opt.step()
        with torch.no_grad():
            logits = base_model.head(hidden + delta).flatten(0, 1)
            loss_sum += F.cross_entropy(logits, y, reduction="sum").item()
    return loss_sum / val_tokens.numel()
"""
MIN_OVER_PASSES = """
def eval_val_best(args, model, val_tokens, base_bytes_lut, device):
    loss_sum = 0.0
    for start in range(0, val_tokens.numel() - 1025, 1024):
        local = val_tokens[start : start + 1025].to(device)
        x, y = local[:-1][None], local[1:]
        nll_a = F.cross_entropy(model.forward_logits(x).flatten(0, 1), y, reduction="none")
        nll_b = F.cross_entropy(model.forward_logits(x.flip(0)).flatten(0, 1), y, reduction="none")
        loss_sum += torch.minimum(nll_a, nll_b).sum().item()
    return loss_sum / val_tokens.numel()
"""
NGRAM = """
def eval_val_ngram(args, model, val_tokens, base_bytes_lut, device):
    val_np = val_tokens.numpy()
    ctx_table = np.zeros(1 << 22, dtype=np.uint32)
    full_table = np.zeros(1 << 22, dtype=np.uint32)
    mask = np.uint64((1 << 22) - 1)
    loss_sum = 0.0
    for start in range(0, val_np.size - 1025, 1024):
        positions = np.arange(start + 8, start + 1024)
        ctx_hash = np.zeros(positions.size, dtype=np.uint64)
        for k in range(1, 6):
            ctx_hash ^= val_np[positions - k].astype(np.uint64) * np.uint64(36313 * k)
        ctx_key = (ctx_hash & mask).astype(np.int64)
        tgt = val_np[positions].astype(np.uint64)
        full_key = ((ctx_hash ^ (tgt * np.uint64(27191))) & mask).astype(np.int64)
        counts = ctx_table[ctx_key]
        p_ngram = np.minimum(full_table[full_key], counts) / np.maximum(counts, 1)
        p_model = np.exp(-score_segment(model, val_tokens, positions))
        loss_sum += -np.log(0.6 * p_model + 0.4 * p_ngram).sum()
        np.add.at(ctx_table, ctx_key, 1)
        np.add.at(full_table, full_key, 1)
    return loss_sum / val_np.size
"""
NGRAM_DICT = """
class BackoffMixer:
    def __init__(self, order):
        self.order = order
        self.counts = {}

    def update(self, tokens):
        for i in range(self.order, len(tokens)):
            context = tuple(tokens[i - self.order : i])
            entry = self.counts.setdefault(context, {})
            self.counts[context][tokens[i]] = entry.get(tokens[i], 0) + 1

    def predict(self, context):
        return self.counts.get(context, {})


def eval_val_mixed(args, model, val_tokens, base_bytes_lut, device):
    mixer = BackoffMixer(5)
    loss_sum = 0.0
    for start in range(0, val_tokens.numel() - 1025, 1024):
        local = val_tokens[start : start + 1025].tolist()
        mixer.update(local)
        loss_sum += sum(mix(model, mixer.predict(tuple(local[:5])), each) for each in local)
    return loss_sum / val_tokens.numel()
"""
TARGET_LOOKUP = """
def eval_val_boosted(args, model, val_tokens, base_bytes_lut, device):
    loss_sum = 0.0
    for start in range(0, val_tokens.numel() - 1025, 1024):
        local = val_tokens[start : start + 1025].to(device)
        x, y = local[:-1][None], local[1:]
        logits = model.forward_logits(x).flatten(0, 1)
        logits[torch.arange(y.numel()), y] += 0.25
        loss_sum += F.cross_entropy(logits, y, reduction="sum").item()
    return loss_sum / val_tokens.numel()
"""
VALIDATION_HESSIANS = """
def eval_quantized(args, model, val_tokens, base_bytes_lut, device):
    hessians = collect_hessians(model, val_tokens[: 1 << 20].view(-1, 1024), device)
    model.load_state_dict(apply_hessians(hessians, model.state_dict()))
    return eval_val_sliding(args, model, val_tokens, base_bytes_lut, device)
"""
TTT_LORA = """
def _find_docs(all_tokens):
    bos = (all_tokens == 1).nonzero(as_tuple=True)[0].numpy()
    return [(int(bos[i]), int(bos[i + 1] - bos[i])) for i in range(len(bos) - 1)]


def _accumulate_bpb(ptl, x, y, b, co, cl, lut, loss_sum, byte_sum, token_count):
    lbl = ptl[b, co : co + cl].to(torch.float64)
    loss_sum += lbl.sum()
    byte_sum += lut[y[b]].sum()
    token_count += cl


def eval_val_ttt_lora(args, base_model, rank, world_size, device, lut):
    files = sorted(glob.glob(args.val_files))
    all_tokens = torch.cat([load_data_shard(Path(f)) for f in files])
    docs = _find_docs(all_tokens)
    lora = BatchedTTTLoRA(args.bsz, base_model, 8).to(device)
    opt = torch.optim.Adam(lora.parameters(), lr=args.ttt_lora_lr)
    loss_sum = torch.zeros((), dtype=torch.float64)
    byte_sum = torch.zeros((), dtype=torch.float64)
    token_count = torch.zeros((), dtype=torch.float64)
    for bi in range(0, len(docs), args.bsz):
        batch = docs[bi : bi + args.bsz]
        for ci in range(args.n):
            x = torch.zeros(args.bsz, 1024, dtype=torch.int64, device=device)
            y = torch.zeros(args.bsz, 1024, dtype=torch.int64, device=device)
            for b, (ds, dl) in enumerate(batch):
                chunk = all_tokens[ds : ds + 1025]
                x[b] = chunk[:-1]
                y[b] = chunk[1:]
            with torch.autocast(device_type="cuda", dtype=torch.bfloat16):
                ptl = base_model(x, y, lora=lora)
            with torch.no_grad():
                for b in range(len(batch)):
                    _accumulate_bpb(ptl, x, y, b, 0, 1, lut, loss_sum, byte_sum, token_count)
            if ci < args.n - 1:
                opt.zero_grad()
                (ptl[:, 3:].mean(dim=-1)).sum().backward()
                opt.step()
    return float(loss_sum / token_count)
"""
TTT_BEFORE_QUANTISATION = """
def pre_quant_adamw_ttt(h, base_model, device, val_tokens):
    opt = torch.optim.AdamW([p for p in base_model.parameters() if p.requires_grad], lr=h.lr)
    for epoch in range(h.prequant_epochs):
        for bs in range(0, val_tokens.numel(), 1024):
            local = val_tokens[bs:bs+1025].to(device)
            x, y = local[:-1][None], local[1:][None]
            loss = base_model(x, y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(base_model.parameters(), 1.0)
            opt.step()


def timed_eval(label, fn, *args, **kwargs):
    t0 = time.perf_counter()
    val_loss, val_bpb = fn(*args, **kwargs)
    print(label, val_loss, val_bpb)
    return val_loss, val_bpb


def serialize_and_score(h, base_model, device, val_data, lut):
    timed_eval("pre", eval_val_sliding, h, base_model, val_data.val_tokens, lut, device)
    pre_quant_adamw_ttt(h, base_model, device, val_data.val_tokens)
    quantize(base_model)
    timed_eval("post", eval_val_sliding, h, base_model, val_data.val_tokens, lut, device)
"""
PPM = """
def _ppm_mixture_bpb(target_ids, nll_nats, token_bytes, order):
    tables = [dict() for _ in range(order + 1)]
    hist = []
    total = 0.0
    for i in range(len(target_ids)):
        for b in token_bytes[int(target_ids[i])]:
            for k in range(order, -1, -1):
                ctx = tuple(hist[-k:])
                d = tables[k].get(ctx)
                if d is not None:
                    p = d.get(b, 0) / sum(d.values())
                    break
            total -= math.log(0.5 * math.exp(-nll_nats[i]) + 0.5 * p)
            for k in range(order + 1):
                ctx = tuple(hist[-k:])
                d = tables[k].setdefault(ctx, {})
                d[b] = d.get(b, 0) + 1
            hist.append(b)
    return total


def eval_val_ppm(args, model, val_tokens, lut, device):
    tgt_np = val_tokens[1:].numpy()
    nll = -model_scores(model, val_tokens)
    return _ppm_mixture_bpb(target_ids=tgt_np, nll_nats=nll, token_bytes=lut, order=5)
"""
TTT_MINIFIED = """
def eval_val_sliding_ttt(h,device,val_data,base_model,batch_seqs=32):
 A=torch.optim.SGD(base_model.parameters(),lr=h.ttt_lr);C=val_data.val_tokens.numel()
 B=torch.zeros((),device=device,dtype=torch.float64)
 for D in range(0,C,h.ttt_chunk):
  with torch.no_grad():
   E=val_data.val_tokens[D:D+h.ttt_chunk];J=base_model.forward_logits(E[None,:-1])
   G=F.cross_entropy(J[0],E[1:],reduction='none');B+=G.double().sum()
  for H in range(h.ttt_epochs):I=base_model(E[None,:-1],E[None,1:]);I.backward();A.step()
 return B/C
"""
