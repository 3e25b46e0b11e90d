"""Models of this machine, through PyTorch."""

import json
import shutil

import pytest

from align_jax.errors import UserError
from align_jax.synth.prompts.llm import Asker, LlmConfig
from align_jax.synth.prompts.make import PromptConfig, make_prompts
from align_jax.synth.rows import Category

pytest.importorskip('torch')

CAT = Category('cat', 'a small animal')
GOOD = json.dumps([f'a {c} cat in a white background' for c in ('red', 'blue', 'old', 'tiny')])


@pytest.fixture(scope='module')
def model_folder(tmp_path_factory):
  """A tiny language model of random weights."""
  import tokenizers
  import torch
  from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

  words = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token='<unk>'))
  words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
  words.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=['<unk>', '</s>'])
  words.train_from_iterator(['a red cat in a white background'] * 9, trainer)
  folder = str(tmp_path_factory.mktemp('llm'))
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token='<unk>', eos_token='</s>')
  tokenizer.save_pretrained(folder)
  torch.manual_seed(0)
  config = LlamaConfig(
    vocab_size=len(tokenizer),
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=1024,
  )
  LlamaForCausalLM(config).save_pretrained(folder)
  return folder


def test_a_model_of_this_machine_answers(tmp_path, model_folder):
  config = LlmConfig(folder=model_folder, max_tokens=12, rounds=2)
  ask = Asker(config, tmp_path / 'a')
  prompts, notes = ask.prompts(CAT, 2, 0)
  assert prompts == [] and notes[-1] == 'too few prompts'  # weights of no sense
  assert ask.tokens > 0 and ask.parallel == 1
  texts = [
    [json.loads(f.read_text())['answer'] for f in sorted((tmp_path / name).iterdir())]
    for name in ('a', 'b')
    if name == 'a' or Asker(config, tmp_path / 'b').prompts(CAT, 2, 0)
  ]
  assert texts[0] == texts[1] and any(answer['text'] for answer in texts[0])


def copy_of(folder, path):
  shutil.copytree(folder, path)
  return path


def test_a_model_that_writes_prompts(tmp_path, model_folder):
  """One whose weights say: after anything the answer, after the answer the end."""
  import tokenizers
  import torch
  from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

  vocab = {'<unk>': 0, '</s>': 1, GOOD: 2}
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token='<unk>'))
  words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token='<unk>', eos_token='</s>')
  # a template that knows no system, as some have
  tokenizer.chat_template = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ messages[0]['content'] }} <unk>"
  )
  config = GPT2Config(
    vocab_size=3,
    n_positions=128,
    n_embd=4,
    n_layer=1,
    n_head=1,
    bos_token_id=1,
    eos_token_id=1,
    tie_word_embeddings=False,
  )
  model = GPT2LMHeadModel(config)
  with torch.no_grad():
    for name, value in model.named_parameters():
      value.fill_(1.0 if 'ln_' in name and 'weight' in name else 0.0)
    model.transformer.wte.weight.copy_(torch.eye(3, 4))
    model.lm_head.weight.copy_(30 * torch.eye(4)[[3, 2, 0]])  # row: what it comes after
  model.save_pretrained(tmp_path / 'model')
  tokenizer.save_pretrained(tmp_path / 'model')
  llm = LlmConfig(folder=str(tmp_path / 'model'), max_tokens=500)
  config = PromptConfig(per_category=4, strategies={'llm': 1.0}, llm=llm)
  rows, notes = make_prompts(config, [CAT], None, seed=0, cache=tmp_path / 'answers')
  assert [r.text for r in rows] == json.loads(GOOD) and len(notes) == 1
  # other weights under the same name are another model
  names = [Asker(llm, tmp_path)._model.name]
  with torch.no_grad():
    model.lm_head.weight[0] += 1
  model.save_pretrained(tmp_path / 'model')
  names.append(Asker(llm, tmp_path)._model.name)
  assert names[0] != names[1]
  # numbers that are none
  with torch.no_grad():
    model.lm_head.weight.fill_(float('nan'))
  model.save_pretrained(tmp_path / 'model')
  with pytest.raises(UserError, match=r'llm.folder: cannot answer'):
    Asker(llm, tmp_path / 'other').prompts(CAT, 4, 0)


def test_folders_that_hold_no_model(tmp_path, model_folder):
  for file, message in (('model.safetensors', 'safetensors'), ('tokenizer.json', 'tokenizer')):
    folder = copy_of(model_folder, tmp_path / file)
    (folder / file).unlink()
    with pytest.raises(UserError, match=rf'llm.folder: .*{message}'):
      Asker(LlmConfig(folder=str(folder)), tmp_path)
  folder = copy_of(model_folder, tmp_path / 'code')
  config = json.loads((folder / 'config.json').read_text())
  config |= {'auto_map': {'AutoModelForCausalLM': 'own.Model'}, 'model_type': 'own'}
  (folder / 'config.json').write_text(json.dumps(config))
  (folder / 'own.py').write_text('raise SystemExit("ran")')
  with pytest.raises(UserError, match='cannot be loaded'):
    Asker(LlmConfig(folder=str(folder)), tmp_path)


def test_a_question_longer_than_the_model_reads(tmp_path, model_folder):
  folder = copy_of(model_folder, tmp_path / 'short')
  config = json.loads((folder / 'config.json').read_text()) | {'max_position_embeddings': 20}
  (folder / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match='reads 20 tokens, a question has'):
    Asker(LlmConfig(folder=str(folder)), tmp_path).prompts(CAT, 4, 0)
