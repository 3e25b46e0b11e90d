"""Token ids of SigLIP's and SigLIP 2's tokenizers are those of `transformers`, padding included."""

import io

import numpy as np
import pytest

from align_jax.data.tokenizer import load_tokenizer

sentencepiece = pytest.importorskip('sentencepiece')
transformers = pytest.importorskip('transformers')

TEXTS = [
  'A red disc on the left.',
  'UPPER Case, punctuation!? (yes) - "quoted"',
  'naïve café 猫 🙂',
  '',
  '   spaces   between  ',
  'line\nbreak\tand tab',
  'a red cat that goes on ' * 30,
]


def siglip(folder):
  """A unigram vocabulary as T5 has it, trained here."""
  written = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS * 20),
    model_writer=written,
    vocab_size=120,
    hard_vocab_limit=False,
    character_coverage=1.0,
    bos_id=-1,
    pad_id=-1,
    eos_id=1,
    unk_id=2,
    minloglevel=2,
  )
  folder.mkdir()
  (folder / 'spiece.model').write_bytes(written.getvalue())
  return transformers.SiglipTokenizer(
    vocab_file=str(folder / 'spiece.model'), eos_token='</s>', pad_token='</s>', unk_token='<unk>'
  )


def gemma(kind: str, **options):
  """A byte-pair vocabulary as Gemma has it: bytes for what has no token, `▁` for a space."""
  tokens = ['<pad>', '<eos>', '<bos>', '<unk>', '<mask>']
  tokens += [f'<0x{value:02X}>' for value in range(256)] + ['▁']
  tokens += [chr(code) for code in range(33, 127)] + ['▁a', 're', 'red', '▁red', 'ca', 'cat']
  merges = [('▁', 'a'), ('r', 'e'), ('re', 'd'), ('▁', 'red'), ('c', 'a'), ('ca', 't')]
  vocab = {token: number for number, token in enumerate(tokens)}
  return getattr(transformers, kind)(vocab=vocab, merges=merges, **options)


MADE = {
  'siglip': lambda folder: siglip(folder / 'made'),
  'siglip2': lambda folder: gemma('Siglip2Tokenizer'),
  'siglip2-right': lambda folder: gemma('Siglip2Tokenizer', padding_side='right'),
  'gemma': lambda folder: gemma(
    'GemmaTokenizer', add_bos_token=False, add_eos_token=True, padding_side='right'
  ),
  'gemma-left': lambda folder: gemma('GemmaTokenizer', add_bos_token=True, add_eos_token=True),
}


@pytest.mark.parametrize('kind', list(MADE))
@pytest.mark.parametrize('length', [8, 64])
def test_ids_are_those_of_transformers(tmp_path, kind, length):
  theirs = MADE[kind](tmp_path)
  theirs.save_pretrained(str(tmp_path / 'folder'))
  theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / 'folder'))
  want = theirs(TEXTS, padding='max_length', truncation=True, max_length=length)['input_ids']
  ours = load_tokenizer(tmp_path / 'folder')
  np.testing.assert_array_equal(ours.encode(TEXTS, length), want)
  ours.save(tmp_path / 'again')
  again = load_tokenizer(tmp_path / 'again')
  np.testing.assert_array_equal(again.encode(TEXTS, length), want)
