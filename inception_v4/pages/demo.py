"""A page on which people try a network on their own pictures (gradio). Imported only where it is served."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from PIL import Image

from inception_v4.data.pictures import CorruptImage, decode_picture
from inception_v4.inference.predict import Predictor
from inception_v4.pages.explaining import Explanation, explain_picture, methods_for
from inception_v4.pages.gate import Gate
from inception_v4.pages.overlays import overlay
from inception_v4.weights.class_names import describe_class

_TOP = 5
_SIDE = 448  # pixels of an overlay: smaller inputs are enlarged
_WAITING = 32
"""Pictures that may wait for their turn; who comes later is told so."""
_KEPT_SECONDS = 600
"""What visitors gave, and what they got, is deleted after so long."""
_METHODS = {"gradcam": "Grad-CAM", "occlusion": "occlusion"}
_CSS = "#heat img, #picture img { image-rendering: auto } footer { display: none !important }"


@dataclass(frozen=True)
class DemoLimits:
    """What the page takes: bytes of a request, pixels of a picture."""

    body: int = 32 << 20
    pixels: int = 50_000_000


def create_demo(
    predictor: Predictor, folder: Path, *, title: str, examples: Sequence[Path] = (), limits: DemoLimits = DemoLimits()
) -> FastAPI:
    """The application.

    Args:
        folder: where gradio keeps what visitors send and get (its GRADIO_TEMP_DIR): nothing else is readable.
        examples: pictures in `folder`.
    """
    predictor.decoding = replace(predictor.decoding, max_pixels=limits.pixels)
    # FastAPI's own interactive pages would load scripts from elsewhere.
    app = FastAPI(title="inception-v4 demo", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, folder=folder, most=limits.body)
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(60, _KEPT_SECONDS)) as page:
        _lay_out(_namer(predictor), title, [[str(path)] for path in examples])
    page.has_launched = True  # else gradio takes any path of this machine for an upload's; the gate does not either
    page.queue(max_size=_WAITING, default_concurrency_limit=1, api_open=False)
    return gr.mount_gradio_app(
        app, page, path="/", max_file_size=limits.body, allowed_paths=[], blocked_paths=[], footer_links=[],
        run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False, show_error=False,
        css=_CSS, theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )  # fmt: skip


def _lay_out(name_it: Callable[[str | None], tuple[Any, Any, str]], title: str, examples: list[list[str]]) -> None:
    """A picture on the left, what becomes of it on the right; one below the other where it is narrow."""
    gr.Markdown(f"## {title}")
    with gr.Row():
        with gr.Column(min_width=300):
            picture: Any = gr.Image(
                label="Picture", sources=["upload", "webcam", "clipboard"], type="filepath", elem_id="picture",
                buttons=["fullscreen"], height=360,
            )  # fmt: skip
            if examples:
                gr.Examples(examples, inputs=picture, cache_examples=False)
        with gr.Column(min_width=300):
            classes = gr.Label(label="Classes", num_top_classes=_TOP, elem_id="classes")
            heat = gr.Gallery(
                label="Where it was seen", preview=True, columns=_TOP, height=440, elem_id="heat", object_fit="contain",
                buttons=["download", "fullscreen"], interactive=False, format="png",
            )  # fmt: skip
            took = gr.Markdown(elem_id="took")
    # gradio would open the file with Pillow, without our limits and our words for what is wrong with it.
    picture.preprocess = _path_of
    picture.change(name_it, picture, [classes, heat, took], api_visibility="private", show_progress="minimal")


def _path_of(payload: Any) -> str | None:
    """Of an upload; None where the page was cleared, or where somebody sent something else."""
    return payload.path if payload is not None else None


def _namer(predictor: Predictor) -> Callable[[str | None], tuple[Any, Any, str]]:
    """From the path of an upload to probabilities, overlays with captions, and a line about time and engine."""
    method = methods_for(predictor, None)[0]

    def name_it(path: str | None) -> tuple[Any, Any, str]:
        if path is None:
            return None, gr.Gallery(None, selected_index=None), ""
        file, began = Path(path), time.perf_counter()
        try:
            pixels = decode_picture(file.read_bytes(), file.name, predictor.decoding)
            read = time.perf_counter()
            found = explain_picture(predictor, pixels, methods=[method], top_k=_TOP)
        except (CorruptImage, OSError) as error:
            raise gr.Error(str(error), title="No answer", print_exception=False) from error
        done = time.perf_counter()
        height, width = pixels.shape[1:]
        return _bars(found), gr.Gallery(_overlays(found, method), selected_index=0), (
            f"{width} x {height} px read in {1e3 * (read - began):.0f} ms; named and explained ({_METHODS[method]}) in "
            f"{1e3 * (done - read):.0f} ms by {predictor.engine}"
        )  # fmt: skip

    return name_it


def _bars(found: Explanation) -> dict[str, float]:
    """Probabilities by words; where two classes have the same words, by these and the class's name."""
    words = [describe_class(name) for name in found.classes]
    return {
        text if words.count(text) == 1 else f"{text} ({name})": share
        for name, text, share in zip(found.classes, words, found.probabilities, strict=True)
    }


def _overlays(found: Explanation, method: str) -> list[tuple[Image.Image, str]]:
    side = max(_SIDE, found.crop.shape[-1])
    return [
        # A map of zeros is no answer, and must not look like one.
        (overlay(found.crop, heat, side), f"{words} {100 * share:.1f} %" + ("" if heat.any() else ": nothing found"))
        for heat, (words, share) in zip(found.heats[method], _bars(found).items(), strict=True)
    ]
