"""The configuration of a composed model, and how many tokens a medium takes in it.

Processor and model count by the same function, `token_count`, from the same lengths, so a medium never has another
number of placeholders than of features. The files of this folder whose names end in `_composed` need torch and
transformers only, so that a checkpoint can bring them along.
"""

import shutil
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

KINDS = ('image', 'video', 'audio')
PICTURE_ENCODERS = ('clip_vision_model', 'siglip_vision_model', 'vit', 'dinov2', 'dinov2_with_registers')
WAVE_ENCODERS = ('wav2vec2', 'wavlm', 'hubert')
AUDIO_ENCODERS = (*WAVE_ENCODERS, 'whisper', 'clap_audio_model')
CODE = {
    'AutoConfig': 'configuration_composed.ComposedConfig',
    'AutoModelForImageTextToText': 'modeling_composed.ComposedForConditionalGeneration',
    'AutoModelForMultimodalLM': 'modeling_composed.ComposedForConditionalGeneration',
    'AutoProcessor': 'processing_composed.ComposedProcessor',
}
"""What `auto_map` says of a checkpoint that brings its code."""


class ComposedConfig(PreTrainedConfig):
    """Configuration of a composed model.

    `media` has an entry for each kind that the model reads: `encoders`, a list of `{'config', 'final_norm'}` (empty
    where vectors come precomputed, or where videos go through the encoder of images, frame by frame), `select`,
    `precomputed_dim` and `projector` (`type`, `num_tokens`, `stack`, …).
    """

    model_type = 'composed'
    sub_configs = {'text_config': AutoConfig}

    def __init__(
        self,
        text_config=None,
        media=None,
        image_token_id=None,
        video_token_id=None,
        audio_token_id=None,
        head_bias=False,
        **kwargs,
    ):
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config or AutoConfig.for_model('llama')
        self.media = media or {}
        self.image_token_id = image_token_id
        self.video_token_id = video_token_id
        self.audio_token_id = audio_token_id
        self.head_bias = head_bias
        super().__init__(**kwargs)

    def encoders(self, kind):
        """Returns the encoders that media of a kind go through: videos may share those of images."""
        own = self.media[kind]
        return self.media['image' if own.get('by_frame') == 'shared' else kind]['encoders']


def encoder_rule(encoder, select):
    """Returns how many features an encoder makes of a medium.

    `windows` `[kernel, stride, padding]` shorten its length one after the other, and there are `each` for every unit of
    what is left. The length of audio is the sum of the mask that its feature extractor makes, of videos that go frame
    by frame the number of frames, and 1 of every other medium. With `whole` the length does not matter. `side` of an
    encoder are the pixels of images that it is shown, where they are not those that it was made for.
    """
    config = AutoConfig.for_model(**encoder['config'])
    kind, windows, each = config.model_type, [], 1
    if kind in WAVE_ENCODERS:
        windows = [[kernel, stride, 0] for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True)]
    elif kind == 'whisper':
        windows = [[3, 2, 1]]
    elif kind == 'clap_audio_model':
        each = (config.spec_size // config.patch_stride[0] // 2 ** (len(config.depths) - 1)) ** 2
    else:
        patches = (encoder.get('side', config.image_size) // config.patch_size) ** 2
        if kind == 'videomae':
            patches *= config.num_frames // config.tubelet_size
        each = patches + (leading_tokens(config) if select == 'full' else 0)
    if select in ('cls', 'pooled'):
        windows, each = [], 1
    return {'windows': windows, 'each': each, 'whole': kind in AUDIO_ENCODERS and not windows}


def counting_rule(config, kind):
    """Returns how many tokens a medium of a kind takes, as `token_count` reads it."""
    part = config.media[kind]
    rule = {'num_tokens': part['projector'].get('num_tokens'), 'stack': part['projector'].get('stack', 1)}
    encoders = [encoder_rule(encoder, part['select']) for encoder in config.encoders(kind)]
    return {**rule, 'encoders': encoders or [{'windows': [], 'each': 1, 'whole': True}]}


def feature_count(encoder, length):
    """Returns the features that an encoder makes of a length, a number or a tensor of numbers."""
    if encoder['whole']:
        return encoder['each']
    for kernel, stride, padding in encoder['windows']:
        length = (length + 2 * padding - kernel) // stride + 1
    return length * encoder['each']


def token_count(rule, lengths):
    """Returns the tokens of one medium, given its length as each of its encoders counts."""
    features = min(feature_count(encoder, length) for encoder, length in zip(rule['encoders'], lengths, strict=True))
    if features < 1:
        raise ValueError(f'a medium of length {lengths[0]} is too short for its encoder')
    return rule['num_tokens'] or -(-features // rule['stack'])


def leading_tokens(config):
    """Returns how many tokens of an image encoder come before those of patches."""
    registers = config.num_register_tokens if config.model_type == 'dinov2_with_registers' else 0
    return 0 if config.model_type in ('siglip_vision_model', 'videomae') else 1 + registers


def copy_code(folder):
    """Copies the files that a composed checkpoint needs where the package is not installed into its folder."""
    for name in sorted({module.partition('.')[0] for module in CODE.values()}):
        shutil.copyfile(Path(__file__).with_name(f'{name}.py'), Path(folder) / f'{name}.py')
