"""Tiny tokenizers and processors with chat templates of several kinds, as files."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXTS = [
  'How many red cats are there? two',
  'Where is the blue dog? at the top left',
  'a red cat and two blue dogs USER: ASSISTANT: system user assistant',
]
# of llava-hf/llava-1.5-7b-hf: no end token after an answer
LLAVA = (
  "{% for message in messages %}{% if message['role'] != 'system' %}"
  "{{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}"
  "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
  "{{ '<image>\n' }}{% endfor %}{# Render all text next #}"
  "{% if message['role'] != 'assistant' %}"
  "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
  "{{ content['text'] + ' '}}{% endfor %}{% else %}"
  "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
  "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}"
  "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# of llava-hf/llava-interleave-qwen-0.5b-hf
INTERLEAVE = (
  "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
  '{# Render all images first #}'
  "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
  "{{ '<image>' }}{% endfor %}{# Render all text next #}"
  "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
  "{{ '\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# of Qwen/Qwen2-0.5B-Instruct: contents are strings, and a system turn of its own
QWEN = (
  "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
  "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
  "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# of google/gemma-2b-it: no system role, and a start token in the template
GEMMA = (
  "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
  "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
  "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
  "{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
  "{% set role = message['role'] %}{% endif %}"
  "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
# one that leaves system turns out without a word
DEAF = (
  "{% for message in messages %}{% if message['role'] != 'system' %}"
  "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
  "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
  'llava': LLAVA, 'interleave': INTERLEAVE, 'qwen': QWEN, 'gemma': GEMMA, 'deaf': DEAF,
}  # fmt: skip
_SPECIAL = {
  'llava': ['<unk>', '<s>', '</s>'],
  'gemma': ['<pad>', '<eos>', '<bos>', '<start_of_turn>', '<end_of_turn>'],
}
_CHATML = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']


def tokenizer(kind: str):
  """A tokenizer of `transformers`: SentencePiece-like with a start token, or byte-level."""
  import transformers

  special = [*_SPECIAL.get(kind, _CHATML), '<image>']
  backend = Tokenizer(models.BPE())
  spaces = kind in ('llava', 'gemma')
  backend.pre_tokenizer = (
    pre_tokenizers.Metaspace() if spaces else pre_tokenizers.ByteLevel(add_prefix_space=False)
  )
  backend.decoder = decoders.Metaspace() if spaces else decoders.ByteLevel()
  alphabet = [chr(i) for i in range(10, 127)] if spaces else pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=420, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
  )
  backend.train_from_iterator(TEXTS * 3, trainer)
  names = {'eos_token': special[2], 'pad_token': special[0]}
  if spaces:
    bos = '<s>' if kind == 'llava' else '<bos>'
    names = {'eos_token': '</s>' if kind == 'llava' else '<eos>', 'bos_token': bos}
    names['pad_token'] = special[0]
    backend.post_processor = processors.TemplateProcessing(
      single=f'{bos} $A', special_tokens=[(bos, backend.token_to_id(bos))]
    )
  rest = [token for token in special if token not in names.values()]
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    extra_special_tokens=rest,
    chat_template=TEMPLATES[kind],
    clean_up_tokenization_spaces=False,
    **names,
  )


def processor(kind: str, folder: Path):
  """A LLaVA's processor for images of 32 pixels in patches of 8, saved; returns it."""
  import transformers

  size = {'height': 32, 'width': 32}
  made = transformers.LlavaProcessor(
    transformers.SiglipImageProcessorPil(size=size),
    tokenizer(kind),
    patch_size=8,
    vision_feature_select_strategy='full',
    chat_template=TEMPLATES[kind],
  )
  made.save_pretrained(str(folder))
  return transformers.LlavaProcessor.from_pretrained(str(folder))
