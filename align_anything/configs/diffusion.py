"""Settings that only runs of pipelines have: models that denoise."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from align_anything.configs.base import Cfgs
from align_anything.configs.effects import EVALUATES, Effect, Effects, needs, writing
from align_anything.core.types import ACTION, MEDIA_KINDS

GENERATES = Effect(
    lambda facts: facts.algorithm.generates,
    'it means nothing where nothing is generated in training; leave it out.',
    off=(None, False),
)
DRAWS = Effect(
    lambda facts: not facts.algorithm.trains_transitions,
    'it means nothing where the denoising steps of rollouts are trained; leave it out.',
    off=(None, 0.0),
)
STEPS = Effect(
    lambda facts: facts.algorithm.trains_transitions,
    'it means nothing where no denoising steps of rollouts are trained; leave it out.',
)
SAMPLES = Effect(
    lambda facts: facts.algorithm.trains_transitions,
    'rollouts of this algorithm have no noise on the way, so that all responses to a prompt would be one and the same; '
    'leave it out.',
    off=(None, False),
)
WEIGHED = Effect(
    lambda facts: facts.algorithm.contrasts is None,
    'it means nothing with an algorithm that scales the errors itself; leave it out.',
    off=(None, 'none'),
)
GIVEN = Effect(
    lambda facts: not facts.algorithm.generates,
    'it means nothing where media are generated, which have one size; leave it out.',
)
TRAINS = Effect(lambda facts: bool(facts.algorithm.trains), 'it means nothing where nothing is trained; leave it out.')
ON_DATA = Effect(
    lambda facts: not facts.algorithm.generates,
    'it means nothing where evaluations reward responses and have no loss; leave it out.',
)

SHOWN = Effect(
    lambda facts: bool(
        facts.value('diffusion_cfgs.preview_prompts') or (facts.algorithm.eval_tasks and not facts.algorithm.generates)
    ),
    'it means nothing without preview_prompts, or eval_tasks of a training on data; give one of these too, or leave it '
    'out.',
    by=('diffusion_cfgs.preview_prompts', 'train_cfgs.eval_tasks'),
)


class DiffusionCfgs(Cfgs):
    """How a denoiser is trained. They mean nothing for models that write media as tokens.

    Of those that act, the ones that denoise chunks of actions read what is of draws, of rollouts and of their steps.
    """

    takes_effect: ClassVar[Effects] = {
        '*': writing(*MEDIA_KINDS, ACTION),
        **{
            f'timestep_logit_{key}': needs('diffusion_cfgs.timestep_sampling', 'logit_normal')
            for key in ('mean', 'std')
        },
        'timestep_mode_scale': needs('diffusion_cfgs.timestep_sampling', 'mode'),
        'min_snr_gamma': needs('diffusion_cfgs.loss_weighting', 'min_snr'),
        'aspect_buckets': GIVEN,
        **{key: DRAWS for key in ('noise_offset', 'input_perturbation')},
        'loss_weighting': WEIGHED,
        'huber_c': (DRAWS, WEIGHED),
        'rollout_steps': GENERATES,
        'same_noise_in_group': SAMPLES,
        **{key: STEPS for key in ('sde_kernel', 'noise_level', 'sde_window', 'kl_form')},
        'sde_window_range': (STEPS, needs('diffusion_cfgs.sde_window')),
        'sde_window_slides_every': (STEPS, needs('diffusion_cfgs.sde_window')),
        'eval_rollout_steps': (GENERATES, EVALUATES),
        'eval_draws': (ON_DATA, EVALUATES),
        **{key: TRAINS for key in ('ema_decay', 'preview_prompts')},
        'ema_on_cpu': needs('diffusion_cfgs.ema_decay'),
        'train_text_encoder': TRAINS,
        'lora_weights': (TRAINS, needs('lora_cfgs.use_lora', True)),
        **{f'preview_{key}': needs('diffusion_cfgs.preview_prompts') for key in ('images', 'every', 'seed')},
        **{f'preview_{key}': SHOWN for key in ('steps', 'guidance')},
    }

    resolution: PositiveInt | list[PositiveInt] | None = Field(
        None,
        description='Size in pixels that images and videos are brought to: a side, or height and width. null is what '
        'the checkpoint was trained at.',
    )
    aspect_buckets: bool = Field(
        False,
        description='Keeps the aspect ratio of images and videos: each is brought to the nearest of several sizes with '
        'about as many pixels as resolution has, and a micro-batch holds one size. Off, all are cropped to resolution.',
    )
    draws_per_sample: PositiveInt = Field(
        1, description='Draws of a noise level and noise for each response in an epoch; their loss is averaged.'
    )
    timestep_sampling: Literal['auto', 'logit_normal', 'uniform', 'mode'] = Field(
        'auto',
        description='How noise levels are sampled. logit_normal and mode are of Stable Diffusion 3 (Esser et al., '
        '2024). auto is logit_normal for flows and uniform for all others.',
    )
    timestep_logit_mean: float = Field(0.0, description='Mean of the normal distribution behind logit_normal.')
    timestep_logit_std: PositiveFloat = Field(1.0, description='Its standard deviation.')
    timestep_mode_scale: float = Field(1.29, description='Scale of the mode distribution.')
    timestep_shift: PositiveFloat | None = Field(
        None,
        description='Shift s of the noise levels of a flow, σ to sσ / (1 + (s - 1)σ). null is what the scheduler of '
        'the checkpoint says, by the size of the media where it is dynamic; 1 is none.',
    )
    loss_weighting: Literal['none', 'min_snr', 'debiased', 'cosmap', 'inverse_sigma_squared'] = Field(
        'none',
        description='Weight of the loss by noise level: min_snr (Hang et al., 2023) and debiased are for DDPM, cosmap '
        'and inverse_sigma_squared (which diffusers calls sigma_sqrt) for flows.',
    )
    min_snr_gamma: PositiveFloat = Field(5.0, description='Highest signal-to-noise ratio that min_snr heeds.')
    huber_c: PositiveFloat | None = Field(
        None,
        description='Makes each squared error d² a pseudo-Huber loss 2c (√(d² + c²) - c), by which outliers weigh '
        'less; 0.1 in the scripts of kohya. null is the square.',
    )
    noise_offset: NonNegativeFloat = Field(
        0.0, description='Noise that is the same for all positions of a channel, added to the noise; 0.03 to 0.1.'
    )
    input_perturbation: NonNegativeFloat = Field(
        0.0, description='Scale of further noise that the denoiser sees and need not predict (Ning et al., 2023).'
    )
    max_sequence_length: PositiveInt | None = Field(
        None,
        description='Most tokens of a prompt that the denoiser sees, as the argument of that name of the pipeline has '
        'it: give the same to the pipeline that samples. null is what the pipeline does by itself.',
    )
    embedded_guidance: PositiveFloat | None = Field(
        None,
        description='Guidance that guidance-distilled denoisers (FLUX.1-dev, HunyuanVideo) are told. null is 1 in '
        'training on data and 3.5 in rollouts.',
    )
    train_text_encoder: bool = Field(
        False,
        description='Trains the text encoders of Stable Diffusion 1, 2 and XL along, whole or by adapters as the '
        'denoiser is: prompts are encoded in each step, with gradients, and not before training. lr_groups may give '
        'them rates of their own, by the names text_encoder and text_encoder_2.',
    )
    lora_weights: str | None = Field(
        None,
        description='Folder of a saved adapter (pytorch_lora_weights.safetensors, of this package or of diffusers) '
        'that adapters start from. An adapter that records its pipeline may be named as model_name_or_path instead.',
    )
    prepared_dir: str | None = Field(
        None,
        description='Folder that keeps latents and text embeddings, which later runs need not make again. null is the '
        'folder prepared in output_dir.',
    )
    eval_draws: PositiveInt = Field(
        4,
        description='Noise levels, evenly spaced, at which each response to evaluate is scored, with noise that hangs '
        'on the row alone: evaluations differ by the weights and by nothing else.',
    )
    ema_decay: PositiveFloat | None = Field(
        None,
        lt=1,
        description='Decay of an average of the trained weights, 0.999 to 0.9999; after k steps it is at most (1 + k) '
        '/ (10 + k). The average is what gets evaluated and previewed, and is saved as ema in the folder of the model. '
        'null is none.',
    )
    ema_on_cpu: bool = Field(
        False,
        description='Keeps the average of ema_decay in host memory, in the place of the device; each step copies what '
        'trains there.',
    )
    preview_prompts: str | list[str] | None = Field(
        None,
        description='Prompts whose media are shown while it trains, on the page previews.html and in the folder '
        'previews: a list, or a file with one on each line. null shows none.',
    )
    preview_images: list[str] | None = Field(
        None,
        description='Images that pipelines which edit are shown with preview_prompts, in their order: one for each, of '
        'FluxFillPipeline the image and its mask.',
    )
    preview_every: PositiveInt = Field(
        100, description='Optimizer steps from one preview to the next; the first is before training.'
    )
    preview_steps: PositiveInt = Field(
        28, description='Denoising steps of a preview, and of what eval_tasks measure in training on data.'
    )
    preview_guidance: PositiveFloat | None = Field(
        None,
        description='Scale of classifier-free guidance of these. null is 4.5, and 1, none, of guidance-distilled '
        'denoisers; where the model is trained on its own rollouts, it is that of the evaluation.',
    )
    preview_seed: NonNegativeInt = Field(0, description='Seed of the noise that previews start from.')
    rollout_steps: PositiveInt = Field(10, description='Denoising steps of a rollout; fewer than previews need.')
    eval_rollout_steps: PositiveInt | None = Field(
        None, description='Denoising steps of the responses to evaluation data, without noise. null is rollout_steps.'
    )
    sde_kernel: Literal['auto', 'flow_sde', 'dance_sde', 'cps', 'ddim'] = Field(
        'auto',
        description='How the trained steps of a rollout sample: flow_sde (Flow-GRPO), dance_sde (DanceGRPO), cps '
        '(coefficients-preserving), ddim (DDPO). auto is flow_sde for flows and ddim for all others. Clip ranges and '
        'KL coefficients do not carry over from one to another.',
    )
    noise_level: PositiveFloat | None = Field(
        None,
        description='How much noise the trained steps add: a of flow_sde and cps, η of dance_sde and ddim. null is '
        '0.7, 0.3 of dance_sde, 1 of ddim.',
    )
    sde_window: PositiveInt | None = Field(
        None,
        description='How many consecutive steps of a rollout sample and are trained, the others go without noise '
        '(MixGRPO, Flow-GRPO-Fast). null is all but the last.',
    )
    sde_window_range: Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)] | None = Field(
        None, description='First step that the window may begin with, and the last. null is all that it fits in.'
    )
    sde_window_slides_every: PositiveInt | None = Field(
        None,
        description='Rollouts after which the window goes on by a step, from noise to clean (MixGRPO). null puts it '
        'somewhere else in each rollout.',
    )
    same_noise_in_group: bool | None = Field(
        None,
        description='Starts all responses to a prompt from the same noise (DanceGRPO, MixGRPO). null is where '
        'sde_window is set: what responses begin from would else tell them apart more than the noise of a few steps.',
    )
    kl_form: Literal['exact', 'flow_grpo'] = Field(
        'exact',
        description='KL divergence from the reference: that of the Gaussians, or as in flow_grpo without the length of '
        'a step, whose coefficients are about ten times larger.',
    )

    @field_validator('loss_weighting', mode='before')
    @classmethod
    def _as_it_is(cls, value: object) -> object:
        return 'inverse_sigma_squared' if value == 'sigma_sqrt' else value
