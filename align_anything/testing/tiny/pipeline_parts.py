"""What tiny pipelines of diffusers are made of: their options, text encoders and autoencoders, and how they are saved.

Random weights come from torch's generator, which `save_pipeline` seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from align_anything.core.errors import ModelError
from align_anything.models.diffusion.library import quiet
from align_anything.testing.tiny.tokenizers import CORPUS, make_tokenizer

CLIP_START, CLIP_END = '<|startoftext|>', '<|endoftext|>'
CHAT_TOKENS = '<|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|> <think> </think>'.split()
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BETAS = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear', 'steps_offset': 1}
VOCAB = 384
HEAD = 16
Builder = Callable[['PipelineOptions'], Any]


@dataclass(frozen=True)
class PipelineOptions:
    """What `build` is asked for of a pipeline.

    Attributes:
        family: one of `PIPELINES`.
        hidden: width of the denoiser where it is a transformer, a multiple of 16; of UNets that of its last blocks.
        layers: blocks of the denoiser.
        image_size: side of a picture in pixels that the pipeline makes when it is asked for no size.
        factor: pixels of a side for one latent, 2, 4 or 8.
        positions: most tokens of a prompt for CLIP encoders.
        seed: of the weights.
        corpus: texts that hold the words to know as one token; empty for a small built-in one.
    """

    family: str
    hidden: int = 32
    layers: int = 1
    image_size: int = 32
    factor: int = 4
    positions: int = 77
    seed: int = 0
    corpus: tuple[str, ...] = ()
    template: str | None = None

    def check(self) -> None:
        """Raises ModelError when the sizes do not fit each other."""
        if self.hidden % HEAD or self.layers < 1:
            raise ModelError(f'hidden {self.hidden} must be a multiple of {HEAD}, and layers at least 1.')
        if self.factor not in (2, 4, 8) or self.image_size % (2 * self.factor):
            raise ModelError(f'factor must be 2, 4 or 8, and image_size {self.image_size} a multiple of twice that.')
        if self.template is not None:
            raise ModelError(f"no template '{self.template}': pipelines do not chat.")

    @property
    def heads(self) -> int:
        """Attention heads of the denoiser, each 16 wide."""
        return self.hidden // HEAD

    @property
    def latent_size(self) -> int:
        """Side of the latents."""
        return self.image_size // self.factor


def save_pipeline(builders: Mapping[str, Builder], options: PipelineOptions, out: Path) -> None:
    """Writes the pipeline of a family, made of random weights."""
    # The caller's random state is not ours to move.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        pipeline = builders[options.family](options)
    with quiet():
        pipeline.save_pretrained(out)


def clip_tokenizer(options: PipelineOptions) -> Any:
    """Returns a CLIP tokenizer that knows the words of the corpus, and every byte.

    Written by hand: a trainer breaks ties differently in every process where pieces have a suffix.
    """
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = ' '.join(options.corpus or CORPUS).lower()
    words = sorted({''.join(filter(str.isalnum, word)) for word in texts.split()} - {''})
    merges: dict[tuple[str, str], None] = {}
    for word in (word for word in words if word.isascii()):
        letters = [*word[:-1], f'{word[-1]}</w>']
        for number in range(1, len(letters)):
            merges[''.join(letters[:number]), letters[number]] = None
    pieces = [CLIP_START, CLIP_END, *alphabet, *(f'{letter}</w>' for letter in alphabet)]
    pieces += dict.fromkeys(first + second for first, second in merges)
    return CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(dict.fromkeys(pieces))},
        merges=list(merges),
        model_max_length=options.positions,
        bos_token=CLIP_START,
        eos_token=CLIP_END,
        unk_token=CLIP_END,
        pad_token=CLIP_END,
    )


def clip_encoder(options: PipelineOptions, tokenizer: Any, projected: bool = False) -> Any:
    """Returns a CLIP text encoder of two layers, 32 wide, with a projection of that width where asked for."""
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=options.positions,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config).eval()


def t5_tokenizer(options: PipelineOptions, length: int = 512) -> Any:
    """Returns a tokenizer that ends every text, as T5's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(VOCAB, options.corpus, pad='<pad>', eos='</s>')
    end = ('</s>', tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single='$A </s>', special_tokens=[end])
    tokenizer.model_max_length = length
    return tokenizer


def t5_encoder(tokenizer: Any, width: int = 32, kind: str = 'T5') -> Any:
    """Returns an encoder of one layer; `kind` is T5 or UMT5."""
    import transformers

    config = getattr(transformers, f'{kind}Config')(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return getattr(transformers, f'{kind}EncoderModel')(config).eval()


def chat_tokenizer(options: PipelineOptions, length: int = 1024) -> Any:
    """Returns a tokenizer with the tokens and the template of Qwen's chat."""
    tokenizer = make_tokenizer(
        VOCAB,
        options.corpus,
        pad='<|endoftext|>',
        eos='<|im_end|>',
        extra=['<|im_start|>', *CHAT_TOKENS[1:]],
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.model_max_length = length
    return tokenizer


def llama_tokenizer(options: PipelineOptions, length: int = 1024) -> Any:
    """Returns a tokenizer with the tokens of Llama's chat."""
    extra = ['<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>']
    tokenizer = make_tokenizer(VOCAB, options.corpus, pad='<|pad|>', eos='<|end_of_text|>', extra=extra)
    tokenizer.model_max_length = length
    return tokenizer


def decoder_config(kind: str, tokenizer: Any, layers: int = 2, **more: Any) -> Any:
    """Returns the configuration of a decoder of the Llama shape, 16 wide; `kind` is Qwen3, Llama or Gemma2."""
    import transformers

    settings = {
        'vocab_size': len(tokenizer),
        'hidden_size': 16,
        'intermediate_size': 32,
        'num_hidden_layers': layers,
        'num_attention_heads': 2,
        'num_key_value_heads': 2,
        'head_dim': 8,
        'max_position_embeddings': 1024,
        'pad_token_id': tokenizer.pad_token_id,
        'bos_token_id': tokenizer.bos_token_id,
        'eos_token_id': tokenizer.eos_token_id,
        **more,
    }
    return getattr(transformers, f'{kind}Config')(**settings)


def kl_autoencoder(options: PipelineOptions, latents: int = 4, channels: int = 3, **more: Any) -> Any:
    """Returns an `AutoencoderKL` whose latents have so many channels."""
    import diffusers

    widths = (8,) * options.factor.bit_length()
    return diffusers.AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=('DownEncoderBlock2D',) * len(widths),
        up_block_types=('UpDecoderBlock2D',) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=latents,
        norm_num_groups=4,
        sample_size=options.image_size,
        **more,
    ).eval()
