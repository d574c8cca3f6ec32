"""Images to normalised pixels, the same bytes for the same image."""

import json
import warnings
from dataclasses import dataclass
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from registry.errors import UnsupportedBackboneError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MAX_PIXELS = 50_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow knows others, and runs Ghostscript for one of them


class ImageError(ValueError):
    """Bytes that are no image, or one that would fill the memory."""


def open_image(data: bytes, is_new: bool = False) -> Image.Image:
    """The first frame, as RGB. Raises ImageError; for a new one also where RGB would hold nothing of its 32 bits. One
    that was stored before that was refused is opened as it was learned."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError("image has too many pixels")
            if is_new and image.mode in ("I", "F"):
                raise ImageError("image has 32 bits a pixel, of which 8 are read; deliver it with 8")
            return _eight_bits(image).convert("RGB")
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("image has too many pixels") from None
    except Exception:  # a decoder of foreign bytes raises whatever its code met
        raise ImageError("image cannot be decoded") from None


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 bits of grey as 8: Pillow would cut every value off at 255, and almost all of the image would be white."""
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode.startswith("I;16") else image


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Shorter side to `height`, centre crop, scale to [0, 1], normalise per channel."""

    height: int
    width: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def read_preprocessing(folder: Path, config: Any) -> Preprocessing:
    """The folder's own mean and deviation where it names them, ImageNet's otherwise; the size is the model's."""
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    file = folder / "preprocessor_config.json"
    try:
        named = json.loads(file.read_text()) if file.exists() else {}
        mean, std = named.get("image_mean", IMAGENET_MEAN), named.get("image_std", IMAGENET_STD)
        return Preprocessing(height, width, tuple(mean), tuple(std))
    except (ValueError, TypeError, AttributeError) as error:  # no JSON, no lists
        raise UnsupportedBackboneError(
            f"{file} cannot be read ({error}); image_mean and image_std are lists of a number per channel"
        ) from error


def to_pixels(image: Image.Image | np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """(3, H, W) float32 from a PIL image or a uint8 array, (H, W, 3), (3, H, W) or (H, W)."""
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3):
            image = image.transpose(1, 2, 0)
        image = Image.fromarray(image.squeeze(2) if image.ndim == 3 and image.shape[2] == 1 else image)
    picture = _fit(image.convert("RGB"), preprocessing.height, preprocessing.width)
    pixels_HWC = torch.from_numpy(np.array(picture, dtype=np.float32)) / 255
    pixels_HWC = (pixels_HWC - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)
    return pixels_HWC.permute(2, 0, 1).contiguous()


def _fit(picture: Image.Image, height: int, width: int) -> Image.Image:
    if picture.size == (width, height):
        return picture
    scale = max(width / picture.width, height / picture.height)
    if picture.width * picture.height * scale**2 > MAX_PIXELS:  # a thin strip, which would fill the memory
        picture = _middle(picture, ceil(width / scale) + 8, ceil(height / scale) + 8)
    wide, high = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    return _middle(picture.resize((wide, high), Image.Resampling.BICUBIC), width, height)


def _middle(picture: Image.Image, width: int, height: int) -> Image.Image:
    """At most so much of it, around its centre."""
    width, height = min(width, picture.width), min(height, picture.height)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))
