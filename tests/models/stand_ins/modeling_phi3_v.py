"""Stand-in for Phi-3-vision: images at negative ids, which the embedding replaces in place."""

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3ForCausalLM, Phi3Model

SIDE = 28


class Phi3VConfig(Phi3Config):
    model_type = 'phi3_v'

    def __init__(self, img_processor=None, embd_layer=None, **kwargs):
        self.img_processor = img_processor
        self.embd_layer = embd_layer
        super().__init__(**kwargs)


class Phi3ImageEmbedding(nn.Module):
    def __init__(self, config, wte):
        super().__init__()
        self.wte = wte
        width = config.img_processor['image_dim_out']
        tower = {'hidden_size': width, 'intermediate_size': width, 'num_hidden_layers': 2, 'num_attention_heads': 2}
        self.img_processor = CLIPVisionModel(CLIPVisionConfig(**tower, image_size=SIDE, patch_size=7))
        self.glb_GN = nn.Parameter(torch.zeros([1, 1, width * 4]))
        self.sub_GN = nn.Parameter(torch.zeros([1, 1, 1, width * 4]))
        self.img_projection = nn.Sequential(nn.Linear(width * 4, config.hidden_size), nn.GELU())

    def lines(self, crops):
        """`(rows, columns, patches, width)` of one image to a line of features with a mark behind each row."""
        rows, columns, patches, width = crops.shape
        side = int(patches**0.5) // 2
        tiles = crops.reshape(rows, columns, side, 2, side, 2, width).permute(0, 2, 1, 4, 3, 5, 6)
        tiles = tiles.reshape(1, rows * side, columns * side, 4 * width)
        return torch.cat([tiles, self.sub_GN.expand(1, rows * side, -1, -1)], dim=2).flatten(1, 2)[0]

    def forward(self, input_ids, pixel_values, image_sizes):
        places = torch.nonzero((input_ids < 0) & (input_ids > -int(1e9)), as_tuple=True)
        input_ids.clamp_min_(0)
        states = self.wte(input_ids)
        if len(places[0]):
            pictures, crops = pixel_values.shape[:2]
            found = self.img_processor(pixel_values.flatten(0, 1), output_hidden_states=True).hidden_states[-2][:, 1:]
            found = found.reshape(pictures, crops, *found.shape[1:])
            lines = []
            for picture, (height, width) in zip(found, (image_sizes // SIDE).tolist(), strict=True):
                cut = picture[1 : 1 + height * width]
                cut = cut.reshape(height, width, *cut.shape[1:])
                lines += [self.lines(cut), self.glb_GN[0], self.lines(picture[None, :1])]
            states = states.index_put(places, self.img_projection(torch.cat(lines)), accumulate=False)
        return states


class Phi3VModel(Phi3Model):
    config_class = Phi3VConfig

    def __init__(self, config):
        super().__init__(config)
        self.vision_embed_tokens = Phi3ImageEmbedding(config, wte=self.embed_tokens)
        self.post_init()

    def forward(self, input_ids=None, pixel_values=None, image_sizes=None, inputs_embeds=None, **kwargs):
        if inputs_embeds is None and pixel_values is not None and image_sizes is not None:
            inputs_embeds, input_ids = self.vision_embed_tokens(input_ids, pixel_values, image_sizes), None
        return super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)


class Phi3VForCausalLM(Phi3ForCausalLM):
    config_class = Phi3VConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = Phi3VModel(config)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        inputs_embeds=None,
        pixel_values=None,
        image_sizes=None,
        use_cache=None,
    ):
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            use_cache=use_cache,
        )
