"""Fetch trained generators from the Hugging Face Hub, and publish them there.

Weights on the Hub are named as hf://USER/NAME or, to pin a branch, a tag or a commit, hf://USER/NAME@REVISION. The
Hub's own client does the work: it keeps downloads in its cache, takes the user's token from `hf auth login`, and
honours HF_ENDPOINT and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from utils import UserError, printable

WEIGHTS_NAME = "model.safetensors"  # A model's weights have this name on the Hub.
NAME = re.compile(r"[\w.-]+/[\w.-]+")  # A user or an organisation, and a model.
ADDRESS = re.compile(rf"hf:/{{1,2}}({NAME.pattern})(?:@([\w./-]+))?")  # A `Path` has one of the slashes only.
MISSING = "huggingface_hub is missing; run: pip install -r requirements-extra.txt"


def is_on_hub(path: Path) -> bool:
    """Whether a path to weights is an address on the Hub."""
    return path.as_posix().startswith("hf:/")


def download_weights(path: Path) -> Path:
    """Download the weights at an address on the Hub, unless the cache has them, and return their file in the cache.

    Raises:
        UserError: the address is malformed, the Hub does not have it or cannot be reached, or the client is missing.
    """
    address = ADDRESS.fullmatch(path.as_posix())
    if not address:
        raise UserError(
            f"expected weights on the Hub as hf://USER/NAME or hf://USER/NAME@REVISION, got {printable(path)}"
        )
    name, revision = address.groups()
    with hub_errors(f"could not get {WEIGHTS_NAME} of {name} from the Hub"):
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, WEIGHTS_NAME, revision=revision))


def upload(folder: Path, names: Sequence[str], *, to: str, private: bool = False) -> str:
    """Upload files to a model on the Hub, which is created if there is none.

    Args:
        folder: where the files are.
        names: the files' names; others in the folder stay where they are.
        to: the model, as USER/NAME.
        private: whether a new model is visible to its owner only.

    Returns:
        The model's address for a browser.

    Raises:
        UserError: the Hub cannot be reached or refuses, or the client is missing.
    """
    with hub_errors(f"could not upload to {to}"):
        from huggingface_hub import HfApi

        hub = HfApi()
        address = hub.create_repo(to, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=to, folder_path=folder, allow_patterns=list(names), commit_message="Upload a CycleGAN"
        )
        return str(address)


@contextmanager
def hub_errors(failure: str) -> Iterator[None]:
    """Turn what the Hub's client raises inside the block into a UserError that starts with what has failed."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"{failure}: {MISSING}") from error
    except Exception as error:  # The client and its HTTP library have errors of many kinds.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{failure}: {printable(reason)}") from error
