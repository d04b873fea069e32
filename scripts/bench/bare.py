"""A script as anybody would write it: `python bare.py MODEL` imports what it needs, loads the model, takes one step."""

from __future__ import annotations

import os
import socket
import sys

import deepspeed
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler


def main() -> None:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    os.environ.update(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    # As our runs: without it DeepSpeed builds an operator that nobody calls, or waits for a stale lock of its build.
    vars(deepspeed.ops).setdefault('__compatible_ops__', {})['deepspeed_shm_comm'] = False
    deepspeed.init_distributed(dist_backend='gloo', verbose=False)
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    config = {'train_micro_batch_size_per_gpu': 1, 'train_batch_size': 1, 'gradient_clipping': 1.0}
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=lambda base: get_scheduler('constant', base),
        config=config,
        dist_init_required=False,
    )
    ids = tokenizer('one step over a short text', return_tensors='pt')['input_ids']
    engine.backward(engine(input_ids=ids, labels=ids, use_cache=False).loss)
    engine.step()
    sys.stderr.write('step 1/1\n')


if __name__ == '__main__':
    main()
