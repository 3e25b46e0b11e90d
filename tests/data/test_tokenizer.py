"""Our own BPE and Hugging Face folders give rows that always keep the end token."""

import json
import random
import threading

import numpy as np
import pytest
import tokenizers

from align_jax.data.tokenizer import load_tokenizer, train_tokenizer
from align_jax.errors import UserError

CAPTIONS = [f'A {c} {n} on a {b} table' for c in ('red', 'blue') for n in ('apple', 'dog', 'car')
            for b in ('green', 'small')]  # fmt: skip


@pytest.fixture(scope='module')
def tokenizer():
  return train_tokenizer(CAPTIONS, 300)


def test_rows_are_start_text_end_padding(tokenizer):
  rows = tokenizer.encode(['a red apple', ''], 16)
  assert rows.dtype == np.int32 and rows.shape == (2, 16)
  start = tokenizer.prefix[0]
  assert (rows[:, 0] == start).all()
  ends = (rows == tokenizer.eot_id).argmax(axis=1)
  assert ends[0] > 2 and ends[1] == 1
  assert (rows[0, ends[0] + 1 :] == tokenizer.pad_id).all()
  assert rows.max() < tokenizer.vocab_size <= 300


def test_truncation_keeps_the_end(tokenizer):
  rows = tokenizer.encode(['a red apple on a small table ' * 9], 8)
  assert rows[0, -1] == tokenizer.eot_id
  assert (rows[0] == tokenizer.eot_id).sum() == 1
  long = tokenizer.encode(['a red apple on a small table ' * 9], 40)
  np.testing.assert_array_equal(rows[0, :7], long[0, :7])


def test_case_and_spaces_do_not_matter_and_any_text_is_encoded(tokenizer):
  rows = tokenizer.encode(['A  RED\n apple ', 'a red apple'], 12)
  np.testing.assert_array_equal(rows[0], rows[1])
  strange = tokenizer.encode(['żółć 🦊 漢字'], 40)
  assert (strange[0] == tokenizer.eot_id).any()


def test_a_word_is_the_same_tokens_anywhere(tokenizer):
  alone = tokenizer.encode(['apple'], 8)[0].tolist()
  alone = alone[1 : alone.index(tokenizer.eot_id)]
  within = tokenizer.encode(['red apple'], 8)[0].tolist()
  assert (
    within[within.index(tokenizer.eot_id) - len(alone) : within.index(tokenizer.eot_id)] == alone
  )


def test_special_tokens_spelt_out_are_plain_text(tokenizer, tmp_path):
  tokenizer.save(tmp_path / 't')
  for which in (tokenizer, load_tokenizer(tmp_path / 't')):
    row = which.encode(['a <end> b <pad>'], 40)[0]
    end = int((row == which.eot_id).argmax())
    assert (row == which.eot_id).sum() == 1
    assert end > 8 and (row[:end] != which.pad_id).all()


def test_training_is_deterministic_in_any_order(tokenizer):
  shuffled = list(CAPTIONS)
  random.Random(0).shuffle(shuffled)
  other = train_tokenizer(iter(shuffled), 300)
  rows = [which.encode(CAPTIONS, 20) for which in (tokenizer, other)]
  np.testing.assert_array_equal(*rows)


def test_save_and_load_and_save_over(tokenizer, tmp_path):
  folder = tmp_path / 'new' / 'tok'
  for _ in range(2):
    tokenizer.save(folder)
    again = load_tokenizer(folder)
    np.testing.assert_array_equal(again.encode(CAPTIONS, 20), tokenizer.encode(CAPTIONS, 20))
    assert (again.pad_id, again.eot_id) == (tokenizer.pad_id, tokenizer.eot_id)
    assert again.vocab_size == tokenizer.vocab_size
  assert [path.name for path in folder.parent.iterdir()] == ['tok']  # nothing left aside


def test_hugging_face_reads_our_folder(tokenizer, tmp_path):
  transformers = pytest.importorskip('transformers')
  tokenizer.save(tmp_path / 't')
  hf = transformers.AutoTokenizer.from_pretrained(str(tmp_path / 't'), local_files_only=True)
  got = hf(CAPTIONS, padding='max_length', truncation=True, max_length=9)['input_ids']
  np.testing.assert_array_equal(got, tokenizer.encode(CAPTIONS, 9))


def clip_like(folder):
  """Saves a Hugging Face folder: start and end tokens, padding with the end token, as CLIP."""
  transformers = pytest.importorskip('transformers')
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({'<s>': 0, '</s>': 1, '<unk>': 2}))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=['<s>', '</s>', '<unk>'])
  backend.train_from_iterator([c.lower() for c in CAPTIONS], trainer)
  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single='<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 1)]
  )
  hf = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token='<s>', eos_token='</s>', unk_token='<unk>', pad_token='</s>'
  )
  hf.save_pretrained(str(folder))
  return hf


def test_foreign_folder_encodes_as_hugging_face(tmp_path):
  hf = clip_like(tmp_path / 'hf')
  ours = load_tokenizer(tmp_path / 'hf')
  for length in (4, 9, 14):
    want = hf(CAPTIONS, padding='max_length', truncation=True, max_length=length)['input_ids']
    np.testing.assert_array_equal(ours.encode(CAPTIONS, length), want)
  assert (ours.pad_id, ours.eot_id, ours.vocab_size) == (1, 1, len(hf))
  ours.save(tmp_path / 'copy')
  again = load_tokenizer(tmp_path / 'copy')
  np.testing.assert_array_equal(again.encode(CAPTIONS, 9), ours.encode(CAPTIONS, 9))


def test_clip_tokenizer_class_encodes_as_hugging_face(tmp_path):
  transformers = pytest.importorskip('transformers')
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  tokens = [*alphabet, *(letter + '</w>' for letter in alphabet), 're', 'red</w>']
  vocab = {token: index for index, token in enumerate(tokens)}
  vocab |= {'<|startoftext|>': len(vocab), '<|endoftext|>': len(vocab) + 1}
  hf = transformers.CLIPTokenizer(vocab=vocab, merges=[('r', 'e'), ('re', 'd</w>')])
  hf.save_pretrained(str(tmp_path / 'clip'))
  ours = load_tokenizer(tmp_path / 'clip')
  want = hf(CAPTIONS, padding='max_length', truncation=True, max_length=12)['input_ids']
  np.testing.assert_array_equal(ours.encode(CAPTIONS, 12), want)
  assert ours.eot_id == vocab['<|endoftext|>']


def test_encoding_from_several_threads(tmp_path):
  clip_like(tmp_path / 'hf')
  for which in (load_tokenizer(tmp_path / 'hf'), train_tokenizer(CAPTIONS, 300)):
    want = which.encode(CAPTIONS, 10)
    failures = []

    def work(which=which, want=want, failures=failures):
      try:
        for _ in range(20):
          np.testing.assert_array_equal(which.encode(CAPTIONS, 10), want)
      except BaseException as error:
        failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert not failures


def test_bad_input_is_named(tokenizer, tmp_path):
  with pytest.raises(UserError, match='no captions'):
    train_tokenizer([], 300)
  with pytest.raises(UserError, match='vocab_size 100'):
    train_tokenizer(CAPTIONS, 100)
  with pytest.raises(UserError, match='length 2'):
    tokenizer.encode(['a'], 2)
  with pytest.raises(UserError, match='nowhere: no such tokenizer folder'):
    load_tokenizer(tmp_path / 'nowhere')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match=r'no tokenizer_config\.json'):
    load_tokenizer(tmp_path / 'empty')


def test_damaged_folders_are_named(tokenizer, tmp_path):
  tokenizer.save(tmp_path / 'ours')
  (tmp_path / 'ours' / 'tokenizer.json').write_text('{"half')
  with pytest.raises(UserError, match=r'tokenizer\.json'):
    load_tokenizer(tmp_path / 'ours')
  (tmp_path / 'foreign').mkdir()
  config = tmp_path / 'foreign' / 'tokenizer_config.json'
  config.write_text(json.dumps({'tokenizer_class': 'CLIPTokenizer'}))
  with pytest.raises(UserError, match='foreign'):
    load_tokenizer(tmp_path / 'foreign')
  config.write_text('[1]')
  with pytest.raises(UserError, match='not a tokenizer configuration'):
    load_tokenizer(tmp_path / 'foreign')


def test_a_failed_save_leaves_the_earlier_folder(tokenizer, tmp_path):
  tokenizer.save(tmp_path / 't')
  before = {path.name: path.read_bytes() for path in (tmp_path / 't').iterdir()}

  def broken(folder):
    (folder / 'tokenizer.json').write_text('half')
    raise OSError(28, 'No space left on device')

  object.__setattr__(failing := load_tokenizer(tmp_path / 't'), 'write', broken)
  with pytest.raises(OSError):
    failing.save(tmp_path / 't')
  assert {path.name: path.read_bytes() for path in (tmp_path / 't').iterdir()} == before
  assert len(list(tmp_path.iterdir())) == 1
