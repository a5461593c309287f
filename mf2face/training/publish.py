"""A finished run's folder to the Hub, in one commit: whatever interrupts it, the revision before stays as it was."""

from pathlib import Path

from huggingface_hub import HfApi
from transformers import TrainingArguments


# Of a run: weights, configuration, code, card and results. Never the Trainer's pickles, its checkpoints or its lock.
PUBLISHED = ("*.safetensors", "*.json", "*.txt", "*.py", "*.md", "*.png")
_FOLDERS = ("language_tokenizer",)  # of a captioner


def take_token(training: TrainingArguments) -> str | None:
    """Removes the token: the Trainer pickles its arguments into each checkpoint."""
    token, training.hub_token = training.hub_token, None
    return token


def publish(folder: str | Path, training: TrainingArguments, token: str | None) -> str:
    """Uploads what `PUBLISHED` names to `hub_model_id` (the folder's name unless given). -> the commit's address."""
    api = HfApi(token=token)
    inside = list(Path(folder).iterdir())
    name = training.hub_model_id or Path(folder).resolve().name
    repo = api.create_repo(name, private=training.hub_private_repo, exist_ok=True).repo_id
    done = api.upload_folder(
        repo_id=repo,
        folder_path=folder,
        allow_patterns=list(PUBLISHED),
        ignore_patterns=[f"{found.name}/*" for found in inside if found.is_dir() and found.name not in _FOLDERS],
        revision=training.hub_revision,
        commit_message="A finished run of train.py",
    )
    return str(done)


def check_base(base: str | None) -> None:
    """An adapter names its base: a path of this machine is of no use to others, and none of their business."""
    if base and Path(base).exists():
        raise ValueError(
            f"push_to_hub: the adapter's base is {base}, a folder of this machine, where nobody else finds it; push "
            "the base first, and give its name on the Hub as --model_name_or_path"
        )
