"""What codecs of pictures share that are networks: pixels as an image processor makes them, and pictures of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from align_anything.core.errors import ModelError, SampleError
from align_anything.models.checkpoint import PROCESSOR_FILES, stored_module
from align_anything.models.codecs.base import CONFIG, Codec, CodecRules, codec_fingerprint
from align_anything.models.codecs.networks import copy_module, load_codec, network_class, weights_fingerprint

SIZE = 'size'
"""In a codec's config.json: `[height, width]` in pixels of all pictures, where no image processor says it."""
MODULE = 'vqmodel'
"""The codec in the models of transformers that hold one."""
NAMES = ('image_processor_type', 'processor_class')
"""What an image processor says of itself that makes no difference to pixels."""
HALF = {'image_mean': [0.5] * 3, 'image_std': [0.5] * 3}
"""Pixels from -1 to 1, as VQ networks take them where nothing else is said."""


@dataclass(frozen=True)
class PictureRules(CodecRules):
    """Rules of a network that makes codes of pictures.

    Attributes:
        codec: what it is when it is open.
        factor: pixels in height, and in width, that a code stands for.
        settings: the configuration of the network.
        processor: makes pixels of pictures, in the size that they are encoded in.
        within: whether the network is a part of a whole model's checkpoint.
    """

    codec: type[PictureCodec] | None = None
    factor: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    processor: Any = field(default=None, compare=False, repr=False)
    within: bool = False

    def grid(self, medium: Image.Image) -> tuple[int, ...]:
        """Returns `(height, width)` in codes."""
        height, width = (side // self.factor for side in pixels_of(self.processor, medium.height, medium.width))
        if not height or not width:
            raise SampleError(f'a picture of {medium.width} x {medium.height} pixels is too small for {self.folder}')
        return height, width

    def copy_to(self, out: Path) -> None:
        """As every codec; of a whole model's checkpoint the network alone."""
        if not self.within:
            return super().copy_to(out)
        copy_module(self.folder, MODULE, out, (CONFIG, *PROCESSOR_FILES))

    def open(self, device: torch.device | str = 'cpu') -> Codec:
        """Loads the network. Raises ModelError where it does not load."""
        return self.codec(self, self.codec.load(self).to(device))


class PictureCodec:
    """The codec: a network behind an image processor. Families say how their networks are loaded and asked.

    Attributes:
        NETWORK: the class in transformers.
    """

    NETWORK = ''

    def __init__(self, rules: PictureRules, network: nn.Module) -> None:
        self.rules, self.network = rules, network
        self.device = next(network.parameters()).device

    @classmethod
    def load(cls, rules: PictureRules) -> nn.Module:
        """Returns the frozen network, on the CPU."""
        return load_codec(cls.NETWORK, rules.folder, MODULE if rules.within else '', rules.settings)

    def codes_of(self, pixels: Tensor) -> Tensor:
        """Returns the codes, in one dimension or two, of the pixels of a picture `(1, 3, height, width)`."""
        raise NotImplementedError

    def pixels_of(self, codes: Tensor) -> Tensor:
        """Returns the pixels `(1, 3, height, width)` of the codes of a picture `(height, width)`."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, media: Sequence[Image.Image]) -> list[Tensor]:
        """Returns the codes of pictures, each `(1, height, width)` int64. Each is encoded by itself."""
        found = []
        for image in media:
            grid = self.rules.grid(image)
            pixels = self.rules.processor(image.convert('RGB'), return_tensors='pt')['pixel_values']
            codes = self.codes_of(torch.as_tensor(pixels, dtype=torch.float32, device=self.device))
            found.append(codes.reshape(1, *grid).long().cpu())
        return found

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Image.Image:
        """Returns the picture of codes `(1, height, width)`. Raises ModelError where there is no decoder."""
        if not self.rules.decodes:
            raise ModelError(f'the codec in {self.rules.folder} has no decoder, so its codes are no pictures.')
        pixels = self.pixels_of(codes[0].to(self.device))[0].permute(1, 2, 0).float().cpu()
        made = self.rules.processor.to_dict()
        if made['do_normalize']:
            pixels = pixels * torch.tensor(made['image_std']) + torch.tensor(made['image_mean'])
        scale = made['rescale_factor'] if made['do_rescale'] else 1
        return Image.fromarray((pixels / scale).round().clamp(0, 255).byte().numpy())


def network_rules(
    folder: Path,
    config: Mapping[str, Any],
    codec: type[PictureCodec],
    books: tuple[int, ...],
    default: Any,
    *,
    levels: int,
    decodes: bool = True,
    more: Sequence[str] = (),
    kind: type[PictureRules] = PictureRules,
) -> PictureRules:
    """Returns the rules of a network of pictures in a folder of its own, or within the checkpoint of a whole model.

    Args:
        folder: where it lies.
        config: the configuration in that folder.
        codec: what it is when it is open.
        books: entries of its code books.
        default: the image processor for folders that hold none and state no size.
        levels: sizes that the network goes through, each half of the one before.
        decodes: whether it makes pictures.
        more: what else tells it from others.
        kind: of the rules that are returned.
    """
    within = 'vq_config' in config
    settings = config['vq_config'] if within else config
    processor = _processor(folder, settings, default)
    try:
        pixels_of(processor, 512, 512)
    except KeyError as error:
        raise ModelError(f'the image processor in {folder} scales pictures in a way that is not known here.') from error
    if within:
        made = {name: value for name, value in processor.to_dict().items() if name not in NAMES}
        fingerprint = weights_fingerprint(stored_module(folder, MODULE), made, *more)
    else:
        fingerprint = codec_fingerprint(folder, *more)
    return kind(
        folder,
        'image',
        books,
        fingerprint,
        decodes=decodes,
        codec=codec,
        factor=2 ** (levels - 1),
        settings=settings,
        processor=processor,
        within=within,
    )


def pixels_of(processor: Any, height: int, width: int) -> tuple[int, int]:
    """Returns the height and width in which an image processor gives a picture. Raises SampleError for a bad shape."""
    made = processor.to_dict()
    if made.get('do_center_crop'):
        return made['crop_size']['height'], made['crop_size']['width']
    if not made['do_resize']:
        return height, width
    if 'min_pixels' in made:
        from transformers.models.emu3.image_processing_emu3 import smart_resize

        try:
            return smart_resize(height, width, made['spatial_factor'], made['min_pixels'], made['max_pixels'])
        except ValueError as error:
            raise SampleError(f'a picture of {width} x {height} pixels cannot be scaled: {error}') from error
    return made['size']['height'], made['size']['width']


def fixed_size(height: int, width: int) -> Any:
    """Returns an image processor that scales pictures until they fill a size, and cuts off what stands out."""
    return network_class('CLIPImageProcessor')(
        size={'shortest_edge': max(height, width)}, crop_size={'height': height, 'width': width}, **HALF
    )


def _processor(folder: Path, settings: Mapping[str, Any], default: Any) -> Any:
    if any((folder / name).is_file() for name in PROCESSOR_FILES):
        try:
            return network_class('AutoImageProcessor').from_pretrained(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f'the image processor in {folder} cannot be read: {error}') from error
    if SIZE not in settings:
        return default
    size = settings[SIZE]
    if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ModelError(f'{folder / CONFIG}: {SIZE} {size} is not a height and a width in pixels.')
    return fixed_size(*size)
