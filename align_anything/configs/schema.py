"""Every setting of a run, typed and described. Unknown keys are refused; the descriptions become the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveInt,
)
from pydantic import create_model as create_pydantic_model

from align_anything.configs.actions import ActionCfgs
from align_anything.configs.adapters import BnbCfgs, LoraCfgs
from align_anything.configs.annotations import shape_of
from align_anything.configs.base import Cfgs
from align_anything.configs.data import DataCfgs
from align_anything.configs.diffusion import DiffusionCfgs
from align_anything.configs.effects import (
    EVALUATES,
    FREEZING,
    NO_DEEPSPEED_FILE,
    NO_WARM_UP,
    Effect,
    Effects,
    evaluating,
    excludes,
    needs,
    with_media,
)
from align_anything.configs.logger import LoggerCfgs
from align_anything.core.types import MediaKind

WRITES = Effect(
    lambda facts: facts.algorithm.scores == 'tokens',
    'it means nothing for a model that scores answers and writes none; leave it out.',
)
GENERATES_NOTHING = Effect(
    lambda facts: not facts.algorithm.generates,
    'it means nothing where responses are generated anyway, of max_new_tokens at most; leave it out.',
)
ScheduleType = Literal[
    'linear', 'cosine', 'cosine_with_restarts', 'polynomial', 'constant', 'constant_with_warmup', 'inverse_sqrt'
]


@cache
def build_run_schema(algorithm_cfgs: type[AlgorithmCfgs]) -> type[RunCfgs]:
    """Returns the algorithm's `run_cfgs` whose `train_cfgs` also holds the fields and validators of `algorithm_cfgs`.

    Raises TypeError, a mistake of the algorithm's author, when a field has no default or description, a type
    that settings cannot have, or a name that the schema uses already.
    """
    taken = {key: group for group, model in groups_of(algorithm_cfgs.run_cfgs).items() for key in model.model_fields}
    for name, field in algorithm_cfgs.model_fields.items():
        if name in taken:
            raise TypeError(
                f'{algorithm_cfgs.__name__}.{name} clashes with {taken[name]}.{name} of the schema. Rename the field.'
            )
        if not field.description:
            raise TypeError(f'{algorithm_cfgs.__name__}.{name} needs a description: it is shown by --help.')
        if field.is_required():
            raise TypeError(f'{algorithm_cfgs.__name__}.{name} needs a default.')
        shape_of(field.annotation)
    merged = create_pydantic_model(
        'TrainCfgs', __base__=(algorithm_cfgs, TrainCfgs), __module__=__name__, __doc__=TrainCfgs.__doc__
    )
    return create_pydantic_model(
        'RunCfgs',
        __base__=algorithm_cfgs.run_cfgs,
        __module__=__name__,
        train_cfgs=(merged, Field(default_factory=merged)),
    )


def groups_of(schema: type[RunCfgs]) -> dict[str, type[Cfgs]]:
    """Returns the groups of a run's schema by name, in the order of the schema."""
    return {name: field.annotation for name, field in schema.model_fields.items()}


class TrainCfgs(Cfgs):
    """How the run trains: engine, length, batch, optimizer, precision, frozen components, evaluation, resuming.

    `adapter_rates` are the learning rates whose defaults are those of full tuning, and larger under LoRA.
    """

    adapter_rates: ClassVar[tuple[str, ...]] = ('learning_rate',)
    takes_effect: ClassVar[Effects] = {
        'ds_cfgs': excludes('train_cfgs.engine', 'fsdp', why=NO_DEEPSPEED_FILE),
        **{key: needs('train_cfgs.engine', 'fsdp') for key in ('fsdp_reshard_after_forward', 'fsdp_cpu_offload')},
        'gradient_checkpointing_every_n_layers': needs('train_cfgs.gradient_checkpointing', off=(1,)),
        'activation_offloading': needs('train_cfgs.gradient_checkpointing'),
        'group_by_length': needs('train_cfgs.max_length_per_batch'),
        'lr_warmup_ratio': excludes('train_cfgs.lr_scheduler_type', 'constant', why=NO_WARM_UP, off=(0.0,)),
        'per_device_eval_batch_size': EVALUATES,
        'eval_strategy': evaluating(off=('no',)),
        'eval_interval': EVALUATES,
        'eval_tasks': (EVALUATES, excludes('train_cfgs.eval_strategy', 'no'), WRITES),
        'eval_task_kwargs': needs('train_cfgs.eval_tasks'),
        'eval_max_new_tokens': (GENERATES_NOTHING, needs('train_cfgs.eval_tasks')),
        'unfreeze_patterns': Effect(
            lambda facts: facts.cfgs.lora_cfgs.use_lora or any(facts.value(path) for path in FREEZING),
            'it means nothing where nothing is frozen; give a freeze_* key or use_lora too, or leave it out.',
            by=('lora_cfgs.use_lora', *FREEZING),
        ),
    }

    engine: Literal['deepspeed', 'fsdp'] = Field(
        'deepspeed',
        description='What shares the work of training among ranks: DeepSpeed as its file ds_cfgs says, or FSDP2 of '
        'torch, which shares weights, gradients and optimizer states. Each resumes checkpoints of the other.',
    )
    ds_cfgs: str = Field(
        'ds_z3_config.json',
        description='DeepSpeed file: the name of one that ships with the package, or a path. It decides the ZeRO '
        'stage and offload; the environment variable ZERO_STAGE_FILE sets it too.',
    )
    fsdp_reshard_after_forward: bool = Field(
        True,
        description='FSDP2 lets the gathered weights of a layer go after its forward pass and gathers them again for '
        'the backward pass. Off, it keeps them in between, which takes memory and saves communication.',
    )
    fsdp_cpu_offload: bool = Field(
        False,
        description='FSDP2 keeps its shares of weights, gradients and optimizer states in host memory and steps there.',
    )
    epochs: float = Field(
        1.0, ge=0, description='How often the run goes through the training data; 0.5 is half of them.'
    )
    max_steps: PositiveInt | None = Field(
        None, description='Number of optimizer steps of the run. When given, it replaces epochs.'
    )
    seed: int = Field(42, ge=0, description='Seed of the data order, the initialisation of new weights and dropout.')
    per_device_train_batch_size: PositiveInt = Field(
        1, description='Samples that one device processes at once while training.'
    )
    per_device_eval_batch_size: PositiveInt = Field(
        1, description='Samples that one device processes at once while evaluating.'
    )
    max_length_per_batch: PositiveInt | None = Field(
        None,
        description='Fills each micro-batch of a device to this many tokens, media included, instead of to '
        'per_device_train_batch_size samples, with nearly equal work on all devices. Every row is encoded once '
        'more to learn what it takes: before training, or a little ahead of it when streaming. In online '
        'training an optimizer step has as many responses as without it, and its micro-batches are filled with those. '
        'The tokens of a pipeline are those that its denoiser makes of latents, as many for each sample as the longest '
        'of the micro-batch has.',
    )
    group_by_length: bool = Field(
        False,
        description='With max_length_per_batch, brings samples of like length together, which spares padding in the '
        'padded layout.',
    )
    gradient_accumulation_steps: PositiveInt = Field(
        1, description='Micro-batches of each device that make one optimizer step.'
    )
    gradient_checkpointing: bool = Field(
        True, description='Recomputes activations in the backward pass, which saves memory and costs time.'
    )
    gradient_checkpointing_every_n_layers: PositiveInt = Field(
        1,
        description='Of each stack of layers gradient_checkpointing recomputes the first of so many, and the others '
        'keep their activations: 2 is every second layer, which takes more memory and less time than 1.',
    )
    activation_offloading: bool = Field(
        False,
        description='What gradient_checkpointing keeps, the inputs of recomputed layers, waits in host memory for the '
        'backward pass. For long rows; it costs the time of two copies.',
    )
    mlp_tiles: PositiveInt = Field(
        1,
        description='Computes the MLP of each layer of the language model in so many pieces of the row, and each again '
        'in the backward pass, which keeps one of them at a time. For long rows; gated MLPs only, no experts.',
    )
    torch_compile: bool = Field(
        False,
        description='Compiles the layers of the language model, or the blocks of a denoiser, one by one with '
        'torch.compile, for rows of any length. Not under ZeRO-3. Layers that cannot be compiled train without, which '
        'is told.',
    )
    use_liger_kernel: bool = Field(
        False,
        description='Computes norms, rotations and gated MLPs of a language model by kernels of Liger (pip install '
        '"align-anything[liger]"), where it has them for the family; losses stay ours. It needs a GPU: without one, or '
        'for other families, the run computes without, which is told.',
    )
    learning_rate: NonNegativeFloat = Field(2e-5, description='Peak learning rate.')
    lr_scheduler_type: ScheduleType = Field(
        'cosine', description='Shape of the learning rate over the optimizer steps of the run.'
    )
    lr_warmup_ratio: float = Field(
        0.03, ge=0, le=1, description='Share of the optimizer steps over which the learning rate rises from zero.'
    )
    lr_groups: dict[str, NonNegativeFloat] | None = Field(
        None,
        description='Learning rates of components of the model: one (`vision_tower`, `mm_proj`, `language_model`) or a '
        'regular expression over parameter names, to its rate. Everything else uses learning_rate.',
    )
    weight_decay: NonNegativeFloat = Field(
        0.0, description='Decoupled weight decay of matrices; biases and norm weights have none.'
    )
    router_aux_loss_coef: NonNegativeFloat | None = Field(
        None,
        description='Weight of the load-balancing loss of a mixture of experts in the objective. Empty for the '
        "checkpoint's own, 0 for none, which spares the forward pass that it needs before each optimizer step.",
    )
    adam_betas: tuple[float, float] = Field((0.9, 0.95), description='Decay rates of the two Adam moments.')
    adam_epsilon: float = Field(1e-8, gt=0, description='Term that keeps the Adam division from a zero denominator.')
    optimizer: (
        Literal['adamw_torch', 'adamw_torch_fused', 'adamw_8bit', 'deepspeed_cpu_adam', 'deepspeed_fused_adam'] | None
    ) = Field(
        None,
        description='Optimizer implementation. null chooses the fastest one for the device and the offload. adamw_8bit '
        '(bitsandbytes, pip install "align-anything[bnb]") keeps its moments in 8 bits, where others take 32.',
    )
    max_grad_norm: NonNegativeFloat = Field(
        1.0, description='Maximum global norm of the gradients, for clipping. 0 clips nothing.'
    )
    bf16: bool = Field(True, description='Trains in bfloat16. With fp16 off as well, the run trains in float32.')
    fp16: bool = Field(False, description='Trains in float16 with dynamic loss scaling.')
    eval_strategy: Literal['epoch', 'steps', 'no'] = Field(
        'epoch', description='When the evaluation data are scored: each epoch, each eval_interval steps, or never.'
    )
    eval_interval: PositiveInt = Field(
        10, description='Optimizer steps between two evaluations when eval_strategy is steps.'
    )
    eval_tasks: list[str] = Field(
        [],
        description='What else each evaluation tells: the model answers the prompts of the evaluation data, and these '
        'measure the answers, as the tasks of align-anything evaluate do: metrics (exact_match, choice, vqa, wer, cer, '
        'fid, kid, shapes, objects), reward functions, path/to/file.py:name.',
    )
    eval_task_kwargs: dict[str, dict[str, Any]] = Field(
        {}, description='Options of eval_tasks, by the name of the task.'
    )
    eval_max_new_tokens: PositiveInt = Field(
        256,
        description='Maximum tokens of an answer that eval_tasks measure, where the run itself generates none; it is '
        'decoded greedily.',
    )
    save_best: str | None = Field(
        None,
        description='Metric of the evaluation, such as loss or reward_accuracy, by which the best model so far is kept '
        'in slice_best. Losses, kl, squared_score and error rates are better when lower, everything else when higher.',
    )
    early_stopping_patience: PositiveInt | None = Field(
        None,
        description='Ends the run after so many evaluations in a row that are not better than the best one, by '
        'save_best, or by the loss. null trains to the end.',
    )
    stage: Literal['projection', 'joint'] | None = Field(
        None,
        description='What composed models are trained in: projection trains what lies between encoders and language '
        'model, at 1e-3; joint trains that and the language model, whole or by adapters. It stands for freeze_* keys, '
        'learning rates and modules_to_save, each of which may be given to differ.',
    )
    freeze_vision_tower: bool = Field(
        False, description='Keeps the weights of the image and video encoder as they are.'
    )
    freeze_audio_tower: bool = Field(False, description='Keeps the weights of the audio encoder as they are.')
    freeze_mm_proj: bool = Field(
        False, description='Keeps the weights between the media encoder and the language model as they are.'
    )
    freeze_generation: bool = Field(
        False,
        description='Keeps the weights as they are that embed and score codes of media outside of the vocabulary of '
        'the language model (Janus; of CSM the depth decoder). Codecs never train.',
    )
    freeze_language_model: bool = Field(False, description='Keeps the weights of the language model as they are.')
    unfreeze_patterns: list[str] = Field(
        [],
        description='Regular expressions over parameter names. What they find is trained although a freeze_* key '
        'covers it.',
    )
    sequence_parallel_size: PositiveInt = Field(
        1,
        description='Ranks that share each row: each computes a part of its tokens, and attention by a part of its '
        'heads (DeepSpeed Ulysses). For rows that are too long for one device.',
    )
    layout: Literal['auto', 'padded', 'packed', 'shared_prefix'] = Field(
        'auto',
        description='How samples lie in a batch: padded rows, packed without padding, or prompts shared by their '
        'responses. auto takes the fastest one that the model supports.',
    )
    nonfinite_loss: Literal['stop', 'skip'] = Field(
        'stop',
        description='What follows a NaN or infinite loss: the run stops and names the samples, or the optimizer step '
        'is left out and counted.',
    )
    save_checkpoint: bool = Field(
        True,
        description='Writes into each checkpoint also the optimizer, schedule, random and data state that resume '
        'needs. Off, a checkpoint holds the model only.',
    )
    resume: str | None = Field(
        None,
        description='Checkpoint to resume from: a path, or auto for the newest complete one in output_dir '
        '(none there: the run starts afresh). load_checkpoint: True means auto.',
    )


class ModelCfgs(Cfgs):
    """Which checkpoint is trained, and how it is loaded."""

    takes_effect: ClassVar[Effects] = {key: with_media() for key in ('media_codes', 'media_code_dir')}

    model_name_or_path: str | None = Field(
        None, description='Checkpoint to train: a folder, or a hub name. Required, unless compose makes one.'
    )
    compose: dict[str, Any] = Field(
        {},
        description='Makes the checkpoint to train out of a `language_model` and encoders of `image`, `video` and '
        '`audio`, as align-anything compose does (docs/composed.md), in a folder of output_dir.',
    )
    media_codes: dict[MediaKind, dict[str, Any]] = Field(
        {},
        description='How media stand in the vocabulary of the checkpoint as codes, by kind: the `codec`, its `tokens`, '
        'what opens and closes them (docs/emitting.md). Empty goes by what its config.json declares.',
    )
    media_code_dir: str | None = Field(
        None,
        description='Folder that keeps the codes of media, which later runs need not make again. null is the folder '
        'media_codes in output_dir.',
    )
    trust_remote_code: bool = Field(
        False, description='Lets the checkpoint run Python code of its own. Only for sources you trust.'
    )
    model_max_length: PositiveInt = Field(
        2048, description='Longest sample in tokens, media included. Longer ones are truncated at the end.'
    )
    attn_implementation: Literal['sdpa', 'eager', 'flash_attention_2', 'flash_attention_3'] = Field(
        'sdpa',
        description='Attention implementation. sdpa takes the kernel of variable lengths of torch for rows without '
        'padding on CUDA in half precision. flash_attention_2 and _3 need their packages and a GPU.',
    )
    chat_template: str | None = Field(
        None, description='Chat template, as a path to a Jinja file or as text. null uses that of the checkpoint.'
    )
    processor_kwargs: dict[str, Any] = Field(
        {}, description='Arguments of the processor, such as `min_pixels` and `max_pixels`.'
    )
    feature_cache_dir: str | None = Field(
        None,
        description='Folder that keeps features of frozen towers for images, videos and audio, for later epochs and '
        'runs. null keeps nothing.',
    )


class RunCfgs(BaseModel):
    """All settings of one run, by group."""

    model_config = ConfigDict(frozen=True, extra='forbid')

    train_cfgs: TrainCfgs = Field(default_factory=TrainCfgs)
    data_cfgs: DataCfgs = Field(default_factory=DataCfgs)
    model_cfgs: ModelCfgs = Field(default_factory=ModelCfgs)
    logger_cfgs: LoggerCfgs = Field(default_factory=LoggerCfgs)
    lora_cfgs: LoraCfgs = Field(default_factory=LoraCfgs)
    bnb_cfgs: BnbCfgs = Field(default_factory=BnbCfgs)
    diffusion_cfgs: DiffusionCfgs = Field(default_factory=DiffusionCfgs)
    action_cfgs: ActionCfgs = Field(default_factory=ActionCfgs)


class AlgorithmCfgs(Cfgs):
    """Base of an algorithm's hyper-parameters. Its fields appear in `train_cfgs` of the runs of that algorithm.

    `run_cfgs` are the groups of settings that its runs have; `other_names` those that other libraries give to fields,
    and `read_as` names of keys that its runs read as others. `reads_rows` says whether its runs go through rows of
    data, into an output folder, `requires_model` whether model_name_or_path must be given. The others are facts that
    decide which settings have an effect, see `algorithms.base.Algorithm`.
    """

    other_names: ClassVar[Mapping[str, str]] = {}
    read_as: ClassVar[Mapping[str, str]] = {}
    run_cfgs: ClassVar[type[RunCfgs]] = RunCfgs
    trains: ClassVar[tuple[str, ...]] = ('policy',)
    generates: ClassVar[bool] = False
    reads_rows: ClassVar[bool] = True
    requires_model: ClassVar[bool] = True
    trains_transitions: ClassVar[bool] = False
    contrasts: ClassVar[float | None] = None
