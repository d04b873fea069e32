"""Stand-in for the tokenizers of MiniCPM-V and MiniCPM-o: the tokens around media by their names."""

from transformers import PreTrainedTokenizerFast


class MiniCPMTokenizerFast(PreTrainedTokenizerFast):
    im_start, im_end = '<image>', '</image>'
    slice_start, slice_end = '<slice>', '</slice>'
    im_id_start, im_id_end = '<image_id>', '</image_id>'
    audio_start, audio_end = '<|audio_start|>', '<|audio_end|>'
