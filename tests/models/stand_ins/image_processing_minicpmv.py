"""Stand-in for the image processor of MiniCPM-V: a whole image, and two slices of it when it is wide."""

import numpy as np
import torch
from transformers import BaseImageProcessor, BatchFeature


class MiniCPMVImageProcessor(BaseImageProcessor):
    model_input_names = ['pixel_values']

    def __init__(self, patch_size=7, image_feature_size=4, use_image_id=True, version=2.6, **kwargs):
        super().__init__(**kwargs)
        self.patch_size = patch_size
        self.image_feature_size = image_feature_size
        self.use_image_id = use_image_id
        self.version = version

    def is_wide(self, size):
        return size[0] > 1.2 * size[1]

    def get_slice_image_placeholder(self, image_size, image_idx=0, max_slice_nums=None, use_image_id=None):
        unknown = '<unk>' * self.image_feature_size
        text = f'<image>{unknown}</image>'
        if self.use_image_id if use_image_id is None else bool(use_image_id):
            text = f'<image_id>{image_idx}</image_id>' + text
        return text + f'<slice>{unknown}</slice>' * 2 if self.is_wide(image_size) else text

    def pieces(self, picture):
        width, height = picture.size
        whole = picture.resize((2 * self.patch_size, (3 if width < height else 2) * self.patch_size))
        if not self.is_wide(picture.size):
            return [whole]
        half = width // 2
        sides = [picture.crop((0, 0, half, height)), picture.crop((half, 0, width, height))]
        return [whole, *(side.resize((self.patch_size, 2 * self.patch_size)) for side in sides)]

    def by_patch(self, picture):
        size = self.patch_size
        pixels = torch.from_numpy(np.array(picture.convert('RGB'))).permute(2, 0, 1) / 127.5 - 1
        rows, columns = pixels.shape[1] // size, pixels.shape[2] // size
        patches = pixels.reshape(3, rows, size, columns, size).permute(0, 2, 1, 3, 4)
        return patches.reshape(3, size, -1), (rows, columns)

    def preprocess(self, images, do_pad=True, max_slice_nums=None, return_tensors=None, **kwargs):
        parts = [[[self.by_patch(piece) for piece in self.pieces(picture)] for picture in row] for row in images]
        flat = [[piece for picture in row for piece in picture] for row in parts]
        data = {
            'pixel_values': [[pixels for pixels, _ in row] for row in flat],
            'tgt_sizes': [torch.tensor([grid for _, grid in row], dtype=torch.int32) for row in flat],
            'image_sizes': [[picture.size for picture in row] for row in images],
        }
        return BatchFeature(data)
