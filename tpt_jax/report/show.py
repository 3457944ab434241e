"""A report in a notebook: inline, in a frame of its own, whose styles and texts cannot reach the notebook."""

import dataclasses
import html
import os
import sys
from typing import Any

from tpt_jax.io.paths import Path

HEIGHT = 720  # pixels

# Without it, a link to a part of the page loads the notebook into the frame. It must precede the security policy.
BASE = '<base href="about:srcdoc">'
# An empty sandbox: no scripts, no forms, no popups, no access to the page around it.
FRAME = (
    '<div><iframe sandbox="" title="report" srcdoc="{page}" '
    'style="width: 100%; height: {height}px; border: 1px solid #8888; border-radius: 6px"></iframe></div>'
)


@dataclasses.dataclass(frozen=True)
class Report:
    """A report that has been written; it stands for its path wherever a path is expected."""

    path: Path

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        return os.fspath(self.path)

    def show(self, *, height: int = HEIGHT) -> None:
        """Shows the page in the notebook; elsewhere prints its path.

        Args:
          height: of the frame, in pixels.
        """
        if _in_notebook():
            Inline(height)(self.path.read_text(encoding="utf-8"))
        else:
            print(self)


class Inline:
    """Shows one page after the other in the same place of a notebook; elsewhere nothing."""

    def __init__(self, height: int = HEIGHT):
        self._height = height
        self._handle: Any = None

    def __call__(self, page: str) -> None:
        if not _in_notebook():
            return
        from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]

        page = page.replace("<head>", f"<head>\n{BASE}", 1)
        shown = HTML(FRAME.format(page=html.escape(page), height=self._height))
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)


def _in_notebook() -> bool:
    """Whether a notebook shows what this process displays: IPython in a terminal has no kernel."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython  # pyright: ignore[reportMissingImports]

    return getattr(get_ipython(), "kernel", None) is not None
