"""Stand-in for the processors of Phi-3-vision: crops, and texts cut at `<|image_1|>`."""

import re

import numpy as np
import torch
from transformers import BaseImageProcessor, BatchFeature, ProcessorMixin

SIDE = 28


class Phi3VImageProcessor(BaseImageProcessor):
    model_input_names = ['pixel_values', 'image_sizes']

    def preprocess(self, images, return_tensors=None, **kwargs):
        found, sizes = [], []
        for picture in images:
            columns = 2 if picture.size[0] > 1.2 * picture.size[1] else 1
            large = self.pixels(picture.resize((columns * SIDE, SIDE)))
            crops = [self.pixels(picture.resize((SIDE, SIDE))), *large.split(SIDE, dim=2)]
            found.append(torch.stack(crops + [torch.zeros_like(crops[0])] * (2 - columns)))
            sizes.append([SIDE, columns * SIDE])
        side = SIDE // 14
        numbers = [side * (width // SIDE * side + 1) + 1 + side * (side + 1) for _, width in sizes]
        data = {'pixel_values': torch.stack(found), 'image_sizes': torch.tensor(sizes), 'num_img_tokens': numbers}
        return BatchFeature(data)

    def pixels(self, picture):
        return torch.from_numpy(np.array(picture.convert('RGB'))).permute(2, 0, 1) / 127.5 - 1


class Phi3VProcessor(ProcessorMixin):
    attributes = ['image_processor', 'tokenizer']
    image_processor_class = 'AutoImageProcessor'
    tokenizer_class = 'AutoTokenizer'

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, text, images=None, return_tensors='pt'):
        if images is None:
            return self.tokenizer(text, return_tensors=return_tensors)
        found = self.image_processor(images)
        chunks = [self.tokenizer(chunk).input_ids for chunk in re.split(r'<\|image_\d+\|>', text)]
        ids = chunks[0]
        for number, (chunk, count) in enumerate(zip(chunks[1:], found.pop('num_img_tokens'), strict=True), 1):
            ids = [*ids, *[-number] * count, *chunk]
        return BatchFeature({**found, 'input_ids': torch.tensor([ids])})
