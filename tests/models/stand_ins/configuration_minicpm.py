"""Stand-in for the configurations of MiniCPM-V and MiniCPM-o: the names are theirs, the sizes are small."""

from transformers import Qwen2Config, SiglipVisionConfig, WhisperConfig


class MiniCPMVConfig(Qwen2Config):
    model_type = 'minicpmv'

    def __init__(
        self,
        vision_config=None,
        query_num=4,
        patch_size=7,
        vision_batch_size=16,
        use_image_id=True,
        slice_config=None,
        **kwargs,
    ):
        self.query_num = query_num
        self.patch_size = patch_size
        self.vision_batch_size = vision_batch_size
        self.use_image_id = use_image_id
        self.slice_config = slice_config
        self.vision_config = SiglipVisionConfig(**(vision_config or {}))
        super().__init__(**kwargs)


class MiniCPMOConfig(MiniCPMVConfig):
    model_type = 'minicpmo'

    def __init__(
        self,
        audio_config=None,
        audio_pool_step=2,
        audio_chunk_length=1.0,
        chunk_input=False,
        init_vision=True,
        init_audio=True,
        init_tts=True,
        **kwargs,
    ):
        self.audio_pool_step = audio_pool_step
        self.audio_chunk_length = audio_chunk_length
        self.chunk_input = chunk_input
        self.init_vision, self.init_audio, self.init_tts = init_vision, init_audio, init_tts
        self.audio_config = WhisperConfig(**(audio_config or {}))
        super().__init__(**kwargs)
