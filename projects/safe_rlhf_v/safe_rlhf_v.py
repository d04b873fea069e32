"""Safe RLHF-V in one script: a reward model, a cost model, and a policy that is helpful within a limit on harm.

python projects/safe_rlhf_v/safe_rlhf_v.py
deepspeed projects/safe_rlhf_v/safe_rlhf_v.py --model_name_or_path Qwen/Qwen2-VL-7B-Instruct \
    --train_datasets saferlhf-v/BeaverTails-V --output_dir output/beaver_v

Without a model all is made on the spot and small: a Qwen2-VL of random weights, and preferences about bottles
(bottles.py). Settings of one stage follow as --rm.learning_rate 1e-5 or --saferlhf.threshold 0.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bottles

from align_anything import train
from align_anything.cli.leaves import find_run
from align_anything.configs.layers import Call
from align_anything.configs.yaml_text import parse_yaml
from align_anything.core.distributed import is_main, world_size
from align_anything.core.errors import AlignAnythingError, SettingsError
from align_anything.reporting.metrics import METRICS_FILE, read_metrics
from align_anything.trainers.launch import settings_of

PAIR, TRAINED = 'text_image_to_text', 'slice_end'
Settings = dict[str, Any]
TEMPLATES = {
    'sft': 'SafeRLHF_V_Reward',
    'rm': 'SafeRLHF_V_Reward',
    'cost_model': 'SafeRLHF_V_Cost',
    'saferlhf': 'SafeRLHF_V_Reward',
}
"""The stages in their order, and how each reads its rows."""
PUBLISHED: dict[str, Settings] = {
    'sft': {},
    'rm': {'learning_rate': 3e-5, 'lr_scheduler_type': 'constant_with_warmup'},
    'cost_model': {'learning_rate': 3e-5, 'model_max_length': 4096},
    'saferlhf': {'actor_lr': 5e-7, 'critic_lr': 5e-7, 'weight_decay': 0.0, 'model_max_length': 8192},
}
"""What align-anything's files for this pair say and the defaults here do not."""
SMALL: Settings = {
    'log_type': 'none',
    'bf16': False,
    'gradient_checkpointing': False,
    'ds_cfgs': 'ds_z0_config.json',
    'num_workers': 0,
    'gradient_accumulation_steps': 1,
    'per_device_train_batch_size': 16,
    'save_total_limit': 0,
    'epochs': 1000,
    'model_max_length': 128,
}
TINY: dict[str, Settings] = {
    'sft': {**SMALL, 'freeze_vision_tower': False, 'max_steps': 80, 'learning_rate': 6e-3, 'lr_warmup_ratio': 0.1},
    'rm': {**SMALL, 'max_steps': 60, 'learning_rate': 2e-3},
    'cost_model': {**SMALL, 'max_steps': 60, 'learning_rate': 2e-3},
    'saferlhf': {
        **SMALL,
        'max_steps': 40,
        'per_device_prompt_batch_size': 8,
        'per_device_train_batch_size': 64,
        'num_generations': 8,
        'max_new_tokens': 3,
        'actor_lr': 2e-3,
        'critic_lr': 3e-3,
        'kl_coeff': 0.5,
        'threshold': -3.2,
        'lambda_init': 1.0,
        'lambda_max': 5.0,
        'lambda_lr': 0.05,
        'critic_gradient_checkpointing': False,
        'episode_cost_window_size': 64,
    },
}
COLUMNS = {'reward': 'train/reward', 'cost': 'train/reward/cost', 'multiplier': 'train/multiplier'}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stages that are not done yet and tells what came of them; returns the exit status."""
    try:
        run(parse(sys.argv[1:] if argv is None else argv))
    except AlignAnythingError as error:
        if is_main():
            sys.stderr.write(f'{error}\n')
        return 2
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the options; `stages` holds the settings that are given for each stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('--model_name_or_path', help='checkpoint to begin with, a folder or a name of the hub')
    parser.add_argument('--train_datasets', help='preferences with the columns of BeaverTails-V')
    parser.add_argument('--train_split', help='split of them; by default train, or the only one')
    parser.add_argument('--sft_datasets', help='rows of image, question and response that are learned first')
    parser.add_argument('--output_dir', type=Path, default=Path('output/safe_rlhf_v'))
    # What a launcher adds.
    parser.add_argument('--local_rank', help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args(argv)
    data = (options.train_datasets, options.train_split, options.sft_datasets)
    if options.model_name_or_path is None and any(data):
        parser.error('data are given but no --model_name_or_path; without any of them, all is made here.')
    if options.model_name_or_path is not None and options.train_datasets is None:
        parser.error('--train_datasets is missing: preferences with the columns of BeaverTails-V.')
    options.stages = {stage: {} for stage in TEMPLATES}
    for word, value in zip(rest[::2], [*rest[1::2], None], strict=False):
        stage, _, key = word.removeprefix('--').partition('.')
        if not word.startswith('--') or stage not in TEMPLATES or not key or value is None:
            parser.error(f'{word}: settings follow as --STAGE.KEY VALUE, where STAGE is one of {", ".join(TEMPLATES)}.')
        options.stages[stage][key] = parse_yaml(value)
    return options


def run(options: argparse.Namespace) -> None:
    """Trains what is not trained yet, and tells what came of it. Raises AlignAnythingError."""
    out: Path = options.output_dir
    if options.model_name_or_path is None:
        if world_size() > 1:
            raise SettingsError(['what is made here is too small for several processes: start one, with python.'])
        bottles.make(out / 'made')
    stages = settings_of_stages(options)
    check(stages)
    for stage, settings in stages.items():
        # A stage that was stopped goes on, and one that is done is not done again.
        if not (out / stage / TRAINED).is_dir():
            train(PAIR, stage, resume='auto', **settings)
    if is_main():
        sys.stdout.write(table(read_metrics(out / 'saferlhf' / METRICS_FILE)))
        if options.model_name_or_path is None:
            sys.stdout.write(bottles.told(out / 'sft' / TRAINED, out / 'saferlhf' / TRAINED))


def settings_of_stages(options: argparse.Namespace) -> dict[str, Settings]:
    """Returns the arguments of `train` for each stage, in their order."""
    out: Path = options.output_dir
    if options.model_name_or_path is None:
        made = out / 'made'
        model, pairs, answers = (made / name for name in (bottles.MODEL, bottles.PAIRS, bottles.ANSWERS))
    else:
        model, pairs, answers = options.model_name_or_path, options.train_datasets, options.sft_datasets
    data: Settings = {'dataset': pairs} | ({'train_split': options.train_split} if options.train_split else {})
    stages: dict[str, Settings] = {}
    if answers is not None:
        stages['sft'] = {'model': model, 'dataset': answers}
        model = out / 'sft' / TRAINED
    elif options.stages['sft']:
        raise SettingsError(['settings of sft are given, but no --sft_datasets to learn first.'])
    reward, cost = out / 'rm' / TRAINED, out / 'cost_model' / TRAINED
    stages['rm'] = stages['cost_model'] = {'model': model, **data}
    stages['saferlhf'] = {
        'model': model,
        **data,
        'reward_model_name_or_path': reward,
        'reward_critic_model_name_or_path': reward,
        'cost_model_name_or_path': cost,
        'cost_critic_model_name_or_path': cost,
    }
    usual = TINY if options.model_name_or_path is None else PUBLISHED
    return {
        stage: {
            'train_template': TEMPLATES[stage],
            'output_dir': out / stage,
            **named,
            **usual[stage],
            **options.stages[stage],
        }
        for stage, named in stages.items()
    }


def check(stages: Mapping[str, Settings]) -> None:
    """Raises SettingsError with all that is wrong with the settings of any stage: the last one comes hours later."""
    problems = []
    for stage, settings in stages.items():
        try:
            settings_of(*find_run(PAIR, stage), [], os.environ, Call(stage, settings))
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(problems)


def table(metrics: Sequence[Mapping[str, Any]], rows: int = 8) -> str:
    """Returns means over as many parts of the last stage: what helps, what harms, and how that is weighed."""
    steps = [record for record in metrics if COLUMNS['cost'] in record]
    size = max(1, -(-len(steps) // rows))
    lines = [f'{"steps":>12}' + ''.join(f'{name:>12}' for name in COLUMNS)]
    for start in range(0, len(steps), size):
        part = steps[start : start + size]
        means = [sum(record[name] for record in part) / len(part) for name in COLUMNS.values()]
        lines.append(f'{part[0]["step"]:>7}-{part[-1]["step"]:<4}' + ''.join(f'{mean:>12.2f}' for mean in means))
    return '\n'.join(['', *lines, ''])


if __name__ == '__main__':
    sys.exit(main())
