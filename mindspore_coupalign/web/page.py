"""The web demo's user interface in Gradio: the request on the left, the answer on the right."""

from pathlib import Path

import gradio as gr

from mindspore_coupalign.errors import UserError, one_line
from mindspore_coupalign.inference.model import Model
from mindspore_coupalign.web.demo import KEPT, Answer, Limits, check_place, segment

AT_ONCE = 2  # requests that are prepared in parallel; the network runs for one at a time
FONTS = ["ui-sans-serif", "system-ui", "Helvetica", "Arial", "sans-serif"]  # no font comes from the net
STYLE = ".gradio-container {max-width: 1180px !important; margin: auto;}"
HEADERS = ["sentence", "score", "x, y, width, height", "pixels", "notes"]
WIDTHS: list[str | int] = ["28%", "11%", "24%", "13%", "24%"]


class Page(gr.Blocks):
    """A malformed request gets a one-line error and leaves no traceback on the server."""

    async def preprocess_data(self, *arguments, **more):
        try:
            return await super().preprocess_data(*arguments, **more)
        except gr.Error:
            raise
        except Exception as exc:
            raise gr.Error(f"malformed request: {one_line(exc, 200)}", duration=None,
                           print_exception=False) from exc


def build(model: Model, title: str, examples: list[tuple[str, str]], limits: Limits, folder: Path,
          explains: bool) -> gr.Blocks:
    """The interface to a model.

    Args:
        examples: (path of an image, sentences).
        folder: for the files of answers; Gradio's uploads are below it too.
        explains: whether the model can draw what each word looked at.
    """
    theme = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])
    places = [Path(path).resolve() for path, _ in examples]

    def answer(image: str, sentences: str, threshold: float, attention: bool):
        try:
            check_place(image, [folder, *places])
            result: Answer = segment(model, image, sentences, threshold, attention, limits, folder)
        except UserError as exc:
            raise gr.Error(str(exc), duration=None, print_exception=False) from exc
        rows = [[r["sentence"], f"{r['score']:.2f}", "" if r["box"] is None else ", ".join(map(str, r["box"])),
                 r["area"], "; ".join(r["notes"])] for r in result.records]
        return (result.overlays, rows, result.records, result.files,
                gr.Image(result.attention, visible=result.attention is not None))

    with Page(title="CoupAlign", analytics_enabled=False, delete_cache=(KEPT // 4, KEPT)) as page:
        gr.Markdown(f"# CoupAlign\nSegments what a sentence refers to in an image. {title}")
        with gr.Row():
            with gr.Column():
                image = gr.Image(type="filepath", image_mode=None, sources=["upload", "clipboard"], label="image",
                                 elem_id="picture", height=340)
                # the file unchanged: our reader knows more formats and has better error messages
                setattr(image, "preprocess", lambda payload: payload.path if payload else None)  # noqa: B010 - a method
                text = gr.Textbox(label="sentences, one per line", lines=3, max_length=limits.characters,
                                  placeholder="the red circle", elem_id="sentences")
                with gr.Accordion("options", open=False):
                    threshold = gr.Slider(0.05, 0.95, model.threshold, step=0.05, label="threshold",
                                          info="probability above which a pixel is in the mask")
                    attention = gr.Checkbox(False, label="show what each word looked at (first sentence)",
                                            visible=explains)
                button = gr.Button("segment", variant="primary", elem_id="segment")
            with gr.Column():
                overlays = gr.Gallery(label="masks", columns=2, object_fit="contain", height=380, elem_id="overlays",
                                      format="png")
                table = gr.Dataframe(headers=HEADERS, label="score and box", interactive=False, wrap=True,
                                     column_widths=WIDTHS, elem_id="table")
                files = gr.Files(label="download: masks and answer.json", interactive=False)
                sheet = gr.Image(label="what each word looked at", visible=False, interactive=False)
                with gr.Accordion("answer as JSON", open=False):
                    records = gr.JSON(label="answer", elem_id="records")
        if examples:
            gr.Examples([list(example) for example in examples], [image, text], label="examples")
        asked = [image, text, threshold, attention]
        gr.on([button.click], answer, asked, [overlays, table, records, files, sheet], api_name="segment",
              concurrency_limit=AT_ONCE)
    page.theme, page.css = theme, STYLE
    return page
