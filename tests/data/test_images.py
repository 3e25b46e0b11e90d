"""Every kind of picture becomes upright RGB; every kind of damage a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from align_jax.data.images import ImageError, decode_image, decode_part


def encode(image: Image.Image, form: str = 'PNG', **options) -> bytes:
  out = io.BytesIO()
  image.save(out, form, **options)
  return out.getvalue()


def noise(height: int = 12, width: int = 16, channels: int = 3) -> np.ndarray:
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def reason(data: bytes, **options) -> str:
  with pytest.raises(ImageError) as caught:
    decode_image(data, **options)
  return caught.value.reason


def chunk(kind: bytes, body: bytes) -> bytes:
  return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
  header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
  body = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + body


def test_png_keeps_pixels():
  pixels = noise()
  out = decode_image(encode(Image.fromarray(pixels)))
  assert out.dtype == np.uint8
  np.testing.assert_array_equal(out, pixels)


def test_lossless_webp_keeps_pixels():
  pixels = noise()
  out = decode_image(encode(Image.fromarray(pixels), 'WEBP', lossless=True))
  np.testing.assert_array_equal(out, pixels)


def test_jpeg_equals_pillow():
  data = encode(Image.fromarray(noise(32, 32)), 'JPEG')
  np.testing.assert_array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize('form', ['PNG', 'WEBP'])
def test_transparency_is_laid_on_white(form):
  pixels = noise(channels=4)
  pixels[:6, :, 3] = 0
  pixels[6:, :, 3] = 255
  options = {'lossless': True} if form == 'WEBP' else {}
  out = decode_image(encode(Image.fromarray(pixels), form, **options))
  assert (out[:6] == 255).all()
  np.testing.assert_array_equal(out[6:], pixels[6:, :, :3])


def test_half_transparent_black_is_grey():
  out = decode_image(encode(Image.new('RGBA', (4, 4), (0, 0, 0, 128))))
  assert abs(int(out[0, 0, 0]) - 127) <= 1


def test_palette_and_palette_with_transparency():
  image = Image.fromarray(noise(8, 8)).quantize(16)
  np.testing.assert_array_equal(decode_image(encode(image)), np.asarray(image.convert('RGB')))
  index = int(np.asarray(image)[0, 0])
  out = decode_image(encode(image, transparency=index))
  assert (out[np.asarray(image) == index] == 255).all()


def test_transparent_colour_of_an_rgb_png():
  image = Image.new('RGB', (4, 4), (10, 20, 30))
  assert (decode_image(encode(image, transparency=(10, 20, 30))) == 255).all()


def test_cmyk_jpeg():
  image = Image.new('RGB', (16, 16), (200, 30, 60)).convert('CMYK')
  out = decode_image(encode(image, 'JPEG', quality=95))
  assert np.abs(out.astype(int) - [200, 30, 60]).max() < 8


@pytest.mark.parametrize('mode', ['L', 'LA', '1'])
def test_grey_modes_become_three_equal_channels(mode):
  out = decode_image(encode(Image.fromarray(noise()).convert(mode)))
  assert out.shape == (12, 16, 3)
  assert (out == out[..., :1]).all()


def test_16_bit_grey_is_scaled_not_clipped():
  ramp = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
  out = decode_image(encode(Image.fromarray(ramp)))
  np.testing.assert_array_equal(out[0, :, 0], [0, 1, 128, 255])


def test_16_bit_colour():
  row = b'\0' + struct.pack('>6H', 65535, 0, 0x8000, 0x0100, 0xFF00, 0x1234)
  out = decode_image(png(2, 1, 16, 2, row))
  np.testing.assert_array_equal(out, [[[255, 0, 128], [1, 255, 18]]])


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'WEBP'])
def test_exif_orientation_is_applied(form):
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was turned: shown rotated by 90 degrees clockwise
  pixels = np.zeros((8, 16, 3), np.uint8)
  pixels[:, :8] = 255
  options = {'lossless': True} if form == 'WEBP' else {}
  out = decode_image(encode(Image.fromarray(pixels), form, exif=exif, **options))
  assert out.shape == (16, 8, 3)
  assert out[:6].min() > 200 and out[10:].max() < 50


def test_broken_exif_does_not_lose_the_picture():
  data = encode(Image.fromarray(noise()), 'JPEG', exif=b'Exif\0\0rubbish')
  assert decode_image(data).shape == (12, 16, 3)


def test_size_is_checked_before_decoding():
  # the header promises 10^10 pixels and none follow: only the header can have been read
  assert reason(png(100_000, 100_000, 8, 2, b'')) == 'too_large'
  data = encode(Image.new('RGB', (11, 10)))
  assert reason(data, max_pixels=109) == 'too_large'
  assert decode_image(data, max_pixels=110).shape == (10, 11, 3)


@pytest.mark.parametrize('form', ['PNG', 'JPEG', 'WEBP'])
@pytest.mark.parametrize('share', [0.02, 0.3, 0.7])
def test_truncated_files_are_corrupt(form, share):
  data = encode(Image.fromarray(noise(64, 64)), form)
  assert reason(data[: max(16, int(share * len(data)))]) == 'corrupt'


def test_empty_and_scrambled_bytes_are_corrupt():
  assert reason(b'') == 'corrupt'
  assert reason(b'\x89PNG\r\n\x1a\n' + bytes(100)) == 'corrupt'
  assert reason(b'\xff\xd8\xff' + bytes(100)) == 'corrupt'
  assert reason(b'RIFF\x10\0\0\0WEBP' + bytes(100)) == 'corrupt'


def test_other_formats_are_refused():
  for form in ('GIF', 'BMP', 'TIFF'):
    assert reason(encode(Image.fromarray(noise()), form)) == 'format'
  assert reason(b'<svg xmlns="http://www.w3.org/2000/svg"/>') == 'format'


def smooth(height: int, width: int) -> Image.Image:
  """As smooth as photographs are, with a sharp edge."""
  coarse = Image.fromarray(noise(max(2, height // 12), max(2, width // 12)))
  image = coarse.resize((width, height), Image.Resampling.BICUBIC)
  image.paste((250, 20, 40), (width // 3, height // 3, width // 2, height // 2))
  return image


@pytest.mark.parametrize(
  ('box', 'factor'),
  [
    ((0, 0, 401, 301), 4),
    ((10, 20, 260, 220), 2),
    ((10, 20, 137, 220), 1),  # one side too short to be halved
    ((100, 50, 163, 113), 1),
    ((0, 0, 401, 63), 1),
  ],
)
def test_a_part_is_decoded_no_finer_than_needed(box, factor):
  image = smooth(301, 401)
  data = encode(image, 'JPEG', quality=92)
  seen = []
  picture, found = decode_part(data, lambda *size: seen.append(size) or box, 64)
  assert seen == [(401, 301)]
  assert picture.size == (-(-401 // factor), -(-301 // factor))
  np.testing.assert_allclose(np.array(found) * factor, box)
  whole = Image.fromarray(decode_image(data)).resize((64, 64), 3, box)
  part = picture.resize((64, 64), 3, found)
  difference = np.abs(np.asarray(part).astype(int) - np.asarray(whole))
  assert difference.mean() < 1.5 if factor > 1 else difference.max() == 0


def test_a_part_of_anything_else_is_that_of_the_whole():
  exif = Image.Exif()
  exif[0x0112] = 6
  image = smooth(96, 160)
  for data, size in (
    (encode(image, 'PNG'), (160, 96)),
    (encode(image, 'JPEG', exif=exif), (96, 160)),  # upright
  ):
    picture, box = decode_part(data, lambda width, height: (0, 0, width, height), 16)
    assert picture.size == size and box == (0, 0, *size)
    np.testing.assert_array_equal(np.asarray(picture), decode_image(data))


@pytest.mark.parametrize('mode', ['L', 'CMYK'])
def test_a_part_of_other_colours_becomes_rgb(mode):
  data = encode(smooth(128, 128).convert(mode), 'JPEG')
  picture, _ = decode_part(data, lambda width, height: (0, 0, width, height), 16)
  assert picture.mode == 'RGB' and picture.size == (16, 16)


def test_a_part_of_damaged_bytes_has_a_reason():
  data = encode(smooth(128, 128), 'JPEG')
  for broken, why in ((data[:300], 'corrupt'), (b'GIF89a', 'format'), (data, 'too_large')):
    with pytest.raises(ImageError) as caught:
      decode_part(
        broken, lambda width, height: (0, 0, width, height), 16, 1000 if broken is data else 10**6
      )
    assert caught.value.reason == why


def test_random_damage_gives_pixels_or_a_reason():
  rng = np.random.default_rng(1)
  for form in ('PNG', 'JPEG', 'WEBP'):
    data = encode(Image.fromarray(noise(24, 24)), form)
    for _ in range(100):
      broken = bytearray(data)
      for position in rng.integers(0, len(data), 3):
        broken[position] = rng.integers(256)
      try:
        assert decode_image(bytes(broken), max_pixels=10_000).shape[-1] == 3
      except ImageError as error:
        assert error.reason in ('corrupt', 'too_large', 'format')
