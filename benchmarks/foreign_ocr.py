"""PP-OCRv4 as users have it, inside the package rapidocr-onnxruntime: text and boxes before and after INT8.

    pip install rapidocr-onnxruntime    # for this benchmark alone
    python benchmarks/foreign_ocr.py [--calibration 24] [--test 40] [--quantizers quantrim NNCF ORT]

The package's own pipeline reads pages of rendered lines: detector, angle classifier, recogniser. What it feeds
the two large models on other pages calibrates; then both are replaced, and its answers are compared with those
of FP32 and with what was written.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from photos import photos
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from ptq_latency import quantize_onnxruntime

from quantrim.engines.machine import describe_machine
from quantrim.post_training import ptq

WORDS = (
    *(
        "engine",
        "verdict",
        "quantize",
        "latency",
        "photograph",
        "invoice",
        "receipt",
        "total",
        "amount",
        "station",
    ),
    *("platform", "departure", "street", "number", "coffee", "market", "paper", "window", "garden", "summer"),
    *("winter", "river", "bridge", "signal", "camera", "picture", "network", "answer"),
)
Page = tuple[np.ndarray, list[str]]
Line = tuple[np.ndarray, str]


def pages(count: int, seed: int) -> list[Page]:
    """Pages as BGR uint8 (H, W, 3), and their lines."""
    generator = np.random.default_rng(seed)
    return [_page(generator, index) for index in range(count)]


def _page(generator: np.random.Generator, index: int) -> Page:
    import matplotlib

    fonts = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVuS*.ttf"))
    width, height = 736, 736
    canvas = photos()[index % len(photos())].resize((width, height)).filter(ImageFilter.GaussianBlur(3))
    canvas = Image.blend(canvas, Image.new("RGB", canvas.size, "white"), float(generator.uniform(0.2, 0.8)))
    draw, lines, top = ImageDraw.Draw(canvas), [], 30
    while top < height - 80:
        size = int(generator.integers(18, 44))
        font = ImageFont.truetype(str(fonts[int(generator.integers(len(fonts)))]), size)
        words = [str(generator.choice(WORDS)) for _ in range(int(generator.integers(1, 4)))]
        words.append(f"{generator.uniform(0, 999):.2f}")
        dark = tuple(int(v) for v in generator.integers(0, 90, 3))
        draw.text((int(generator.integers(10, 80)), top), " ".join(words), fill=dark, font=font)
        lines.append(" ".join(words))
        top += int(size * generator.uniform(1.8, 3.0))
    return np.ascontiguousarray(np.asarray(canvas)[:, :, ::-1]), lines


def reader(**files: Path) -> Any:
    """The package's pipeline, with some of its models replaced (det_model_path, rec_model_path)."""
    from rapidocr_onnxruntime import RapidOCR

    return RapidOCR(**{name: str(path) for name, path in files.items()})


def read(pipeline: Any, images: Sequence[np.ndarray]) -> list[list[Line]]:
    """Lines of each page: corners (4, 2) and text."""
    answers = (pipeline(image)[0] or [] for image in images)
    return [[(np.array(box, np.float32), text) for box, text, _ in answer] for answer in answers]


def recorded(images: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What the pipeline feeds its detector and its recogniser, a sample each."""
    pipeline, fed = reader(), ([], [])
    for part, kept in ((pipeline.text_det, fed[0]), (pipeline.text_rec, fed[1])):
        name = "infer" if hasattr(part, "infer") else "session"
        setattr(part, name, _Recorder(getattr(part, name), kept))
    read(pipeline, images)
    return fed


class _Recorder:
    """A session that keeps what it is given."""

    def __init__(self, session: Any, kept: list[np.ndarray]) -> None:
        self.session, self.kept = session, kept

    def __call__(self, array: np.ndarray) -> Any:
        self.kept += [one[None].copy() for one in array]
        return self.session(array)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def nncf_file(source: Path, folder: Path, samples: Sequence[np.ndarray]) -> Path:
    """NNCF's file for ONNX Runtime; the batch axis is open."""
    import nncf

    model = onnx.load(source)
    name = model.graph.input[0].name
    data = nncf.Dataset(list(samples), lambda array: {name: array})
    quantized = nncf.quantize(model, data, subset_size=len(samples), preset=nncf.QuantizationPreset.MIXED)
    onnx.save(quantized, folder / "nncf.onnx")
    return folder / "nncf.onnx"


def ours(source: Path, folder: Path, samples: Sequence[np.ndarray]) -> Path:
    """File of `ptq` for ONNX Runtime, which the package runs, and its verdict."""
    task = "sequences" if "_rec_" in source.name else "values"
    result = ptq(source, list(samples), folder / "q.onnx", target="onnxruntime", samples=None, task=task)
    print(f"{source.name}: {result.engines[0].headline} {' '.join(result.notes)}", flush=True)
    return Path(result.output)


def ort_file(source: Path, folder: Path, samples: Sequence[np.ndarray]) -> Path:
    """File of ONNX Runtime's quantizer."""
    return quantize_onnxruntime(source, folder, [one[0] for one in samples])  # type: ignore[arg-type]


QUANTIZERS: dict[str, Callable[[Path, Path, Sequence[np.ndarray]], Path]] = {
    "quantrim": ours, "NNCF": nncf_file, "ORT": ort_file,
}  # fmt: skip


def overlap(one: np.ndarray, two: np.ndarray) -> float:
    """Intersection over union of two quadrangles' bounding boxes."""
    low, high = np.maximum(one.min(0), two.min(0)), np.minimum(one.max(0), two.max(0))
    common = float(np.prod(np.clip(high - low, 0, None)))
    return common / (sum(float(np.prod(box.max(0) - box.min(0))) for box in (one, two)) - common)


def likeness(reference: Sequence[Sequence[Line]], got: Sequence[Sequence[Line]]) -> tuple[float, float, float]:
    """Share of the reference's boxes found again (IoU 0.5), their mean IoU, and the share of equal text."""
    pairs, total = [], 0
    for wanted, there in zip(reference, got, strict=True):
        total += len(wanted)
        for box, text in wanted:
            best = max(((overlap(box, other), word) for other, word in there), default=(0.0, ""))
            if best[0] >= 0.5:
                pairs.append((best[0], best[1] == text))
    kept = len(pairs) / max(total, 1)
    mean = float(np.mean([iou for iou, _ in pairs])) if pairs else 0.0
    return kept, mean, sum(same for _, same in pairs) / max(total, 1)


def characters(got: Sequence[Sequence[Line]], lines: Sequence[Sequence[str]]) -> float:
    """Mean likeness of a page's text to what was written, 0..1, blanks left out."""
    shares = []
    for page, written in zip(got, lines, strict=True):
        ordered = sorted(page, key=lambda one: float(one[0][:, 1].mean()))
        said, meant = ("".join(text for _, text in ordered), "".join(written))
        shares.append(
            SequenceMatcher(None, said.replace(" ", ""), meant.replace(" ", ""), autojunk=False).ratio()
        )
    return float(np.mean(shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", type=int, default=24)
    parser.add_argument("--test", type=int, default=40)
    parser.add_argument("--quantizers", nargs="*", default=list(QUANTIZERS), choices=list(QUANTIZERS))
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    import rapidocr_onnxruntime

    folder_of = Path(rapidocr_onnxruntime.__file__).parent / "models"
    det, rec = (folder_of / f"ch_PP-OCRv4_{part}_infer.onnx" for part in ("det", "rec"))
    seen, read_from = recorded([image for image, _ in pages(arguments.calibration, seed=1)])
    tested = pages(arguments.test, seed=2)
    images, lines = [image for image, _ in tested], [written for _, written in tested]
    reference = read(reader(), images)
    print(f"{describe_machine().line()}; {len(seen)} pages and {len(read_from)} lines calibrate, "
          f"{len(images)} other pages with {sum(map(len, lines))} lines judge\n")  # fmt: skip
    rows = [f"| FP32 | 100.0% | 1.000 | 100.0% | {characters(reference, lines):.1%} |"]
    with tempfile.TemporaryDirectory() as text:
        for name in arguments.quantizers:
            try:
                files = []
                for source, samples in ((det, seen), (rec, read_from)):
                    folder = Path(text) / f"{name}-{source.stem}"
                    folder.mkdir()
                    files.append(QUANTIZERS[name](source, folder, samples))
                got = read(reader(det_model_path=files[0], rec_model_path=files[1]), images)
            except Exception as error:  # a peer may fail in any way; that is a result
                rows.append(f"| {name} | {type(error).__name__}: {' '.join(str(error).split())[:120]} ||||")
                continue
            kept, iou, equal = likeness(reference, got)
            rows.append(f"| {name} | {kept:.1%} | {iou:.3f} | {equal:.1%} | {characters(got, lines):.1%} |")
    print("| models | boxes of FP32 found again | mean IoU | text of FP32 | characters as written |")
    print("|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
