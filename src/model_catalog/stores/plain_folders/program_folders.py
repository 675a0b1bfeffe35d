"""
Name models in the folders of Jan, LocalAI, ComfyUI, text-generation-webui and InvokeAI.

Their models are files in folders, which the reader of plain folders finds. Only paths are used:
docs/formats.md names the version and the source file of each layout.
"""

from __future__ import annotations

import re
from typing import Final

from model_catalog.files.model_kind import Role

# Jan has llamacpp and mlx, and LocalAI the others. A model's folder below is its name.
_ENGINE_FOLDER: Final = re.compile(
    r".*/(llamacpp|mlx|llama-cpp|whisper|parakeet-cpp|moss-transcribe-cpp|depth-anything"
    r"|privacy-filter)/models/(?P<below>.+)",
    re.DOTALL,
)
_COMFYUI_TYPES: Final = (
    "audio_encoders|background_removal|checkpoints|classifiers|clip|clip_vision|configs|controlnet"
    "|detection|diffusers|diffusion_models|embeddings|frame_interpolation|geometry_estimation"
    "|gligen|hypernetworks|latent_upscale_models|loras|model_patches|optical_flow|photomaker"
    "|style_models|t2i_adapter|text_encoders|unet|upscale_models|vae|vae_approx"
)
_UUID: Final = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# text-generation-webui, ComfyUI and InvokeAI 6. The reference begins behind these folders.
_MODELS_FOLDER: Final = re.compile(
    r"(.*?/)?(user_data/(models|image_models|loras|mmproj)/"
    rf"|models/(?=({_COMFYUI_TYPES}|{_UUID})/))(?P<below>.+)",
    re.DOTALL,
)
_LORAS: Final = re.compile(r".*/(models|user_data)/loras/[^/].*", re.DOTALL)
# text-generation-webui and LocalAI
_PROJECTORS: Final = re.compile(r".*/(user_data|llama-cpp)/mmproj/.*\.gguf", re.DOTALL)


def program_reference(path: str, below: str, *, is_folder: bool) -> str:
    """
    Return the name that a program has for the model at a path; `below` if no program is known.

    `path` is absolute, and `below` is the path below the folder that is scanned. `is_folder` says
    that the model is a folder. Two models can get the same name.
    """
    if (engine := _ENGINE_FOLDER.fullmatch(path)) is not None:
        name = engine["below"]
        return name if is_folder else name.rpartition("/")[0] or name
    models = _MODELS_FOLDER.fullmatch(below)
    return below if models is None else models["below"]


def program_role(path: str, role: Role) -> Role:
    """Return the role of a file. A folder of LoRA files or of projectors tells it too."""
    if role != "weights":
        return role
    if _PROJECTORS.fullmatch(path):
        return "projector"
    return "adapter" if _LORAS.fullmatch(path) else role
