"""Training proper: steps, schedules, clock and weight average of one run on one rank."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.batches import Batch, Prefetcher, TrainData
from model.checkpoint import State, save_checkpoint
from model.config import Config
from model.failure import NonFiniteLossError, StopRequest, StopSignal
from model.gpt import GPT
from model.graphs import Graphs
from model.muon import build_optimizers
from model.ranks import Ranks
from model.recurrence import NO_LOOP
from model.report import Report
from model.schedule import (
    ema_decay,
    loops_of_a_run,
    lr_multiplier,
    muon_momentum,
    progress,
    recurrence,
)

EVENT_SECONDS = 1.0  # a step event at least this often, whatever TRAIN_LOG_EVERY says
FIRST_STEPS_LOGGED = 5


@dataclass(kw_only=True)
class Clock:
    """Seconds of training proper; it stands still while the model is validated."""

    seconds: float = 0.0
    _since: float | None = None

    def start(self) -> None:
        self._since = time.perf_counter()

    def read(self) -> float:
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self.seconds + running

    def pause(self, device: torch.device) -> None:
        """Stop the clock once the device has done what it was given."""
        if device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds, self._since = self.read(), None


class HostScalar:
    """A device scalar on its way to the host; reading it waits for it and for nothing later."""

    def __init__(self, value: Tensor) -> None:
        self._copy = value.detach().to("cpu", non_blocking=True, copy=True)
        self._arrived: torch.cuda.Event | None = None
        if value.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> float:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy.item()


@dataclass(kw_only=True)
class Trained:
    """What training leaves: the EMA weights are in the model."""

    steps: int
    train_seconds: float
    stop_reason: str


@dataclass(kw_only=True)
class Trainer:
    """Model, optimisers, data and clock of one run on one rank."""

    config: Config
    ranks: Ranks
    report: Report
    stop: StopSignal
    graphs: Graphs
    data: TrainData
    validate: Callable[[int], None]  # scores the model after so many steps
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.step = 0
        self.graphs_made = 0
        self.model: GPT = self.graphs.model
        self.params: list[Tensor] = list(self.model.parameters())
        self.optimizers = build_optimizers(self.model, self.config)
        self.network: nn.Module = self.graphs.network
        if self.ranks.world > 1:
            self.network = DistributedDataParallel(self.network, gradient_as_bucket_view=True)
        self.ema = [p.detach().clone() for p in self.params]
        self.batches = Prefetcher(self.data, self.ranks.device)

    def warm_up(self, warm_scoring: Callable[[bool], None]) -> None:
        """Warm kernels and make every graph of the run, then undo the effect on its state.

        `warm_scoring` makes the graphs that score the model with the loop in force, and hears
        whether it is the one that training ends with.
        """
        before = copy.deepcopy(self.state())
        loops = loops_of_a_run(self.config)
        # Each graph is met twice: the first step with one also allocates its gradients.
        least = 2 * len(loops) if self.graphs.compiling else 0
        for number in range(max(self.config.warmup_steps, least)):
            self.model.set_loop(loops[number % len(loops)])
            self.forward_backward()
            self.update()
        for loop in loops if self.graphs.compiling else []:
            self.model.set_loop(loop)
            warm_scoring(loop == loops[-1])
        self.optimizers = build_optimizers(self.model, self.config)
        self.restore(before)
        self.graphs_made = self.graphs.made()

    def state(self) -> State:
        """All that the rest of the training depends on, alike on every rank."""
        return {
            "step": self.step,
            "seconds": self.clock.seconds,
            "position": self.data.position,
            "rng": torch.get_rng_state(),
            "params": self.params,
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, state: State) -> None:
        """Go on from a state, in place."""
        self.step, self.clock.seconds = state["step"], state["seconds"]
        self.data.position = state["position"]
        torch.set_rng_state(state["rng"])
        with torch.no_grad():
            torch._foreach_copy_(self.params, state["params"])
            torch._foreach_copy_(self.ema, state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def train(self) -> Trained:
        """Train until the budget is used; raises NonFiniteLossError or StopRequest."""
        config, clock = self.config, self.clock
        budget = config.train_budget_seconds
        elapsed, logged_at = clock.read(), -math.inf
        saved_at = time.monotonic()
        self.stop.at_once = False  # a step that has begun is finished
        clock.start()
        while True:
            # The shared clock decides, and begins no step that would end beyond the cap.
            mean_step = elapsed / max(self.step, 1)
            capped = budget > 0 and elapsed + mean_step > budget
            last = capped or self.step >= config.iterations
            done = progress(step=self.step, elapsed=elapsed, config=config)
            if not last:
                self.prepare_step(done)
            if last or self._validation_due():
                clock.pause(self.ranks.device)
                self.validate(self.step)
                clock.start()
            if last:
                break
            save = time.monotonic() - saved_at >= (config.checkpoint_seconds or math.inf)
            loss, elapsed, stopping, save = self._agree(self.forward_backward(), save)
            if not math.isfinite(loss):
                raise NonFiniteLossError(self.step + 1, loss)
            self.update()
            self.step += 1
            if self._log_due() or time.monotonic() - logged_at >= EVENT_SECONDS:
                self._log_step(loss, done)
                logged_at = time.monotonic()
            if save or (stopping and config.checkpoint_seconds):
                self.save()
                saved_at = time.monotonic()
            if stopping:
                raise StopRequest(self.step)
        clock.pause(self.ranks.device)
        if self.ranks.agree([float(self.stop.requested)])[0] > 0:
            # Asked in the last step or while it was validated.
            if config.checkpoint_seconds:
                self.save()
            raise StopRequest(self.step)
        self.stop.at_once = True
        if self.graphs.made() > self.graphs_made:
            late = self.graphs.made() - self.graphs_made
            self.report.warning(f"{late} graphs were compiled while the clock was running")
        with torch.no_grad():
            torch._foreach_copy_(self.params, self.ema)
        return Trained(
            steps=self.step,
            train_seconds=clock.seconds,
            stop_reason="wallclock_cap" if capped else "iterations",
        )

    def save(self) -> None:
        """Write a checkpoint (rank 0 does), with the clock standing still meanwhile."""
        self.clock.pause(self.ranks.device)
        if self.ranks.main:
            save_checkpoint(self.report.run_dir, self.state(), self.config, self.data.fingerprint)
        self.report.event("checkpoint", step=self.step)
        self.clock.start()

    def prepare_step(self, done: float) -> None:
        """Set what the schedules say about the coming step; `done` is the progress so far."""
        config = self.config
        multiplier = lr_multiplier(
            done,
            shape=config.warmdown_shape,
            warmdown_frac=config.warmdown_frac,
            floor=config.lr_floor,
            floor_mode=config.lr_floor_mode,
            power=config.warmdown_power,
            rate=config.warmdown_rate,
        )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * multiplier
                if "momentum" in group:
                    group["momentum"] = muon_momentum(self.step, config)
        loop = recurrence(self.step, done, config)
        if loop != self.model.loop:
            if loop != NO_LOOP:
                self.report.line(f"recurrence:activated at step {self.step}, layers={loop}")
            self.model.set_loop(loop)
        self.lr_multiplier = multiplier

    def forward_backward(self) -> HostScalar:
        """Gradients of one global batch; this rank's mean loss is on its way to the host."""
        micro_batches = self.config.micro_batches(self.ranks.world)
        sequences = self.config.train_batch_tokens // self.config.train_seq_len
        share = sequences // (self.ranks.world * micro_batches)
        inputs, targets = self._next_share(sequences, share * micro_batches)
        total = torch.zeros((), device=self.ranks.device)
        for number in range(micro_batches):
            rows = slice(number * share, (number + 1) * share)
            with self._sync_gradients(number == micro_batches - 1):
                loss = self.network(inputs[rows], targets[rows]) / micro_batches
                total += loss.detach()
                # Copied before the backward pass is queued: the host then learns the loss, and
                # queues the update, while the device still works on the gradients.
                mean_loss = HostScalar(total)
                loss.backward()
        return mean_loss

    def update(self) -> None:
        """Clip, step every optimiser, average the weights, clear the gradients."""
        if self.config.grad_clip_norm > 0:
            nn.utils.clip_grad_norm_(self.params, self.config.grad_clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = ema_decay(self.step, self.config)
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.params], 1 - decay)

    def sensitivity_batches(self) -> Iterator[Batch]:
        """This rank's share of the sequences that tell how much errors cost, one at a time."""
        count = -(-self.config.sensitivity_sequences // self.ranks.world)
        inputs, targets = self._next_share(count * self.ranks.world, count)
        yield from zip(inputs.split(1), targets.split(1), strict=True)

    def calibration_inputs(self) -> Iterator[Tensor]:
        """This rank's share of the calibration batches: training data, never validation."""
        sequences = self.config.train_batch_tokens // self.config.train_seq_len
        for _ in range(self.config.gptq_calibration_batches):
            inputs, _ = self._next_share(sequences, sequences // self.ranks.world)
            # In the parts that training has shown to fit into memory.
            yield from inputs.chunk(self.config.micro_batches(self.ranks.world))
        self.batches.close()

    def _agree(self, loss: HostScalar, save: bool) -> tuple[float, float, bool, bool]:
        """Global mean loss, rank 0's clock, whether any rank was asked to stop, and whether it is
        time for a checkpoint by rank 0's clock.
        """
        main = self.ranks.main
        mine = [
            loss.read() / self.ranks.world,
            self.clock.read() if main else 0.0,
            float(self.stop.requested),
            float(save and main),
        ]
        mean_loss, elapsed, stopping, saving = self.ranks.agree(mine)
        return mean_loss, elapsed, stopping > 0, saving > 0

    def _next_share(self, sequences: int, share: int) -> Batch:
        start = self.ranks.rank * share
        return self.batches.next_batch(sequences, slice(start, start + share))

    def _sync_gradients(self, sync: bool) -> contextlib.AbstractContextManager[None]:
        if isinstance(self.network, DistributedDataParallel) and not sync:
            return self.network.no_sync()
        return contextlib.nullcontext()

    def _validation_due(self) -> bool:
        every = self.config.val_loss_every
        return every > 0 and self.step % every == 0

    def _log_due(self) -> bool:
        every = self.config.train_log_every
        return self.step <= FIRST_STEPS_LOGGED or (every > 0 and self.step % every == 0)

    def _log_step(self, loss: float, done: float) -> None:
        config, seconds = self.config, self.clock.read()
        tokens = self.step * config.train_batch_tokens
        self.report.event(
            "step",
            step=self.step,
            train_loss=loss,
            train_time_ms=1000 * seconds,
            step_avg_ms=1000 * seconds / self.step,
            lr_mul=self.lr_multiplier,
            progress=done,
            tokens=tokens,
        )
        if self._log_due():
            self.report.line(
                f"{self.step}/{config.iterations} train_loss: {loss:.4f} "
                f"train_time: {seconds / 60:.1f}m tok/s: {tokens / seconds:.0f}"
            )
