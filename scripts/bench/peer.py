"""Measured runs of TRL's trainers on the same model, rows and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.bench.measure import StepClock, cpu_seconds
from scripts.bench.ours_online import Given

MODULES = (
    'trl.trainer.sft_trainer',
    'trl.trainer.dpo_trainer',
    'trl.trainer.reward_trainer',
    'trl.trainer.grpo_trainer',
)
SHARED = {
    'gradient_accumulation_steps': 1,
    'gradient_checkpointing': False,
    'bf16': False,
    'use_cpu': True,
    'optim': 'adamw_torch',
    'learning_rate': 1e-4,
    'lr_scheduler_type': 'constant',
    'dataloader_num_workers': 0,
    'logging_steps': 1,
    'save_strategy': 'no',
    'report_to': 'none',
    'disable_tqdm': True,
}
"""What both sides share; the rest are the defaults of the trainer."""


def train(
    algorithm: str, model_folder: Path, rows: list[dict[str, Any]], batch: int, steps: int, frozen: tuple[str, ...]
) -> StepClock:
    """Trains on `rows` in their order and returns the clock.

    The loss is on the answers alone. Parameters whose names start with one of `frozen` are frozen.
    """
    import transformers
    import trl
    from datasets import Dataset, Image

    clock = StepClock()
    image = 'image' in rows[0]
    auto = transformers.AutoProcessor if image else transformers.AutoTokenizer
    processing = auto.from_pretrained(model_folder)
    data = Dataset.from_dict(_columns(algorithm, rows, processing))
    if image:
        data = data.cast_column('images', [Image()])
    trainer_type, config_type = {
        'sft': (trl.SFTTrainer, trl.SFTConfig),
        'dpo': (trl.DPOTrainer, trl.DPOConfig),
        'rm': (trl.RewardTrainer, trl.RewardConfig),
    }[algorithm]
    trainer = trainer_type(
        model=_frozen(_model(algorithm, model_folder, image), frozen),
        train_dataset=data,
        processing_class=processing,
        callbacks=[_watch(clock, whole=True)],
        args=config_type(
            output_dir=str(model_folder.parent / 'peer'),
            per_device_train_batch_size=batch,
            max_steps=steps,
            max_length=None if image else 4096,
            train_sampling_strategy='sequential',
            **SHARED,
        ),
    )
    trainer.train()
    return clock


def update(
    model_folder: Path, rows: list[dict[str, Any]], given: Given, steps: int, frozen: tuple[str, ...]
) -> StepClock:
    """Trains by GRPO on the same responses to the prompts of all `rows` in each step, and returns the clock.

    It runs from a batch that lies ready to the end of the optimizer's step; log-probabilities from before the update
    are not asked for, since it is the first one after the rollout.
    """
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from PIL import Image

    clock, processing = StepClock(), transformers.AutoProcessor.from_pretrained(model_folder)
    columns = _columns('dpo', rows, processing)
    images = [[Image.open(path).convert('RGB') for path in paths] for paths in columns['images']]
    how = {'padding': True, 'padding_side': 'left', 'add_special_tokens': False, 'return_tensors': 'pt'}
    prompts = processing(images=images, text=list(columns['prompt']), **how)
    count = len(given.ids)
    scores = torch.tensor(given.scores)
    advantages = (scores - scores.mean()) / (scores.std() + 1e-4)
    completions = torch.tensor(given.ids).repeat(len(rows), 1)
    batch = {
        'prompt_ids': prompts['input_ids'].repeat_interleave(count, 0),
        'prompt_mask': prompts['attention_mask'].repeat_interleave(count, 0),
        'completion_ids': completions,
        'completion_mask': torch.ones_like(completions),
        'advantages': advantages.repeat(len(rows)),
        'num_items_in_batch': torch.tensor(completions.numel()),
        'pixel_values': prompts['pixel_values'].repeat_interleave(count, 0),
        'num_images': [1] * len(completions),
    }

    class Prepared(trl.GRPOTrainer):
        """Trains on the batch in place of generations."""

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            return dict(batch)

    trainer = Prepared(
        model=_frozen(_model('grpo', model_folder, image=True), frozen),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_dict({'prompt': ['' for _ in rows]}),
        processing_class=processing,
        callbacks=[_watch(clock, whole=False)],
        args=trl.GRPOConfig(
            output_dir=str(model_folder.parent / 'peer'),
            per_device_train_batch_size=len(completions),
            num_generations=count,
            max_completion_length=completions.shape[1],
            loss_type='grpo',
            max_steps=steps,
            **SHARED,
        ),
    )
    trainer.train()
    return clock


def online(
    model_folder: Path, rows: list[dict[str, Any]], generations: int, new_tokens: int, beta: float, steps: int
) -> StepClock:
    """Trains by GRPO on responses that its model generates to the prompts of all `rows`, and returns the clock."""
    import transformers
    import trl
    from datasets import Dataset

    clock, processing = StepClock(), transformers.AutoTokenizer.from_pretrained(model_folder)
    trainer = trl.GRPOTrainer(
        model=_model('grpo', model_folder, image=False),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_dict({'prompt': list(_columns('dpo', rows, processing)['prompt'])}),
        processing_class=processing,
        callbacks=[_watch(clock, whole=True)],
        args=trl.GRPOConfig(
            output_dir=str(model_folder.parent / 'peer'),
            per_device_train_batch_size=len(rows) * generations,
            num_generations=generations,
            max_completion_length=new_tokens,
            beta=beta,
            loss_type='grpo',
            max_steps=steps,
            **SHARED,
        ),
    )
    trainer.train()
    return clock


def _watch(clock: StepClock, whole: bool) -> Any:
    """A callback that looks at the clock after each step: at the `whole` of it, or from its batch on."""
    import transformers

    class Watch(transformers.TrainerCallback):
        """Looks at the clock."""

        began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = cpu_seconds()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if whole:
                clock.mark()
            else:
                clock.spend(cpu_seconds() - self.began)

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if 'loss' in logs:
                clock.losses.append(float(logs['loss']))
                clock.norms.append(float(logs['grad_norm']))

    return Watch()


def _frozen(model: Any, prefixes: tuple[str, ...]) -> Any:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(prefixes))
    return model


def _columns(algorithm: str, rows: list[dict[str, Any]], processing: Any) -> dict[str, list[Any]]:
    """The rows as texts in TRL's columns, rendered by the template of the checkpoint.

    Conversations would leave its trainers with other tokens than ours: without the first token on images, and on
    each answer either without an end of turn or with the line break after it.
    """
    image = 'image' in rows[0]
    tokenizer = processing.tokenizer if image else processing
    first = tokenizer.bos_token if image else ''

    def turn(role: str, text: str, *media: dict[str, str]) -> dict[str, Any]:
        return {'role': role, 'content': [*media, {'type': 'text', 'text': text}] if image else text}

    def rendered(question: str, answer: str) -> tuple[str, str]:
        asked = turn('user', question, {'type': 'image'})
        opened = processing.apply_chat_template([asked], add_generation_prompt=True, tokenize=False)
        whole = processing.apply_chat_template([asked, turn('assistant', answer)], tokenize=False)
        return first + opened, whole[len(opened) : whole.rindex(answer) + len(answer)] + tokenizer.eos_token

    columns: dict[str, list[Any]] = {'images': [[row['image']] for row in rows]} if image else {}
    if algorithm == 'sft':
        answers = {'completion': [[message['content'] for message in row['messages']] for row in rows]}
    else:
        answers = {name: [(row['prompt'], row[name]) for row in rows] for name in ('chosen', 'rejected')}
    for name, texts in answers.items():
        columns['prompt'], columns[name] = zip(*(rendered(*pair) for pair in texts), strict=True)
    return columns


def _model(algorithm: str, folder: Path, image: bool) -> Any:
    """The checkpoint; as a reward model with the head that our own runs begin with."""
    import transformers

    if algorithm != 'rm':
        auto = transformers.AutoModelForImageTextToText if image else transformers.AutoModelForCausalLM
        return auto.from_pretrained(folder, dtype='float32', attn_implementation='sdpa')
    from align_anything.models.score import ScoreHead

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype='float32', attn_implementation='sdpa'
    )
    model.score.load_state_dict(ScoreHead(model.config.hidden_size).state_dict())
    return model
