"""Stand-in for the processors of OpenVLA: a picture scaled for each of two towers, in six channels."""

import numpy as np
import torch
from transformers import BaseImageProcessor, BatchFeature, ProcessorMixin


class PrismaticImageProcessor(BaseImageProcessor):
    model_input_names = ['pixel_values']

    def preprocess(self, images, return_tensors=None, **kwargs):
        images = images if isinstance(images, list) else [images]
        return BatchFeature({'pixel_values': torch.stack([self.pixels(image.convert('RGB')) for image in images])})

    def pixels(self, image):
        small = torch.from_numpy(np.array(image.resize((28, 28)))).permute(2, 0, 1) / 255
        return torch.cat([(small - 0.45) / 0.23, (small - 0.5) / 0.5])


class PrismaticProcessor(ProcessorMixin):
    attributes = ['image_processor', 'tokenizer']
    image_processor_class = 'AutoImageProcessor'
    tokenizer_class = 'AutoTokenizer'

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, text, images, return_tensors='pt'):
        pixels = self.image_processor(images)['pixel_values']
        return BatchFeature({**self.tokenizer(text, return_tensors='pt'), 'pixel_values': pixels})
