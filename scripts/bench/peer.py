"""One measured run of TRL's SFTTrainer on the same model, rows and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.bench.measure import StepClock


def train(model_folder: Path, rows: list[dict[str, Any]], batch: int, steps: int, frozen: tuple[str, ...]) -> StepClock:
    """Trains on `rows` in their order and returns the clock.

    Its defaults stay but for what both sides share: float32, plain AdamW, no gradient checkpointing, the learning
    rate, and the loss on the answers alone. Parameters whose names start with one of `frozen` are frozen.
    """
    import transformers
    from datasets import Dataset, Image
    from trl import SFTConfig, SFTTrainer

    clock = StepClock()

    class Watch(transformers.TrainerCallback):
        """Looks at the clock after each step."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.mark()

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if 'loss' in logs:
                clock.losses.append(float(logs['loss']))

    image = 'image' in rows[0]
    columns: dict[str, list[Any]] = {
        'prompt': [row['messages'][:-1] for row in rows],
        'completion': [row['messages'][-1:] for row in rows],
    }
    if image:
        columns['images'] = [[row['image']] for row in rows]
    data = Dataset.from_dict(columns)
    if image:
        data = data.cast_column('images', [Image()])
    auto = transformers.AutoModelForImageTextToText if image else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(model_folder, dtype='float32', attn_implementation='sdpa')
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    trainer = SFTTrainer(
        model=model,
        train_dataset=data,
        processing_class=transformers.AutoProcessor.from_pretrained(model_folder) if image else None,
        callbacks=[Watch()],
        args=SFTConfig(
            output_dir=str(model_folder.parent / 'peer'),
            per_device_train_batch_size=batch,
            max_steps=steps,
            max_length=None if image else 4096,
            gradient_accumulation_steps=1,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            optim='adamw_torch',
            learning_rate=1e-4,
            lr_scheduler_type='constant',
            train_sampling_strategy='sequential',
            dataloader_num_workers=0,
            logging_steps=1,
            save_strategy='no',
            report_to='none',
            disable_tqdm=True,
        ),
    )
    trainer.train()
    return clock
