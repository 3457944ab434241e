"""`push`: an exported model as a repository on the Hugging Face Hub."""

import os

from tpt_jax.errors import UserError
from tpt_jax.io.hub_push import find_target, push_folder
from tpt_jax.io.model_cards import CARD, MADE_BY, read_metadata
from tpt_jax.io.paths import to_path
from tpt_jax.terminal import say


def push(folder: str | os.PathLike[str], name: str, *, private: bool = False) -> str:
    """Uploads an exported model, and returns the URL of its repository.

    A new repository is made. One that exists gets a new commit if an earlier export of the same run made it; any other
    is left as it is.

    Args:
      folder: as `Model.export` or `tpt export` writes it.
      name: OWNER/NAME on the Hugging Face Hub; the token is HF_TOKEN, or that of `hf auth login`.
      private: whether only the owner sees a new repository.

    Raises:
      UserError: the folder is not an export, there is no token, or the repository is not ours.
      MachineError: the Hub cannot be reached.
    """
    path = to_path(folder)
    card = read_metadata(path / CARD)
    if not isinstance(card.get(MADE_BY), dict):
        raise UserError(f"{path}: has no {CARD} by tpt_jax; give a folder that `tpt export` wrote")
    target = find_target(name, card)
    say(f"{name}: uploading {path}")
    return push_folder(path, target, private=private, message=_message(card[MADE_BY]))


def _message(made: dict[str, object]) -> str:
    version = made.get("version")
    return f"Round {made['round']}, by tpt_jax {version}" if "round" in made else f"Exported by tpt_jax {version}"
