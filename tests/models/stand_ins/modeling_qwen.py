"""Stand-in for Qwen-VL: bytes of paths between two tokens, and a tower that opens the files."""

import torch
from PIL import Image
from torch import nn
from torchvision import transforms
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer


class QWenConfig(LlamaConfig):
    model_type = 'qwen'

    def __init__(self, visual=None, **kwargs):
        self.visual = visual
        super().__init__(**kwargs)


class QWenTokenizerFast(FastTokenizer):
    """Puts the bytes of a path between the tokens of an image, and padding behind them."""

    span = 16

    def path_ids(self, path):
        start, pad, end = self.convert_tokens_to_ids(['<img>', '<imgpad>', '</img>'])
        name = list(path.encode())
        return [start, *name, *[pad] * (self.span - len(name)), end]


class VisionTransformer(nn.Module):
    def __init__(self, image_size, n_queries, width, output_dim, image_start_id):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 7, bias=False)
        self.positional_embedding = nn.Parameter(torch.zeros((image_size // 7) ** 2, width))
        self.attn_pool = nn.ModuleDict(
            {'query': nn.Embedding(n_queries, width), 'attn': nn.MultiheadAttention(width, 2, batch_first=True)}
        )
        self.proj = nn.Linear(width, output_dim, bias=False)
        clip = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        bicubic = transforms.InterpolationMode.BICUBIC
        self.image_transform = transforms.Compose(
            [transforms.Resize((image_size,) * 2, bicubic), transforms.ToTensor(), transforms.Normalize(*clip)]
        )

    def forward(self, pixels):
        states = self.conv1(pixels).flatten(2).transpose(1, 2)
        states = states + self.positional_embedding[: states.shape[1]]
        query = self.attn_pool['query'].weight.expand(len(pixels), -1, -1)
        return self.proj(self.attn_pool['attn'](query, states, states)[0])

    def encode(self, image_paths):
        return self(torch.stack([self.image_transform(Image.open(path).convert('RGB')) for path in image_paths]))


class QWenPreTrainedModel(LlamaPreTrainedModel):
    config_class = QWenConfig
    base_model_prefix = 'transformer'
    _supports_sdpa = False


class QWenModel(QWenPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = LlamaModel(config)
        self.h.embed_tokens = None
        self.visual = VisionTransformer(**config.visual, output_dim=config.hidden_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.wte

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, use_cache=None, return_dict=None):
        start = self.config.visual['image_start_id']
        images = fake = None
        if torch.any(input_ids == start):
            begins, ends = torch.where(input_ids == start), torch.where(input_ids == start + 1)
            places = torch.stack((begins[0], begins[1], ends[1]), dim=1).tolist()
            paths = []
            for row, begin, end in places:
                name = input_ids[row][begin + 1 : end - 1].tolist()
                paths.append(bytes(name[: name.index(start + 2)]).decode('utf-8'))
            images = self.visual.encode(paths)
            assert len(images) == len(paths)
        elif self.training:
            fake = self.visual(torch.zeros(1, 3, 7, 7, dtype=self.wte.weight.dtype))
        states = self.wte(input_ids).clone()
        if fake is not None:
            states = states + fake.mean() * 0
        elif images is not None:
            for index, (row, begin, end) in enumerate(places):
                states[row][begin + 1 : end] = images[index]
        return self.h(
            inputs_embeds=states, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache
        )


class QWenLMHeadModel(QWenPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.transformer = QWenModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def prepare_inputs_for_generation(self, *args, **kwargs):
        return LlamaForCausalLM.prepare_inputs_for_generation(self, *args, **kwargs)

    def forward(
        self, input_ids=None, past_key_values=None, attention_mask=None, position_ids=None, use_cache=None, **kwargs
    ):
        from transformers.modeling_outputs import CausalLMOutputWithPast

        found = self.transformer(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache, **kwargs
        )
        return CausalLMOutputWithPast(logits=self.lm_head(found.last_hidden_state))
