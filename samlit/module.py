"""SamModule, the LightningModule: the model, the task it learns from, the tasks that judge it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torchmetrics import Metric

from samlit.checkpoints import start_from
from samlit.contracts import Decoder, Encoder, Prompt, Task
from samlit.datamodule import SamData
from samlit.errors import UsageError
from samlit.evaluation.answers import Answers
from samlit.evaluation.calibration import Calibration, Reliability, shown_ious
from samlit.loading import frames
from samlit.loop import Round, drive
from samlit.losses import Losses, Terms
from samlit.model import Sam
from samlit.parallel import closing, is_sharded, shard
from samlit.run.tally import Tally
from samlit.structures import Batch, Embedding, Prediction, PromptSet, Result, Scene
from samlit.training import freezing
from samlit.training.compiling import compile_parts
from samlit.training.lora import Lora
from samlit.training.memory import ENCODER, needing
from samlit.training.optim import Optim
from samlit.training.passes import Passes
from samlit.training.steps import Steps

__all__ = ["SamModule"]


class SamModule(Steps):
    """Trains a promptable model on a task and validates it on others.

    Args:
        encoder: Images to image embeddings.
        prompts: Prompt types, in the order of their tokens.
        decoder: Embeddings and prompts to masks.
        task: Where training prompts come from.
        validation: Tasks whose metrics judge the model while it trains.
        image_size: Side of the square frame in pixels; the data's, said once there.
        loss: Weights and choices of the losses.
        optim: The optimiser and its schedule.
        seed: Of the simulated prompts; `seed_everything`, said once there.
        weights: What a training starts from: published weights (`samlit list weights`), a samlit checkpoint, or a file
            of another project's, of the same model at any image size; an encoder's alone will do.
        freeze: What is not trained: `encoder`, `prompts`, `decoder`, or any part or parameter in them by its name, with
            `*` and `?`. Batch norms in it keep their statistics, and no block of it is skipped.
        lora: What is trained beside the frozen weights: low-rank changes of attention, adapters; nothing if not given.
        masks_at_once: Most prompts that are answered and learned from together; all of a step's if not given. Fewer
            need less memory, and the gradients are the same.
        compile: Whether encoder and decoder go through torch.compile while training: true, one of its modes such as
            `max-autotune`, or another backend such as `aot_eager`. The first steps take minutes then.
    """

    def __init__(
        self,
        encoder: Callable[[int], Encoder],
        prompts: list[Callable[[int], Prompt]],
        decoder: Callable[[int], Decoder],
        task: Task,
        validation: Sequence[Task] = (),
        image_size: int = 1024,
        loss: Losses = Losses(),  # noqa: B008 - frozen
        optim: Optim = Optim(),  # noqa: B008 - frozen
        seed: int = 0,
        weights: str | None = None,
        masks_at_once: int | None = None,
        freeze: Sequence[str] = (),
        lora: Lora | None = None,
        compile: bool | str = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = Sam(encoder(image_size), prompts, decoder)
        self.task, self.validation, self.image_size = task, list(validation), image_size
        self.loss, self.optim, self.seed, self.weights = loss, optim, seed, weights
        if masks_at_once is not None and masks_at_once < 1:
            raise ValueError(f"masks_at_once: one at least, not {masks_at_once}")
        self.masks_at_once, self.compiled = masks_at_once, compile
        freezing.freeze(self.net, freeze)
        if lora is not None:
            lora.add(self.net)
        if freezing.frozen(self.net):
            raise UsageError(f"model.freeze: nothing is left to train; name fewer parts than {', '.join(freeze)}")
        freezing.hold(self.net)
        self.metrics = nn.ModuleList(task.metric() or nn.Identity() for task in self.validation)
        self.calibration = Calibration()
        self.scores: dict[str, float] = {}
        self.reliability: Reliability | None = None
        self.tally, self.numbers = Tally(), dict[str, float]()
        self.forgetting_metrics = nn.ModuleList(task.metric() or nn.Identity() for task in self.validation)
        self.forgetting_scores: dict[str, float] = {}
        self._started, self._logged, self._meters = False, -1, False

    def start(self) -> None:
        """Load the weights that a training starts from, once.

        Raises:
            UsageError: They are not there, damaged, or of another model.
        """
        if not self._started:
            self.net.encoder.start()
            for prompt in self.net.prompt_types.values():
                prompt.start()
            if self.weights:
                start_from(self.net, self.weights)
        self._started = True

    def setup(self, stage: str) -> None:
        """Start a training; where one goes on, Lightning loads the checkpoint's weights after this."""
        if stage == "fit":
            self.start()
            compile_parts(self.net, self.compiled)

    def train(self, mode: bool = True) -> SamModule:
        """Switch between training and evaluation; what is frozen stays in evaluation."""
        super().train(mode)
        freezing.hold(self.net)
        return self

    def on_fit_start(self) -> None:
        """Let the images be embedded once, where the data keeps embeddings; the weights are loaded by now."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, SamData):
            if data.embeddings is not None and is_sharded(self.net):  # ranks embed different numbers of images
                raise UsageError("data.embeddings: of a frozen encoder every rank needs a copy: trainer.strategy ddp")
            data.keep_embeddings(self.net)

    def configure_model(self) -> None:
        """Share the weights between the ranks where the strategy wants that; called after `setup`."""
        if self.device_mesh is not None:
            shard(self.net, self.device_mesh["data_parallel"])

    def on_before_backward(self, loss: Tensor) -> None:
        """Tell a sharded model of it."""
        closing(self.net, loss)

    def embed(self, batch: Batch) -> Embedding:
        """The batch's images, embedded, or as they come embedded."""
        if batch.embedding is not None:
            return batch.embedding.float()
        learns = torch.is_grad_enabled() and not freezing.frozen(self.net.encoder)
        with torch.set_grad_enabled(learns), needing(f"embedding {len(batch.image)} images", ENCODER):
            return self.net.embed(batch.image, batch.sizes)

    def run(
        self,
        task: Task,
        batch: Batch,
        seed: int = 0,
        on_round: Callable[[Round], None] = lambda turn: None,
        embedding: Embedding | None = None,
        answer: Callable[[PromptSet], Prediction] | None = None,
        common: int | None = None,
    ) -> Result:
        """Drive a task over a batch; images are embedded once, before it, or come embedded.

        Args:
            task: Asks.
            batch: The images.
            seed: Of the prompts, this rank's own.
            on_round: Told of every answer.
            embedding: Of the batch's images.
            answer: Answers; the model does if not given.
            common: Seed of what all ranks choose alike; the step's if not given.
        """
        common = self._chance(self.global_step, common=True) if common is None else common
        if task.originals and not batch.samples:
            batch = frames.unframed(batch)
        scene = Scene(batch, self.net.prompt_types, seed, self.training, common)
        if answer is None:
            answers = Answers(self.net, batch, self.embed(batch) if embedding is None else embedding)
            answer, scene.embed = answers, answers.whole
        return drive(task, scene, answer, on_round)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean loss of all answers, normalised by the number of masks over all ranks."""
        # What asks no generator (skipped blocks) draws from this: a resumed run goes on like an unbroken one.
        torch.manual_seed(self._chance(self.global_step, batch_idx))
        masks = self._masks_a_rank(batch)  # before anything that a rank without masks leaves out
        embedding = self.embed(batch)
        passes = Passes(
            self.net, self.loss, batch, embedding, masks, attached=self.task.attached, at_once=self.masks_at_once
        )
        turn = batch_idx % self.trainer.accumulate_grad_batches  # of the batches that make up a step
        now = (self.global_step, turn) if turn else (self.global_step,)
        own, common = self._chance(*now), self._chance(*now, common=True)
        self.run(self.task, batch, own, answer=passes.answer, common=common)
        loss = passes.loss()
        self._log_passes(loss, passes.terms, len(batch.image))
        return loss

    def _log_passes(self, loss: Tensor, passes: Sequence[Terms], images: int) -> None:
        """Show what a step has come to, and now and then log the means of all steps since, over all ranks."""
        self.tally.add(loss, passes, images)
        if passes:  # none where no image had a mask
            actual = torch.stack([terms.actual_iou.mean() for terms in passes]).mean()
            self.log("train/loss", loss.detach(), batch_size=images, prog_bar=True, logger=False)
            self.log("train/miou", actual, batch_size=images, prog_bar=True, logger=False)
        step, every = self.global_step, getattr(self.trainer, "log_every_n_steps", 0)
        if every and (step + 1) % every == 0 and step != self._logged:  # once, of the batches that make up a step
            self._logged = step
            self.numbers = self.tally.take(self._sum)
            for logger in self.trainer.loggers:
                logger.log_metrics(self.numbers, step)

    def _sum(self, numbers: Tensor) -> Tensor:
        """Numbers added up over all ranks."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(numbers)
        return numbers

    def _masks_a_rank(self, batch: Batch) -> Tensor:
        """Masks of this step, averaged over the ranks, at least one."""
        count = torch.tensor(float(len(batch.masks)), device=batch.masks.device)
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(count)
            count = count / self.trainer.world_size
        return count.clamp_min(1.0)

    def _chance(self, *of: int, common: bool = False) -> int:
        """A seed that is a function of the run's, of what is given, and of the rank unless it is common to all."""
        words = ",".join(map(str, (self.seed, *of, "all" if common else self.global_rank)))
        return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=7).digest(), "big")

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Let every validation task's metric read its result; a second loader is the forgetting meter's.

        Returns:
            "iou": each mask's mean over all numbers of the results, (K,); nothing where results are not of masks.
        """
        embedding = self.embed(batch)
        none = embedding.image.new_zeros(0)
        self.calibration.update(none, none)  # a rank without masks has seen a batch too
        self._meters = self._meters or dataloader_idx > 0
        metrics = self.forgetting_metrics if dataloader_idx else self.metrics
        by_mask: list[Tensor] = []
        for task, metric in zip(self.validation, metrics, strict=True):

            def on_round(turn: Round) -> None:
                if not dataloader_idx:
                    self._compare(turn, batch)

            result = self.run(task, batch, self._chance(batch_idx), on_round, embedding)
            if isinstance(metric, Metric):
                metric.update(result)
            counts = _counts(metric)
            ious = (x for name, x in result.items() if isinstance(x, Tensor) and name not in counts)
            by_mask += [x for x in ious if x.shape == batch.masks.shape[:1]]
        return {"iou": torch.stack([x.float() for x in by_mask]).mean(0)} if by_mask else {}

    def _compare(self, turn: Round, batch: Batch) -> None:
        """Hold the predicted IoU of an answer's rows to the actual one, where it is known which masks they ask for."""
        target = turn.prompts.target
        if target is None and len(turn.prompts) != len(batch.masks):
            return
        prediction, truth = turn.prediction, batch.masks
        if target is not None:
            some = target < len(batch.masks)  # rows may ask for none of the masks
            truth = batch.masks[target[some]]
            logits, iou, allowed = (x[some] for x in (prediction.logits, prediction.iou, prediction.allowed))
            prediction = Prediction(logits, iou, allowed, prediction.frame)
        if len(truth):
            self.calibration.update(*shown_ious(prediction, truth))

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """As `validation_step`, of what no training has looked at."""
        return self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log every number as `test/NAME`."""
        self._log_all("test")

    def on_validation_epoch_end(self) -> None:
        """Log every number as `val/NAME`, and forgetting."""
        self._log_all("val")

    def _log_all(self, stream: str) -> None:
        """Log every number, their mean as `miou`, how far predicted IoUs are off, and forgetting."""
        self.scores = self._log_scores(stream, self.metrics)
        self.forgetting_scores = self._log_scores("forgetting", self.forgetting_metrics) if self._meters else {}
        self._meters = False
        if self.validation:
            self.reliability = self.calibration.compute()
            self.calibration.reset()
        if self.reliability is not None and self.reliability.total:
            self.log(f"{stream}/iou_calibration", self.reliability.error, sync_dist=True)

    def _log_scores(self, stream: str, metrics: nn.ModuleList) -> dict[str, float]:
        """Log what the metrics of a stream have come to, and begin them anew; what is no share is logged, no more."""
        scores: dict[str, Tensor] = {}
        others: dict[str, Tensor] = {}
        for metric in metrics:
            if isinstance(metric, Metric):
                for name, value in metric.compute().items():
                    (others if name in _counts(metric) else scores)[name] = value
                metric.reset()
        # The metrics are of all ranks already; to average equal numbers changes none of them.
        self.log_dict({f"{stream}/{name}": value for name, value in (scores | others).items()}, sync_dist=True)
        if scores:
            mean = torch.stack(list(scores.values())).nanmean()  # AP of large things is none where there are none
            self.log(f"{stream}/miou", mean, prog_bar=stream == "val", sync_dist=True)
        return {name: float(value) for name, value in scores.items()}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a packed batch."""
        return batch.to(device, non_blocking=True)

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule, a step at a time."""
        shared = isinstance(self.trainer.strategy, (DDPStrategy, ModelParallelStrategy))
        optimizer, schedule = self.optim.build(self.net, int(self.trainer.estimated_stepping_batches), shared)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _counts(metric: nn.Module) -> Sequence[str]:
    """The numbers of a metric that are no share of 1, as its `counts` says."""
    counts: Sequence[str] = getattr(metric, "counts", ())
    return counts
