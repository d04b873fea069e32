# %% [markdown]
# # A family of your own
#
# Most checkpoints need no code: the default rules serve any causal or image-text-to-text class of transformers. A
# family with quirks, such as a chat form that its checkpoints do not bring, has a file with `MODEL` and `SPEC`, in a
# package that announces it by an entry point. `pip install` lays down what the next cell writes by hand.

# %%
import sys
from pathlib import Path

site = Path('site').absolute()
(site / 'my_families').mkdir(parents=True)
(site / 'my_families' / '__init__.py').touch()
(site / 'my_families' / 'stablelm.py').write_text('''
"""StableLM with a chat form of one's own."""

from transformers import StableLmForCausalLM

from align_anything.models.family import FamilySpec


class AccustomedStableLmModel(StableLmForCausalLM):
    """StableLM with a language-model head."""


class StableLmSpec(FamilySpec):
    """The default rules with a template that is preferred to the checkpoint's."""

    chat_template = (
        "{% for message in messages %}{{ message['role'] + ': ' }}"
        "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
        "{% else %}{{ message['content'] + ' ' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )


MODEL, SPEC = AccustomedStableLmModel, StableLmSpec
''')
info = site / 'my_families-1.0.dist-info'
info.mkdir()
(info / 'METADATA').write_text('Metadata-Version: 2.1\nName: my-families\nVersion: 1.0\n')
(info / 'entry_points.txt').write_text('[align_anything.families]\nstablelm = my_families.stablelm\n')
sys.path.insert(0, str(site))

# %% [markdown]
# ## A checkpoint of it
#
# Of random weights, with the tokenizer of another tiny model.

# %%
from transformers import AutoTokenizer, StableLmConfig, StableLmForCausalLM

from align_anything import load_policy, train
from align_anything.testing.tiny import build

words = 'one two three four five six seven'.split()
tokenizer = AutoTokenizer.from_pretrained(
    build('llama', 'tokens', corpus=['After comes user: assistant: ' + ' '.join(words)] * 8)
)
config = StableLmConfig(
    vocab_size=len(tokenizer),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=256,
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
)
StableLmForCausalLM(config).save_pretrained('untrained')
files = tokenizer.save_pretrained('untrained')

# %% [markdown]
# ## Trained, and asked

# %%
rows = [{'instruction': f'After {word} comes', 'output': after} for word, after in zip(words, words[1:], strict=False)]
result = train(
    'text_to_text',
    'sft',
    model='untrained',
    dataset=rows,
    train_template='Instruction',
    output_dir='sft',
    max_steps=60,
    epochs=100,
    per_device_train_batch_size=6,
    learning_rate=5e-3,
    model_max_length=64,
    log_type='none',
    bf16=False,
    num_workers=0,
    gradient_accumulation_steps=1,
    save_total_limit=0,
)
curve = result.metrics['train/loss'].plot(title='loss')

# %%
policy = load_policy(result.folder, temperature=0.0, max_new_tokens=4, bf16=False)
type(policy.spec).__name__, type(policy.model).__name__

# %%
policy.tokenizer.apply_chat_template([{'role': 'user', 'content': 'After one comes'}], tokenize=False)

# %%
[answers[0].text for answers in policy.generate([row['instruction'] for row in rows])]

# %%
assert [answers[0].text.strip() for answers in policy.generate([rows[0]['instruction']])] == ['two']
