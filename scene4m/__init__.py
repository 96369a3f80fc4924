"""From a clip to a sentence: the names that most programs need; a module is loaded on first use."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "base.core": "BadInput ClipSpec get_preset",
    "base.media": "FrameSpec read_clip write_clip",
    "world": "World",
    "captions": "TextTokenizer",
    "mel": "MelFrontEnd",
    "curation": "ClipDataset curate",
    "vq": "FSQ VectorQuantizer load_tokenizer train_tokenizer",
    "audio_tokenizer": "AudioTokenizer AudioTokenizerConfig",
    "video_tokenizer": "VideoTokenizer VideoTokenizerConfig",
    "tokenize": "TokenDataset tokenize_dataset",
    "masking": "Pixels Text TokenGrid UnifiedMasking",
    "fourm": "FourM",
    "generate": "any_to_any fill_grid generate_text",
    "finetune": "FinetuneConfig",
    "scene_model": "SceneModel",
    "describe": "Describer Description calibrate imagine",
    "transfer": "Captioner Summariser Transfer",
    "worlds.toystreet": "StreetClips write_street",
    "app.cosmos": "CosmosTokenizer",
    "app.long": "describe_long to_vtt",
    "app.report": "evaluate_folder",
    "app.run": "run_pipeline",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
