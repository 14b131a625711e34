"""The search with a configuration: labelled pictures judge, and training may offer candidates of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

from quantrim.compression.compress import RECIPES, Offers, compress
from quantrim.compression.judge import Judge, metric_judge
from quantrim.compression.result import Candidate, CompressResult
from quantrim.compression.tuning import Tuning
from quantrim.compression.variants import Variant
from quantrim.engines import EngineName
from quantrim.engines.trial import EngineResult
from quantrim.errors import ConfigError
from quantrim.journal import digest
from quantrim.pruning import Engine, PruneConfig
from quantrim.recipes.calibration import calibration_pairs
from quantrim.recipes.deploy import carry_deploy
from quantrim.recipes.judging import TaskJudge, task_judge
from quantrim.recipes.loading import load, without_quantizers
from quantrim.recipes.prune import PruneRecipe, prune_config
from quantrim.recipes.qat import QatRecipe, train_quantized
from quantrim.recipes.runs import best_key, export
from quantrim.scratch import scratch_folder
from quantrim.vision.config import Config
from quantrim.vision.data.objects import Objects
from quantrim.vision.train import TrainSettings


@dataclass(frozen=True, slots=True)
class Training:
    """What may be trained for the search.

    Attributes:
        settings: of each training; 0 iterations for none.
        ratios: shares of the latency to prune, ascending; the first that loses too much is the last tried.
        learning_rate: of quantization-aware training and of retraining; each verb's own when None.
        save_dir: gets a folder for each of them.
    """

    settings: TrainSettings
    ratios: tuple[float, ...]
    learning_rate: float | None
    save_dir: Path


def config_judge(config: Config, images: int | None = None) -> Judge:
    """mIoU or top-1 on the validation set, as ``test_config`` says.

    Args:
        config: with a validation set.
        images: the first so many pictures of it; all when None.

    Raises:
        ConfigError: there is no validation set.
    """
    judge, key = task_judge(config, limit=images), best_key(config)
    data = judge.data
    count = min(len(data), images or len(data))
    step = 100 / count if data.task == "classification" else None
    return metric_judge(judge.of_session, key, count, step, _judged_on(judge, key, count))


def _judged_on(judge: TaskJudge, key: str, count: int) -> str:
    """Digest of the images and labels of a validation set, and of how they are judged."""
    how = digest(key, count, judge.views, judge.test, judge.decoder)
    for index in range(count):
        sample, truth = judge.data.sample(index)
        arrays = [getattr(truth, one.name) for one in fields(truth)] if isinstance(truth, Objects) else [truth]
        how = digest(how, sample.image, *arrays)
    return how


def compress_config(
    config: Config,
    model: Path,
    output: Path,
    *,
    max_drop: float,
    engine: EngineName = "openvino",
    samples: int = 100,
    judged: int | None = None,
    recipes: Sequence[Variant] = RECIPES,
    skip: Sequence[str] = (),
    training: Training | None = None,
    threads: int = 1,
    tuning: Tuning | None = None,
    pick_ms: float | None = None,
    on_candidate: Callable[[Candidate], None] = lambda candidate: None,
) -> CompressResult:
    """:func:`quantrim.compression.compress` with a configuration's data, from an ONNX file or torch weights.

    Args:
        config: model, data, loss, optimizer and schedule.
        model: .onnx file, Paddle model, or .pth weights of the configuration's model; those are exported first.
        output: .onnx file; weights get a ``deploy.yaml`` beside it.
        max_drop: points of the deciding metric that may be lost.
        engine: where accuracy and latency count.
        samples: training pictures that calibrate.
        judged: validation pictures that judge; all when None.
        recipes: ways to choose the numbers of whole INT8.
        skip: globs on node names that stay float.
        training: what may be trained; needs weights.
        threads: CPU threads of the race.
        tuning: look for rewrites that the engine runs faster.
        pick_ms: take the most accurate file that needs no more milliseconds.
        on_candidate: called with each candidate as soon as it is judged.

    Raises:
        ConfigError: training without weights; and what :func:`quantrim.compression.compress` raises.
    """
    search = partial(
        compress,
        data=(image for image, _ in calibration_pairs(config, samples)),
        output=output,
        max_drop=max_drop,
        engine=engine,
        judge=config_judge(config, judged),
        samples=samples,
        recipes=recipes,
        skip=skip,
        threads=threads,
        tuning=tuning,
        pick_ms=pick_ms,
        on_candidate=on_candidate,
    )
    if model.suffix in (".onnx", ".pdmodel", ".json") or model.is_dir():
        if training is not None:
            raise ConfigError(f"{model}: such a file can't be trained. Give the weights (.pth) it came from.")
        return search(model)
    loaded = without_quantizers(load(config, model))
    with scratch_folder() as folder:
        float_file = folder / "fp32.onnx"
        export(loaded, float_file)
        offers = None if training is None else _offers(config, model, engine, threads, training)
        result = search(float_file, offers=offers)
        if carry_deploy(float_file, None, output) is None:
            other = f"{output.with_name('deploy.yaml')} is another model's and was left as it is."
            result = replace(result, notes=(*result.notes, other))
    return result


def _offers(config: Config, weights: Path, engine: EngineName, threads: int, training: Training) -> Offers:
    quantized = partial(_trained, config, weights, engine, training) if training.settings.iterations else None
    prune = partial(_pruned, config, weights, engine, threads, training)
    return Offers(quantized, tuple((ratio, partial(prune, ratio)) for ratio in training.ratios))


def _trained(
    config: Config, weights: Path, engine: EngineName, training: Training
) -> tuple[Path, EngineResult | None]:
    recipe = QatRecipe(target=engine, learning_rate=training.learning_rate, engines=(engine,))
    run = train_quantized(config, weights, training.settings, training.save_dir / "qat", recipe)
    return Path(run.output), run.engines[0]


def _pruned(
    config: Config, weights: Path, engine: EngineName, threads: int, training: Training, ratio: float
) -> Path:
    folder = training.save_dir / f"pruned_{ratio:g}"
    recipe = PruneRecipe(
        PruneConfig(ratio=ratio),
        objective="latency",
        learning_rate=training.learning_rate,
        engine=Engine(engine, threads),
    )
    prune_config(config, weights, training.settings, folder, recipe)
    return folder / "model.onnx"
