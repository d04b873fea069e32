"""Samples of several sizes in one call of a denoiser are what they are alone, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from align_anything.algorithms.base import Algorithm, known_algorithms
from align_anything.core.errors import ModelError
from align_anything.core.types import Example, Piece
from align_anything.models.checkpointing import Checkpointing
from align_anything.models.diffusion.checkpoint import enable_gradient_checkpointing, load_denoiser
from align_anything.models.diffusion.families import pipeline_names, spec_class
from align_anything.models.diffusion.pictures import SOURCE
from align_anything.models.diffusion.prepared import LATENTS
from align_anything.models.diffusion.several import Rows, kept_apart, narrowed, strip, unstrip
from align_anything.models.diffusion.spec import DiffusionSpec
from align_anything.models.diffusion.turning import turned_in_pairs
from align_anything.policies.denoising.collator import DenoisingCollator
from align_anything.policies.denoising.policy import DenoisingPolicy
from align_anything.policies.denoising.prediction import Guidance
from align_anything.policies.denoising.transitions import Kernel
from tests.harness.local_engine import LocalEngine
from tests.models.diffusion.cases import PROMPT, Opened, conditions, opened

TAKING_SEVERAL = [
    'sd3',
    'flux',
    'flux_schnell',
    'flux_kontext',
    'flux_fill',
    'flux2_klein',
    'qwen_image',
    'qwen_image_edit',
    'z_image',
    'wan',
    'wan22',
    'wan22_5b',
    'ltx',
    'hunyuan_video',
    'cogvideox',
    'cogvideox_5b',
    'pixart',
    'pixart_sigma',
]
TEXTS = (PROMPT, 'the dog', 'a long prompt of a blue ball')


def rows_of(tiny: Opened, responses: int = 1, steps: bool = False) -> list[Example]:
    """Prompts of several lengths with samples of three sizes, one of them of two rows."""
    generator = torch.Generator().manual_seed(0)
    size = tiny.spec.default_size()
    *frames, height, width = size
    fewer = [frame - tiny.spec.frame_factor for frame in frames]
    sizes = [size, (*fewer, 2 * height, width), (*frames, height, 2 * width), size]
    made = []
    for number, own in enumerate(sizes):
        shape = tiny.spec.latent_shape(own)
        media = conditions(tiny, TEXTS[number % len(TEXTS)])[0]
        if SOURCE in media:
            media[SOURCE] = torch.randn(media[SOURCE].shape[0], *shape[1:], generator=generator)
        prompt = Piece(torch.zeros(0, dtype=torch.long), torch.zeros(0), media=media)
        pieces = [_steps(shape, generator) if steps else _clean(shape, generator) for _ in range(responses)]
        made.append(Example(prompt, pieces, f'row {number}', {'desirable': True}, unconditional=prompt))
    return made


def _clean(shape: Sequence[int], generator: torch.Generator) -> Piece:
    latents = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Piece(torch.arange(2), torch.full((2,), 0.5), media={LATENTS: latents})


def _steps(shape: Sequence[int], generator: torch.Generator) -> Piece:
    sample, after = torch.randn(2, 2, *shape, generator=generator, dtype=torch.float64)
    media = {'sample': sample, 'next': after, 'level': torch.tensor([0.9, 0.6])}
    media |= {'next_level': torch.tensor([0.6, 0.3]), 'first_level': torch.tensor([0.9, 0.9])}
    piece = Piece(torch.arange(2), torch.ones(2), media=media)
    values = torch.randn(2, generator=generator)
    piece.per_unit |= {'old': values, 'rollout': values, 'advantage': torch.tensor([1.0, -0.5])}
    return piece


def stepped(
    tiny: Opened, model: nn.Module, name: str, examples: list[Example], cut: Sequence[Sequence[int]]
) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradients of a step."""
    collate = DenoisingCollator(tiny.spec, guidance=Guidance(embedded=2.0), several=True)
    if name == 'grpo':
        collate = replace(collate, kernel=Kernel('flow_sde', 0.7), guidance=Guidance(2.5))
    policy = DenoisingPolicy(model, collate, dtype=torch.float64)
    algorithm: Algorithm = {
        'sft': known_algorithms()['sft'](),
        'dpo': known_algorithms()['dpo'](scale_coeff=5.0),
        'grpo': known_algorithms()['grpo'](
            num_generations=2, ptx_coeff=0.0, rollout_correction_cap=None, beta=0.0, clip_range_ratio=1e9
        ),
    }[name]
    model.zero_grad()
    engine = LocalEngine(policy, torch.optim.SGD(policy.parameters(), lr=0.0))
    roles = {}
    if name == 'dpo':
        other = load_denoiser(tiny.spec, torch.float64).requires_grad_(False)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.05)
        roles = {'reference': DenoisingPolicy(other, collate, dtype=torch.float64)}
    result = engine.train_step([collate([examples[at] for at in own]) for own in cut], algorithm, roles)
    grads = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    return result.loss, grads


def compare(family: str, name: str, checkpointing: bool = False) -> None:
    tiny = opened(family)
    model = load_denoiser(tiny.spec, torch.float64)
    if checkpointing:
        enable_gradient_checkpointing(model, tiny.spec, Checkpointing())
    examples = rows_of(tiny, 1 if name == 'sft' else 2, steps=name == 'grpo')
    wanted, alone = stepped(tiny, model, name, examples, [[0], [1], [2], [3]])
    found, together = stepped(tiny, model, name, examples, [[0, 1, 2, 3]])
    assert found == pytest.approx(wanted, rel=1e-5)
    assert together.keys() == alone.keys()
    for key, value in alone.items():
        # Denoisers of diffusers turn by positions in float32, and what they predict is read in it.
        scale = float(value.abs().max())
        assert float((together[key] - value).abs().max()) <= 2e-5 * max(scale, 1e-3), key
    assert sum(bool(value.any()) for value in alone.values()) > 10


def test_a_family_takes_several_sizes_or_says_why_not() -> None:
    for name in pipeline_names():
        kind = spec_class(name, '')
        takes = kind.predict_several is not DiffusionSpec.predict_several
        assert takes == (not kind.one_size), name


@pytest.mark.parametrize('text_first', [True, False])
def test_attention_of_rows_that_are_filled_up_is_that_of_each_alone(text_first: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths, text = (5, 2, 2, 7), 3
    tables = torch.randn(2, 4, 10, 6, generator=generator, dtype=torch.float64)
    present = Rows(lengths, 7, text, text_first, turned_in_pairs, tuple(tables))
    query, key, value = torch.randn(3, 4, 2, 10, 6, generator=generator, dtype=torch.float64).requires_grad_()
    mask = torch.ones(4, 1, 1, 10, dtype=torch.bool)
    mask[1, ..., 1 if text_first else -1] = False
    with kept_apart(present):
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        # Of prompts alone, and of rows by other lengths, nothing is known.
        alone = F.scaled_dot_product_attention(query[:, :, :4], key[:, :, :4], value[:, :, :4])
        with narrowed(torch.tensor([3, 1])):
            some = F.scaled_dot_product_attention(query[[3, 1]], key[[3, 1]], value[[3, 1]], attn_mask=mask[[3, 1]])
    for row, length in enumerate(lengths):
        kept = torch.arange(text + length) if text_first else torch.cat([torch.arange(length), torch.arange(7, 10)])
        turned = (turned_in_pairs(own[row : row + 1], *tables[:, row : row + 1]) for own in (query, key))
        q, k, v = (own[:, :, kept] for own in (*turned, value[row : row + 1]))
        wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[row : row + 1, ..., kept])
        torch.testing.assert_close(found[row : row + 1, :, kept], wanted)
        assert float(found[row].detach().abs().sum()) == pytest.approx(float(wanted.detach().abs().sum()))
    torch.testing.assert_close(some, found[[3, 1]])
    torch.testing.assert_close(alone, F.scaled_dot_product_attention(query[:, :, :4], key[:, :, :4], value[:, :, :4]))


def test_without_the_attention_of_pytorch_several_sizes_are_refused() -> None:
    with pytest.raises(ModelError, match='unset DIFFUSERS_ATTN_BACKEND'), kept_apart(Rows((1, 2), 2)):
        torch.ones(2).softmax(0)


@pytest.mark.parametrize('shape', [(2, 3, 4, 6), (2, 3, 2, 4, 6)])
def test_a_strip_has_the_patches_of_a_picture_in_their_order(shape: tuple[int, ...]) -> None:
    sample = torch.arange(float(torch.Size(shape).numel())).view(shape)
    made = strip(sample, 2)
    tokens = sample[0, 0].numel() // 4
    assert made.shape == (2, 3, 2, 2 * tokens)
    patches = nn.functional.unfold(sample.flatten(0, -3)[:, None], 2, stride=2).unflatten(0, (2, 3, -1))
    wanted = patches.transpose(3, 4).reshape(2, 3, tokens, 2, 2)
    assert torch.equal(made.unflatten(-1, (tokens, 2)).transpose(2, 3), wanted)
    assert torch.equal(unstrip(nn.functional.pad(made, (0, 4)), sample, 2), sample)


@pytest.mark.extended
@pytest.mark.parametrize('family', TAKING_SEVERAL)
def test_several_sizes_train_as_each_alone(family: str) -> None:
    compare(family, 'sft')


@pytest.mark.extended
@pytest.mark.parametrize('family', ['sd3', 'flux', 'qwen_image', 'wan22', 'z_image'])
@pytest.mark.parametrize('name', ['dpo', 'grpo'])
def test_pairs_and_steps_of_several_sizes_train_as_each_alone(name: str, family: str) -> None:
    compare(family, name)


@pytest.mark.extended
@pytest.mark.parametrize('family', ['sd3', 'flux2_klein', 'wan22', 'z_image'])
def test_layers_that_are_computed_again_know_the_sizes(family: str) -> None:
    compare(family, 'sft', checkpointing=True)
