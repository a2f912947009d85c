"""A page on this machine that ranks a catalogue for the titles one picks, and says who put them there.

Each title's score comes in its two parts, prior and language model; beside it stands what the run's model
before preference training says. Gradio is imported when a page is made, and fetches nothing then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DynamicPOError, SettingsError
from ..names import STAGES
from .folder import RECOMMENDER_FILE, recommender_folder
from .recommender import DEFAULT_K, Recommender, load_recommender

if TYPE_CHECKING:
    from gradio import Blocks

LOCALHOST, PORT = "127.0.0.1", 7860
# Titles that the list offers, most popular first; all others can be typed.
OFFERED = 5_000
MOST_RANKED = 50
_PLAIN = ["rank", "title", "score, nats"]
_PARTS = ["prior", "language model"]

Rows = list[list[Any]]


class Demo:
    """What the page asks: a run's model, and the one that it was before preference training.

    Args:
        model: ranks.
        before: ranks too; None: there is none to compare with.
    """

    def __init__(self, model: Recommender, before: Recommender | None = None) -> None:
        self.model, self.before = model, before

    def titles(self) -> list[str]:
        """Return the titles that are offered, most popular first."""
        return self.model.catalogue.popular(OFFERED)

    def headers(self, recommender: Recommender) -> list[str]:
        """Return the names of the columns of ``rows``."""
        return [*_PLAIN, *_PARTS] if recommender.card.priors else list(_PLAIN)

    def rows(self, recommender: Recommender, history: Sequence[str], k: int) -> Rows:
        """Return the ranking for a history as rows of ``headers``.

        Raises:
            DataError: see ``Recommender.rank``.
        """
        explain = bool(recommender.card.priors)
        found = recommender.rank(list(history), k=int(k), explain=explain)
        parts = [[item.prior, item.language_model] if explain else [] for item in found]
        return [
            [place, item.title, *(round(number, 3) for number in (item.score, *part) if number is not None)]
            for place, (item, part) in enumerate(zip(found, parts, strict=True), start=1)
        ]

    def answer(self, history: Sequence[str] | None, k: int) -> tuple[Rows, Rows]:
        """Return the ranking of the model and that of before, which is empty where there was none."""
        taken = list(history or ())
        before = [] if self.before is None else self.rows(self.before, taken, k)
        return self.rows(self.model, taken, k), before


def load_demo(source: str) -> Demo:
    """Load what a page needs of a run, a recommender folder or a URI of MLflow.

    Args:
        source: see ``load_recommender``. The folder of a run whose model has both stages brings the model
            before preference training too; the backbone is held twice then.
    """
    before = Path(source) / STAGES[0]
    if not (before / RECOMMENDER_FILE).is_file() or recommender_folder(Path(source)) == before:
        return Demo(load_recommender(source))
    return Demo(load_recommender(source), load_recommender(before))


def find_gradio() -> Any:
    """Return the module that makes pages, which takes some seconds to import.

    Raises:
        SettingsError: the extra ``demo`` is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it reads this as it is imported
    try:
        import gradio
    except ImportError as error:
        raise SettingsError(
            f"demo: wanted the extra 'demo' (pip install 'recbole-dynamicpo[demo]'), got {error}"
        ) from error
    return gradio


def make_page(demo: Demo) -> Blocks:
    """Return the page; its one function has the API name ``rank``.

    Raises:
        SettingsError: the extra ``demo`` is not installed.
    """
    gradio = find_gradio()

    def rank(history: list[str] | None, k: float) -> tuple[Rows, Rows]:
        try:
            return demo.answer(history, int(k))
        except DynamicPOError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    card = demo.model.card
    with gradio.Blocks(title="recbole-dynamicpo", analytics_enabled=False) as page:
        gradio.Markdown(f"# {' '.join(card.made_by.values())}\n\n{_explained(demo)}")
        history = gradio.Dropdown(
            demo.titles(),
            value=[],
            multiselect=True,
            allow_custom_value=True,
            label="What was taken, oldest first",
            info="Pick titles of the catalogue, or type any.",
        )
        count = gradio.Slider(1, MOST_RANKED, value=DEFAULT_K, step=1, label="How many titles")
        asked = gradio.Button("Rank", variant="primary")
        with gradio.Row():
            now = gradio.Dataframe(headers=demo.headers(demo.model), label="This model", interactive=False)
            before = gradio.Dataframe(
                headers=demo.headers(demo.before or demo.model),
                label=f"Before preference training (stage {STAGES[0]})",
                interactive=False,
                visible=demo.before is not None,
            )
        asked.click(rank, [history, count], [now, before], api_name="rank")
    return page


def _explained(demo: Demo) -> str:
    if not demo.model.card.priors:
        return "Scores are log-probabilities in nats. This model has no prior."
    return (
        "Scores are log-probabilities among all titles of the catalogue, in nats. Each is the sum of what "
        f"the prior ({', '.join(demo.model.card.priors)}) says alone and what the language model adds."
    )


def serve(demo: Demo, port: int = PORT) -> None:
    """Show the page on this machine alone until the process is told to end.

    Args:
        demo: to be shown.
        port: of 127.0.0.1.

    Raises:
        SettingsError: the port is taken, or the extra ``demo`` is not installed.
    """
    gradio, page = find_gradio(), make_page(demo)
    # Fonts of the system: the themes of Gradio would fetch theirs.
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        page.launch(
            server_name=LOCALHOST, server_port=port, share=False, quiet=True, prevent_thread_lock=True,
            ssr_mode=False, theme=theme, footer_links=["api"],
        )  # fmt: skip
    except OSError as error:
        raise SettingsError(f"--port: got {port}, which cannot be listened on ({error})") from error
    try:
        print(f"http://{LOCALHOST}:{port} (end with Ctrl-C)", flush=True)
        threading.Event().wait()
    finally:
        page.close(verbose=False)
