"""A repository of the HuggingFace hub at a commit, kept in the hub's own cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from conformance.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conformance.checkpoints.cache import Progress
    from conformance.spec import HubSource

_ALWAYS = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja")
_SAFETENSORS = ("model*.safetensors",)
#: The second is what TransformerLens's own format calls its weights.
_PICKLED = ("pytorch_model*.bin", "*final.pth")
#: Folders hold other formats of the same weights; variants would load only by name.
_NEVER = ("*/*", "*.fp16.*", "*.bf16.*")


def download(source: HubSource, work: Path, say: Progress, *, remote_code: bool = False) -> Path:
    """Fetch config, weights (safetensors if there are any) and tokenizer.

    Args:
        source: repository and commit; without one, the newest.
        work: not used; the files stay where other programs find them too.
        say: progress.
        remote_code: fetch the repository's Python files as well.

    Raises:
        CheckpointError: offline, private, gone, or without weights.
    """
    always = (*_ALWAYS, "*.py") if remote_code else _ALWAYS
    at = f"at {source.revision[:8]}" if source.revision else "as it is now"
    say(f"downloading {source.hub} {at}")
    directory = snapshot(source, (*always, *_SAFETENSORS))
    if not any(directory.glob("*.safetensors")):
        same = source.model_copy(update={"revision": commit_of(directory) or source.revision})
        directory = snapshot(same, (*always, *_PICKLED))
    return directory


def commit_of(directory: Path) -> str | None:
    """The commit of a snapshot in the hub's cache, which is called after it."""
    return directory.name if re.fullmatch(r"[0-9a-f]{40}", directory.name) else None


def snapshot(source: HubSource, patterns: Sequence[str]) -> Path:
    """The files of a commit that match, in the hub's cache.

    Raises:
        CheckpointError: with a hint that fits the cause.
    """
    import huggingface_hub
    from huggingface_hub import errors

    where = f"{source.hub} at {source.revision}" if source.revision else source.hub
    try:
        return Path(
            huggingface_hub.snapshot_download(
                source.hub,
                revision=source.revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(_NEVER),
            )
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{where}: access is granted on request only",
            "accept its terms on the hub, then `hf auth login` or set HF_TOKEN",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{where}: no such commit", "copy the 40 digits from the repository's history"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{where}: no such repository, or a private one",
            'check source.hub ("organisation/name"); for a private one set HF_TOKEN',
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{where}: the hub cannot be reached and the files are not in its local cache",
            "connect and unset HF_HUB_OFFLINE, or fetch elsewhere and use source.path",
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{where}: {type(error).__name__}: {error}",
            "check the connection and the room on the disk, then run again",
        ) from error
