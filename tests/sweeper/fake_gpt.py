"""A trainer as the public ones are: settings by environment, all it says in a log, no contract.

Standard library only, and it imports nothing of this project: it is run from a copy.
"""

import os
import random
import sys
import time
import uuid
from pathlib import Path


class Hyperparameters:
    run_id = os.environ.get("RUN_ID", str(uuid.uuid4()))
    seed = int(os.environ.get("SEED", 1337))
    iterations = int(os.environ.get("ITERATIONS", 6))
    matrix_lr = float(os.environ.get("MATRIX_LR", 0.02))
    tie_embeddings = bool(int(os.environ.get("TIE_EMBEDDINGS", "1")))
    recur_layers = os.environ.get("RECUR_LAYERS", "4,5")
    data_path = os.environ.get("DATA_PATH", "./data/datasets/fineweb10B_sp1024")
    max_wallclock_seconds = float(os.environ.get("MAX_WALLCLOCK_SECONDS", 600.0))


FORM = os.environ.get("LOG_FORMAT", "b")
FAULT = os.environ.get("FAULT", "")
STEP_SECONDS = float(os.environ.get("STEP_SECONDS", 0.001))
RANK = int(os.environ.get("RANK", 0))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))
ERRORS = {
    "oom": "CUDA out of memory. Tried to allocate 2.00 GiB.",
    "nan": "loss is nan at step 3",
    "raise": "the cause",
    "space": "[Errno 28] No space left on device: 'final_model.pt'",
}


class OutOfMemoryError(RuntimeError):
    pass


def main() -> None:
    args = Hyperparameters()
    code = Path(__file__).read_text(encoding="utf-8")
    Path("logs").mkdir(exist_ok=True)

    def log(text: str, console: bool = True) -> None:
        if RANK == 0:
            if console:
                print(text)
            with open(f"logs/{args.run_id}.txt", "a", encoding="utf-8") as file:
                print(text, file=file)

    log(code, console=False)  # as the public ones do: the log embeds its script
    if FORM == "b":
        log("Hyperparameters:")
        for name in sorted(vars(Hyperparameters)):
            if not name.startswith("_"):
                log(f"  {name}: {getattr(args, name)}")
        log("train_shards: 80\nval_tokens: 45508608")
    else:
        log("train_loader:dataset:fineweb10B_sp1024 train_shards:80")
        log("val_loader:shards pattern=./data/fineweb_val_*.bin tokens:62021632")
        log(f"world_size:{WORLD_SIZE} grad_accum_steps:1\nseed:{args.seed}")
    for step in range(1, args.iterations + 1):
        time.sleep(STEP_SECONDS)
        if FAULT in ERRORS and step == 3 and RANK == WORLD_SIZE - 1:
            raise (OutOfMemoryError if FAULT == "oom" else RuntimeError)(ERRORS[FAULT])
        if FAULT == "hang" and step == 3:
            time.sleep(3600)
        spent, loss = 10.5 * step, 7.0 - step / 10
        if FORM == "b":
            log(f"{step}/{args.iterations} train_loss: {loss:.4f} train_time: 0.0m tok/s: 7873822")
        else:
            times = f"train_time:{spent:.0f}ms step_avg:{spent / step:.2f}ms"
            log(f"step:{step}/{args.iterations} train_loss:{loss:.4f} {times}")
    steps, spent = args.iterations, 10.5 * args.iterations
    bpb = float("nan") if FAULT == "nan_score" else 1.09 + args.matrix_lr + args.seed / 1e6
    if FORM == "b":
        log(f"{steps}/{steps} val_loss: 2.6403 val_bpb: 1.1476")
        log(f"stopping_early: wallclock_cap train_time: {spent:.0f}ms step: {steps}/{steps}")
    else:
        times = f"train_time:{spent:.0f}ms step_avg:10.50ms"
        log(f"step:{steps}/{steps} val_loss:2.6403 val_bpb:1.1476 {times}")
    log("peak memory allocated: 30208 MiB reserved: 30250 MiB")
    log("pre-quantization post-ema val_loss:2.52376302 val_bpb:1.09697079 eval_time:2023ms")
    model = random.Random(args.seed).randbytes(1_000 + args.seed)
    said = len(model) + (FAULT == "lies_of_model")
    size = len(code.encode("utf-8")) + (FAULT == "lies_of_code")
    if RANK == 0 and FAULT != "no_model":
        Path("final_model.pt").write_bytes(bytes(9_999))
        Path("final_model.int6.ptz").write_bytes(model)
    log(f"Serialized model: 9999 bytes\nCode size: {size} bytes")
    log(f"Total submission size: {9999 + size} bytes")
    log(f"Serialized model int6+brotli: {said} bytes")
    log(f"Total submission size int6+brotli: {said + size} bytes")
    log("final_int6_roundtrip val_loss:2.55478637 val_bpb:1.11045530 eval_time:7939ms")
    if FAULT != "no_score":
        log(f"final_int6_sliding_window val_loss:2.51219162 val_bpb:{bpb:.8f} eval_time:75566ms")
    print("done", *sys.argv[1:], file=sys.stderr)


if __name__ == "__main__":
    main()
