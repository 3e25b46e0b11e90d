"""Tiny diffusers pipelines with random weights, saved to disk as published ones are."""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

WORDS = ['a', 'red', 'blue', 'apple', 'fish', 'ugly', 'two', 'green', 'frogs']


def clip_tokenizer() -> Any:
  """CLIP's byte pairs: letters, and a few words by merges."""
  letters = sorted({c for word in WORDS for c in word})
  vocab = {'<|startoftext|>': 0, '<|endoftext|>': 1}
  merges: list[tuple[str, str]] = []
  for token in (*letters, *(f'{c}</w>' for c in letters)):
    vocab[token] = len(vocab)
  for word in WORDS:
    pieces = [*word[:-1], f'{word[-1]}</w>']
    while len(pieces) > 1:
      joined = pieces[0] + pieces[1]
      if joined not in vocab:
        merges.append((pieces[0], pieces[1]))
        vocab[joined] = len(vocab)
      pieces[:2] = [joined]
  return transformers.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=16)


def t5_tokenizer() -> Any:
  """T5's unigrams: whole words, and letters for what else comes."""
  vocab = [('<pad>', 0.0), ('</s>', 0.0), ('<unk>', 0.0)]
  vocab += [(f'▁{word}', -2.0) for word in WORDS]
  vocab += [(c, -8.0) for c in '▁abcdefghijklmnopqrstuvwxyz']
  return transformers.T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=16)


def clip_text(tokenizer: Any) -> Any:
  config = transformers.CLIPTextConfig(
    vocab_size=len(tokenizer),
    hidden_size=32,
    intermediate_size=37,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=16,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=1,
  )
  return transformers.CLIPTextModel(config)


def stable_diffusion(folder: Path, **save: Any) -> Path:
  """Images of 32 pixels."""
  torch.manual_seed(0)
  tokenizer = clip_tokenizer()
  unet = diffusers.UNet2DConditionModel(
    block_out_channels=(4, 8),
    layers_per_block=1,
    sample_size=16,
    in_channels=4,
    out_channels=4,
    down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
    up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
    cross_attention_dim=32,
    norm_num_groups=2,
  )
  vae = diffusers.AutoencoderKL(
    block_out_channels=[4, 8],
    down_block_types=['DownEncoderBlock2D'] * 2,
    up_block_types=['UpDecoderBlock2D'] * 2,
    latent_channels=4,
    norm_num_groups=2,
  )
  scheduler = diffusers.EulerAncestralDiscreteScheduler(  # draws noise in every step
    beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear'
  )
  diffusers.StableDiffusionPipeline(
    vae=vae,
    text_encoder=clip_text(tokenizer),
    tokenizer=tokenizer,
    unet=unet,
    scheduler=scheduler,
    safety_checker=_safety_checker(),
    feature_extractor=transformers.CLIPImageProcessor(
      size={'shortest_edge': 30}, crop_size={'height': 30, 'width': 30}
    ),
  ).save_pretrained(folder, **save)
  return folder


def _safety_checker() -> Any:
  from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

  vision = {
    'hidden_size': 32,
    'intermediate_size': 37,
    'num_hidden_layers': 1,
    'num_attention_heads': 4,
    'image_size': 30,
    'patch_size': 15,
    'projection_dim': 16,
  }
  return StableDiffusionSafetyChecker(
    transformers.CLIPConfig(vision_config=vision, projection_dim=16)
  )


def _if_parts(upscaler: bool) -> dict[str, Any]:
  torch.manual_seed(1 + upscaler)
  tokenizer = t5_tokenizer()
  text_encoder = transformers.T5EncoderModel(
    transformers.T5Config(
      vocab_size=len(tokenizer), d_model=32, d_ff=37, d_kv=8, num_layers=2, num_heads=4
    )
  )
  extra = {'class_embed_type': 'timestep', 'time_embedding_act_fn': 'gelu'} if upscaler else {}
  unet = diffusers.UNet2DConditionModel(
    sample_size=32 if upscaler else 16,
    layers_per_block=1,
    block_out_channels=[32, 64],
    down_block_types=['ResnetDownsampleBlock2D', 'SimpleCrossAttnDownBlock2D'],
    mid_block_type='UNetMidBlock2DSimpleCrossAttn',
    up_block_types=['SimpleCrossAttnUpBlock2D', 'ResnetUpsampleBlock2D'],
    in_channels=6 if upscaler else 3,
    out_channels=6,
    cross_attention_dim=32,
    encoder_hid_dim=32,
    attention_head_dim=8,
    addition_embed_type='text',
    addition_embed_type_num_heads=2,
    cross_attention_norm='group_norm',
    resnet_time_scale_shift='scale_shift',
    act_fn='gelu',
    **extra,
  )
  scheduler = diffusers.DDPMScheduler(
    beta_schedule='squaredcos_cap_v2',
    thresholding=True,
    sample_max_value=1.0,
    variance_type='learned_range',
  )
  from diffusers.pipelines.deepfloyd_if import IFWatermarker

  return {
    'tokenizer': tokenizer,
    'text_encoder': text_encoder,
    'unet': unet,
    'scheduler': scheduler,
    'watermarker': IFWatermarker(),
    'safety_checker': None,
    'feature_extractor': None,
  }


def deepfloyd(folder: Path) -> Path:
  """Images of 16 pixels, with DeepFloyd's visible watermark where it is asked for."""
  diffusers.IFPipeline(**_if_parts(False), requires_safety_checker=False).save_pretrained(folder)
  return folder


def deepfloyd_upscaler(folder: Path) -> Path:
  """From 16 to 32 pixels."""
  parts = _if_parts(True)
  parts['image_noising_scheduler'] = diffusers.DDPMScheduler(beta_schedule='squaredcos_cap_v2')
  pipeline = diffusers.IFSuperResolutionPipeline(**parts, requires_safety_checker=False)
  pipeline.save_pretrained(folder)
  return folder
