"""Settings of data: what is trained and evaluated on, how rows are read, and how episodes are cut."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from align_anything.configs.base import Cfgs
from align_anything.configs.effects import (
    EPISODES,
    EVALUATES,
    SUPERVISED,
    Effect,
    Effects,
    excludes,
    needs,
    with_media,
    writing,
)
from align_anything.core.types import ACTION, MEDIA_KINDS, MediaKind

Names = str | list[str] | None
OnePerDataset = str | list[str | None] | None
Sizes = PositiveInt | list[PositiveInt | None] | None
Files = str | list[str | list[str] | None] | None
Arguments = Annotated[dict[str, Any] | list[dict[str, Any]], AfterValidator(lambda value: value or {})]
READ_ALIKE = ('datasets', 'template', 'template_kwargs', 'name', 'data_files', 'optional_args')
"""What says how the rows of a dataset are read, whichever split of it."""


class DataCfgs(Cfgs):
    """What the run trains and evaluates on. With several datasets, most keys take one value or one per dataset."""

    takes_effect: ClassVar[Effects] = {
        'train_mixing': Effect(
            lambda facts: isinstance(facts.cfgs.data_cfgs.train_datasets, list),
            'it means nothing without several train_datasets; give a list of them, or leave it out.',
            by=('data_cfgs.train_datasets',),
        ),
        **{
            f'eval_{key}': EVALUATES
            for key in ('template', 'template_kwargs', 'name', 'split', 'size', 'data_files', 'optional_args')
        },
        **{key: with_media() for key in ('allow_urls', 'media_cache_mb')},
        **{f'{kind}_folder': with_media(kind) for kind in ('image', 'video', 'audio')},
        **{
            key: with_media('video') for key in ('num_frames', 'max_frame_pixels', 'max_video_pixels', 'audio_in_video')
        },
        **{key: (with_media('video'), excludes('data_cfgs.num_frames')) for key in ('fps', 'min_frames', 'max_frames')},
        **{key: with_media('video', 'audio') for key in ('max_audio_seconds', 'long_audio')},
        'emitted_loss_weights': writing(*MEDIA_KINDS, ACTION),
        'prompt_dropout': (writing(*MEDIA_KINDS, off=(0.0,)), SUPERVISED),
        **{key: EPISODES for key in ('sliding_window', 'windows')},
        **{
            f'{when}_prob_sample_last_steps': (EPISODES, needs('data_cfgs.sliding_window', off=(0.0,)))
            for when in ('init', 'final')
        },
        'reduce_action_redundancy': (EPISODES, needs('data_cfgs.sliding_window')),
    }

    train_datasets: Names = Field(
        None,
        description='Training data: a hub name, a .json, .jsonl, .csv, .tsv (also with .gz), .parquet or .arrow '
        'file, a folder written by save_to_disk, or a folder of media or tar shards; a list for several. Required.',
    )
    train_template: Names = Field(
        None,
        description='Template that turns a row into a conversation: a registered name, or file.py:Name. One for all '
        'training datasets, or one for each. Required, but where answers are media null goes by the columns of rows.',
    )
    train_template_kwargs: Arguments = Field(
        {}, description='Arguments of the training template, such as its column mapping (`prompt: question`).'
    )
    train_name: OnePerDataset = Field(None, description='Configuration of a hub dataset, for instance a language.')
    train_split: OnePerDataset = Field(None, description='Split to train on, for instance `train` or `train[:10%]`.')
    train_size: Sizes = Field(None, description='Only the first so many rows are trained on. null takes all.')
    train_data_files: Files = Field(
        None,
        description='Files inside the training dataset. A list means several files when there is one dataset, and '
        'one entry for each dataset when train_datasets is a list.',
    )
    train_optional_args: Arguments = Field(
        {}, description='Further keyword arguments of datasets.load_dataset for the training data.'
    )
    train_mixing: Literal['concatenate', 'round_robin'] = Field(
        'concatenate',
        description='How several training datasets without train_weights make an epoch, each row once: joined and '
        'shuffled as one (streams: one after the other), or a row of each in turn until all are exhausted.',
    )
    train_weights: list[NonNegativeFloat] | None = Field(
        None,
        description='Shares by which several training datasets are mixed; one that is exhausted starts again. null '
        'goes by train_mixing.',
    )
    eval_datasets: Names = Field(
        None, description='Evaluation data, given like train_datasets. null evaluates nothing.'
    )
    eval_template: Names = Field(None, description='Template of the evaluation data, given like train_template.')
    eval_template_kwargs: Arguments = Field({}, description='Arguments of the evaluation template.')
    eval_name: OnePerDataset = Field(None, description='Configuration of a hub dataset to evaluate on.')
    eval_split: OnePerDataset = Field(None, description='Split to evaluate on, for instance `test`.')
    eval_size: Sizes = Field(None, description='Only the first so many rows are evaluated. null takes all.')
    eval_data_files: Files = Field(
        None, description='Files inside the evaluation dataset, given like train_data_files.'
    )
    eval_optional_args: Arguments = Field(
        {}, description='Further keyword arguments of datasets.load_dataset for the evaluation data.'
    )
    streaming: bool = Field(
        False, description='Reads the training data while it is trained on, without a local copy. Needs max_steps.'
    )
    num_workers: int = Field(
        1, ge=0, description='Processes of each rank that read, decode and encode samples. 0 does it in the trainer.'
    )
    train_on: Literal['all_assistant', 'last', 'all'] = Field(
        'all_assistant',
        description='Which tokens of a conversation are trained: every assistant turn, only the last one, or the '
        'prompt and the user turns too. End-of-turn tokens of trained turns always are; media never.',
    )
    image_folder: str | None = Field(
        None,
        description='Folder that relative image paths in the rows start from. null is the folder of the data file.',
    )
    video_folder: str | None = Field(None, description='Folder of relative video paths, like image_folder.')
    audio_folder: str | None = Field(None, description='Folder of relative audio paths, like image_folder.')
    allow_urls: bool = Field(
        False, description='Fetches media that rows name by an http or https address, each time one is read.'
    )
    num_frames: PositiveInt | None = Field(
        None,
        description='Frames taken from each video, evenly over its length; all of them where there are fewer. null '
        'goes by fps. A row may ask for a number of its own.',
    )
    fps: PositiveFloat = Field(2.0, description='Frames taken from each second of a video when num_frames is null.')
    min_frames: PositiveInt = Field(
        4, description='Fewest frames of a video when num_frames is null; all of them where there are fewer.'
    )
    max_frames: PositiveInt = Field(64, description='Most frames of a video when num_frames is null.')
    max_frame_pixels: PositiveInt = Field(
        2**19, description='Larger video frames are scaled down to so many pixels, before the processor sees them.'
    )
    max_video_pixels: PositiveInt = Field(
        2**25, description='Pixels of all frames of a video together; past it every frame is scaled down.'
    )
    audio_in_video: bool = Field(
        False, description='Reads the audio track of each video too, for models that take both.'
    )
    max_audio_seconds: PositiveFloat | None = Field(
        None,
        description='Longest audio. null takes all of it, up to two hours, and leaves out rows with audio longer than '
        'the model takes at once.',
    )
    long_audio: Literal['cut', 'split'] = Field(
        'cut',
        description='What happens to audio past max_audio_seconds: it is truncated at its end, or split into several.',
    )
    media_cache_mb: int = Field(
        256, ge=0, description='Decoded media that each worker keeps for the next row that shows them, in MiB.'
    )
    sample_cache_dir: str | None = Field(
        None,
        description='Folder that keeps encoded samples, for later epochs and runs that neither decode nor encode them '
        'again. null keeps nothing.',
    )
    max_skipped_ratio: float = Field(
        0.05,
        ge=0,
        le=1,
        description='Unusable rows are left out and listed in skipped_samples.jsonl. Past this share of the rows '
        'seen, the run stops. Rows that the template filters are counted apart.',
    )
    emitted_loss_weights: dict[MediaKind, NonNegativeFloat] = Field(
        {},
        description='What the loss weights of the tokens of media in answers are multiplied by, by kind, such as '
        '`{image: 0.5}`. A kind that is not named has 1.',
    )
    prompt_dropout: float = Field(
        0.0,
        ge=0,
        le=1,
        description='Probability that what users say in a row is left empty for an epoch, so that the model can write '
        'media without a prompt too, which guidance leads away from. 0.1 is usual.',
    )
    drop_truncated: bool = Field(
        False,
        description='Leaves out rows whose answer does not fit into model_max_length, instead of training on its '
        'beginning. They are counted among the filtered rows.',
    )

    data_dir: str | None = Field(
        None, description='Folder that relative names of train_datasets and eval_datasets start from.'
    )
    val_datasets: bool = Field(
        False,
        description='Evaluates on the split `val` of the training datasets, in place of eval_datasets.',
    )
    sliding_window: PositiveInt | None = Field(
        None,
        description='Steps of an episode that are trained on at once. null takes whole episodes, or with windows: all '
        'the steps that the policy does in one turn.',
    )
    windows: Literal['random', 'all'] = Field(
        'random',
        description='Which windows of an episode a training sees: another random one in each epoch, or all of them, '
        'each a row of its own that begins with another step.',
    )
    init_prob_sample_last_steps: float = Field(
        0.0,
        ge=0,
        le=1,
        description='Probability that a random window is the last one of its episode, in the first epoch. It changes '
        'evenly to that of the last one.',
    )
    final_prob_sample_last_steps: float = Field(
        0.0,
        ge=0,
        le=1,
        description='Probability that a random window is the last one of its episode, in the last epoch.',
    )
    reduce_action_redundancy: bool = Field(
        False,
        description='Leaves out steps that repeat the action before, of three random windows in four two thirds of '
        'them, but never so many that less than a window stays.',
    )

    @model_validator(mode='before')
    @classmethod
    def _validation_split(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get('val_datasets') is not True:
            return values
        if values.get('eval_datasets'):
            raise ValueError('val_datasets evaluates in place of eval_datasets; leave one of them out')
        own = {f'eval_{key}': values[f'train_{key}'] for key in READ_ALIKE if values.get(f'train_{key}')}
        return {**own, 'eval_split': 'val', **{key: value for key, value in values.items() if value is not None}}

    @field_validator('train_template', 'eval_template')
    @classmethod
    def _one_for_all(cls, value: Any) -> Any:
        return value[0] if isinstance(value, list) and len(value) == 1 else value
