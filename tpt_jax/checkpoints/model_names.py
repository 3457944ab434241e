"""What a model's name stands for: a folder, the model in the package, or one on the Hugging Face Hub or Kaggle."""

import importlib.resources
import os
import re

from tpt_jax.errors import UserError
from tpt_jax.io.hub import REPOSITORY, HubName, fetch, find_commit, parse_hub_name
from tpt_jax.io.kaggle import SCHEME as KAGGLE
from tpt_jax.io.kaggle import fetch_kaggle
from tpt_jax.io.paths import Path, to_path
from tpt_jax.models.huggingface_export import SIDE_FILES
from tpt_jax.models.huggingface_tensors import INDEX_FILE
from tpt_jax.runtime import hosts

QUICKSTART = "quickstart"  # the name of the model that ships with the package

COMMIT = re.compile("[0-9a-f]{40}")

# The files of a repository that are used, and second copies of the weights, which are not. * stands for subfolders too.
SECOND_COPIES = ("*/*.safetensors", "consolidated*.safetensors")
FILES = (
    "README.md",
    "config.json",
    "adapter_config.json",
    INDEX_FILE,
    "*.safetensors",
    *SIDE_FILES,
    "additional_chat_templates/*",
)


def find_version(name: str | os.PathLike[str]) -> str | None:
    """The commit of a model on the Hub, or the version of one on Kaggle, that a name means now; None for a folder.

    Several hosts call it together; all get what the first one finds.

    Raises:
      UserError: there is no such repository or revision, or it cannot be read.
      MachineError: the Hub or Kaggle cannot be reached.
    """
    if is_local(name):
        return None
    return _fixed_version(os.fspath(name)) or hosts.broadcast(f"version of {name}", lambda: current_version(name))


def current_version(name: str | os.PathLike[str]) -> str | None:
    """As `find_version`, for one host alone."""
    text = os.fspath(name)
    if text.startswith(KAGGLE):
        return fetch_kaggle(text)[1]
    hub_name = None if text == QUICKSTART else parse_hub_name(name)
    return None if hub_name is None else find_commit(hub_name)


def _fixed_version(name: str) -> str | None:
    """The version in a name that `full_name` made, about which no host needs to ask."""
    if name.startswith(KAGGLE):
        return name.rpartition("/")[2] if name.count("/") == 6 else None
    revision = _hub_name(name).revision
    return revision if revision and COMMIT.fullmatch(revision) else None


def hub_parts(name: str) -> tuple[str, str | None]:
    """OWNER/NAME and the revision of a model on the Hub; the name itself and None of any other."""
    hub_name = parse_hub_name(name)
    return (name, None) if hub_name is None else (hub_name.repository, hub_name.revision)


def is_local(name: str | os.PathLike[str]) -> bool:
    """Whether a model is in a folder that exists, or would, or in the package.

    Raises:
      UserError: the name starts with hf:// and is not one.
    """
    text = os.fspath(name)
    return text == QUICKSTART or not (text.startswith(KAGGLE) or parse_hub_name(text))


def local_folder(name: str | os.PathLike[str], version: str | None) -> Path:
    """The folder that holds a model; this host downloads what it lacks of one on the Hub or on Kaggle.

    Args:
      version: as `find_version` returned it.

    Raises:
      UserError, MachineError: as io.hub.fetch and io.kaggle.fetch_kaggle raise them.
    """
    text = os.fspath(name)
    if text == QUICKSTART:
        return to_path(str(importlib.resources.files("tpt_jax.quickstart") / "model"))
    if version is None:
        return to_path(name)
    if text.startswith(KAGGLE):
        return to_path(fetch_kaggle(text, version)[0])
    return to_path(fetch(_hub_name(text), version, FILES, SECOND_COPIES))


def full_name(name: str | os.PathLike[str], version: str | None) -> str:
    """A name that means the same model at any time: hf://OWNER/NAME@COMMIT, or the name itself for a folder."""
    text = os.fspath(name)
    if version is None:
        return text
    if text.startswith(KAGGLE):
        handle = "/".join(text.removeprefix(KAGGLE).split("/")[:4])
        return f"{KAGGLE}{handle}/{version}"
    return str(HubName(_hub_name(text).repository, version))


def _hub_name(name: str) -> HubName:
    """The repository, even if a folder of that name has appeared since the name was found to be one.

    Raises:
      UserError: a repository cannot have this name.
    """
    if found := parse_hub_name(name):
        return found
    if not REPOSITORY.fullmatch(name):
        raise UserError(f"{name}: a folder has no version; leave model.version out, or name a model on the Hub")
    return HubName(name)
