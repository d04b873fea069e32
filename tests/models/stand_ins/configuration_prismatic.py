"""Stand-in for the configuration of OpenVLA: Llama inside, two towers, and statistics of actions."""

from transformers import LlamaConfig, PretrainedConfig


class OpenVLAConfig(PretrainedConfig):
    model_type = 'openvla'

    def __init__(
        self,
        norm_stats=None,
        n_action_bins=256,
        use_fused_vision_backbone=True,
        text_config=None,
        pad_token_id=32000,
        pad_to_multiple_of=64,
        **kwargs,
    ):
        self.norm_stats, self.n_action_bins = norm_stats, n_action_bins
        self.use_fused_vision_backbone = use_fused_vision_backbone
        self.timm_model_ids = ['vit_large_patch14_reg4_dinov2.lvd142m', 'vit_so400m_patch14_siglip_224']
        # 224 in what is published.
        self.image_sizes = [28, 28]
        self.pad_to_multiple_of = pad_to_multiple_of
        self.text_config = LlamaConfig(**(text_config or {}))
        super().__init__(pad_token_id=pad_token_id, **kwargs)
