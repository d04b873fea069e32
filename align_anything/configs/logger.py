"""Settings of what a run writes."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from align_anything.configs.base import Cfgs
from align_anything.configs.effects import Effects, excludes, needs


class LoggerCfgs(Cfgs):
    """What the run writes, where, and how often."""

    takes_effect: ClassVar[Effects] = {
        'overwrite_output_dir': excludes('train_cfgs.resume'),
        'checkpoint_staging_dir': needs('logger_cfgs.save_total_limit'),
    }

    log_type: Literal['tensorboard', 'wandb', 'clearml', 'mlflow', 'swanlab', 'none'] = Field(
        'tensorboard', description='Where metrics go besides metrics.jsonl and the console.'
    )
    log_project: str = Field('align-anything', description='Project that the tracker files the run under.')
    log_run_name: str | None = Field(None, description='Name of the run in the tracker. null uses the algorithm.')
    output_dir: str | None = Field(None, description='Folder for checkpoints, settings, metrics and plots. Required.')
    overwrite_output_dir: bool = Field(
        False,
        description='Lets a new run use an output_dir that holds the results of another: its trained model is '
        'replaced, its checkpoints and its best model are renamed to <name>.old. Off, such a run is refused unless it '
        'resumes.',
    )
    cache_dir: str | None = Field(
        None, description='Folder for downloaded data and other caches. null uses the default of the libraries.'
    )
    save_interval: PositiveInt | None = Field(
        None,
        description='Optimizer steps between two checkpoints. null spreads save_total_limit checkpoints evenly over '
        'the run.',
    )
    save_total_limit: int = Field(
        1, ge=0, description='How many checkpoints are kept; the oldest is deleted first. 0 saves none.'
    )
    checkpoint_staging_dir: str | None = Field(
        None,
        description='Writes checkpoints while training goes on: they are made in this folder, in memory (/dev/shm) or '
        'on a fast disk of each machine, from where a thread copies them to output_dir. null writes there at once, as '
        'it does the best and the trained model in any case.',
    )
    log_interval: PositiveInt = Field(1, description='Optimizer steps between two lines of metrics.')
    peak_tflops: PositiveFloat | None = Field(
        None,
        description='Operations that a device can do a second at best, in units of 10^12 and in the precision of the '
        'run, of which the metric mfu is the share that the model takes. null knows common GPUs by name; of others no '
        'share is told.',
    )
    profile: PositiveInt | None = Field(
        None,
        description='Records so many steps after the first: traces in <output_dir>/profile, and a table of where a '
        'step goes.',
    )
