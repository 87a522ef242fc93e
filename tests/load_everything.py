"""Load a saved folder in every way; hub/test_remote_code.py does it here and in a process without crate_mae_hf.

    python -I load_everything.py FOLDER ... OUT_FILE

The process saves each model once more, as somebody without the package would after training, in FOLDER-again.
"""

import inspect
import sys
from pathlib import Path

import PIL.Image
import torch
import transformers

IMAGE = PIL.Image.effect_mandelbrot((50, 40), (-2, -1, 1, 1), 20)
IMAGE = PIL.Image.merge("RGB", (IMAGE, IMAGE.rotate(180), IMAGE.rotate(90)))  # some models refuse a grey one


def model_classes(config: transformers.PreTrainedConfig) -> dict[str, str]:
    """Auto class of a model -> the class it loads, as the folder says; backbones load from the Hub only."""
    references = {name: value for name, value in config.auto_map.items() if name.startswith("AutoModel")}
    return {name: reference.split(".")[-1] for name, reference in references.items()}


def load_everything(folder: str, **kwargs) -> dict[str, object]:
    """What each Auto class and both pipelines make of one image; new heads come out the same by the seed."""
    config = transformers.AutoConfig.from_pretrained(folder, **kwargs)
    results: dict[str, object] = {"config": config.to_diff_dict()}
    processor = transformers.AutoImageProcessor.from_pretrained(folder, **kwargs)
    pixel_values = results["pixel_values"] = processor(IMAGE, return_tensors="pt").pixel_values
    for backend in ("pil", "torchvision"):
        chosen = transformers.AutoImageProcessor.from_pretrained(folder, backend=backend, **kwargs)
        results[f"{backend} class"] = type(chosen).__name__
    for name in model_classes(config):
        torch.manual_seed(0)
        model = getattr(transformers, name).from_pretrained(folder, **kwargs)
        noise = {"noise": torch.rand(1, 16)} if "noise" in inspect.signature(model.forward).parameters else {}
        with torch.no_grad():
            results[name] = model(pixel_values, **noise).to_tuple()[0 if name == "AutoModel" else -1]
        results[f"{name} class"] = type(model).__name__
        if kwargs:
            assert type(model).__module__.startswith("transformers_modules."), type(model)
    for task in ("image-feature-extraction", "image-classification"):
        torch.manual_seed(0)
        results[task] = transformers.pipeline(task, model=folder, **kwargs)(IMAGE)
    return results


def save_again(folder: str) -> None:
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    (auto_class,) = [name for name, value in model_classes(config).items() if value == config.architectures[0]]
    model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(f"{folder}-again")
    processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    processor.save_pretrained(f"{folder}-again")


def main() -> None:
    *folders, out_file = sys.argv[1:]
    # The second line is for a package that was installed beside its dependencies.
    sys.path = [path for path in sys.path if "site-packages" in path or not (Path(path) / "crate_mae_hf").is_dir()]
    sys.modules["crate_mae_hf"] = None  # type: ignore[assignment]
    try:
        import crate_mae_hf  # noqa: F401
    except ImportError:
        pass
    else:
        sys.exit("crate_mae_hf can be imported")
    results = {folder: load_everything(folder, trust_remote_code=True) for folder in folders}
    for folder in folders:
        save_again(folder)
    for name, module in sys.modules.items():
        if Path(getattr(module, "__file__", None) or "").parent.name == "crate_mae_hf":
            sys.exit(f"{name} comes from the package")
    torch.save(results, out_file)


if __name__ == "__main__":
    main()
