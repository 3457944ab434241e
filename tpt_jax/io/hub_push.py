"""A finished model folder on the Hugging Face Hub: a new repository, or a new commit to one that we made."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tpt_jax.errors import UserError
from tpt_jax.io.hub import REPOSITORY, HubName, errors_in_one_line, quiet
from tpt_jax.io.model_cards import CARD, MADE_BY, read_metadata

# What an earlier push may have left that the new files do not replace: transformers would read the older weights.
OLD_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model-?????-of-?????.safetensors",
    "adapter_model.safetensors",
    "adapter_config.json",
)
MADE_BY_THE_HUB = {".gitattributes"}
NO_TOKEN = "there is no token; set HF_TOKEN to one that may write, or run `hf auth login`"


@dataclasses.dataclass(frozen=True)
class Target:
    """A repository that may be pushed to.

    Attributes:
      commit: its newest commit, on which the push builds; None if it does not exist yet.
    """

    name: HubName
    commit: str | None


def find_target(name: str, card: Mapping[str, Any]) -> Target:
    """Finds out whether a model may be pushed to a repository; changes nothing.

    It may if there is no such repository, if it is empty, or if its card says that the same run made it.

    Args:
      name: OWNER/NAME.
      card: the metadata of the model's own card.

    Raises:
      UserError: the repository belongs to somebody else, or holds something else; or there is no token.
      MachineError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, get_token, hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError

    if not REPOSITORY.fullmatch(name):
        raise UserError(f"--push ({name!r:.200}): not the name of a repository; write OWNER/NAME")
    if get_token() is None:
        raise UserError(f"--push {name}: {NO_TOKEN}")
    target, api = HubName(name), HfApi()
    with quiet(), errors_in_one_line(target, fetches=False):
        _check_owner(name, api.whoami())
        try:
            info = api.model_info(name)
        except RepositoryNotFoundError:
            return Target(target, None)
        files = {file.rfilename for file in info.siblings or ()}
        if not files - MADE_BY_THE_HUB:
            return Target(target, info.sha)
        made = {}
        if CARD in files:
            made = read_metadata(pathlib.Path(hf_hub_download(name, CARD, revision=info.sha))).get(MADE_BY)
        ours = card.get(MADE_BY)
        if not _is_same_run(made, ours):
            raise UserError(
                f"--push {name}: {target.url} exists already, and is not from an earlier push of this run; "
                "nothing was changed: give another name"
            )
    return Target(target, info.sha)


def _check_owner(name: str, user: Mapping[str, Any]) -> None:
    owner = name.partition("/")[0]
    mine = [user.get("name"), *(each.get("name") for each in user.get("orgs") or ())]
    if owner not in mine:
        raise UserError(
            f"--push {name}: the token belongs to {user.get('name')}, who may not write to {owner}; give "
            f"{user.get('name')}/{name.partition('/')[2]}, or set HF_TOKEN to a token of {owner}"
        )


def _is_same_run(made: Any, ours: Any) -> bool:
    """Whether two cards name the same run and base; a model of no run is never the same."""
    if not isinstance(made, dict) or not isinstance(ours, dict) or ours.get("run") is None:
        return False
    return all(made.get(key) == ours.get(key) for key in ("run", "base"))


def push_folder(folder: str | os.PathLike[str], target: Target, *, private: bool, message: str) -> str:
    """Uploads a folder as one commit; returns the URL of the repository.

    Files of the repository that the folder lacks stay, except the weights of an earlier push. If the repository has
    changed since `find_target`, nothing is changed.

    Args:
      private: whether only the owner sees a repository that is new.

    Raises:
      UserError, MachineError: as `find_target`.
    """
    from huggingface_hub import HfApi

    api, name = HfApi(), target.name.repository
    with quiet(), errors_in_one_line(target.name, fetches=False):
        if target.commit is None:
            api.create_repo(name, private=private)
        api.upload_folder(
            repo_id=name,
            folder_path=os.fspath(folder),
            commit_message=message,
            parent_commit=target.commit,
            delete_patterns=list(OLD_WEIGHTS) if target.commit else None,
        )
    return target.name.url
