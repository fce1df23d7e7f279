"""A README as people write them: commands of several kinds, and what only looks like one."""

PUBLIC = """
# Something

Prose with `torchrun train_gpt.py` in it is no command.

```bash
pip install -r requirements.txt
export DATA_PATH=./data/x  TOKENIZER_PATH="${TOKENS:-./tok en.model}"
$ RUN_ID=base MATRIX_LR=0.02 torchrun --standalone --nproc_per_node=8 train_gpt.py > log.txt
for SEED in 1 2; do
  SEED=$SEED MATRIX_LR=0.04 ITERATIONS=9 \\
  QUITE_OTHER=1 NCCL_DEBUG=WARN \\
  torchrun --standalone --nproc-per-node 4 records/a/train_gpt.py --flag 2>&1 | tee "t.log"
done
python3 -m torch.distributed.run --nproc_per_node=gpu train_gpt.py && python train_gpt.py
python eval.py train_gpt.py; cat train_gpt.py; python -m compileall train_gpt.py
```
It's not a 'shell here:
~~~
it's prose
MATRIX_LR=0.9 python3.11 train_gpt.py
"""
