"""The step loop: one thread that batches whatever work any other thread hands in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

import torch

from inference.errors import InferenceError
from inference.idealized import IdealizedRuntime
from inference.native.blocks import BLOCK, BlockManager
from inference.native.model import Model
from inference.native.runner import Result, Runner
from inference.native.scheduler import Scheduler
from inference.native.sequence import Sequence as Row
from inference.native.snapshot import Snapshot
from inference.native.speculation import Drafting, Speculation
from inference.native.task import Drafts, Task
from inference.native.threads import release_workers
from inference.native.totals import Counter
from inference.requests import FinishReason
from inference.taps import Tapped

T = TypeVar("T")

IDLE_SECONDS = 2.0
"""How long the thread stays without work; the next work starts another."""


class Core:
    """Scheduler, runner and the tasks they serve.

    `add` may be called from any thread; `fork` by a task from inside a step. Everything else
    happens in the step thread.
    """

    def __init__(
        self,
        model: Model,
        kv_bytes: int,
        prefix_bytes: int,
        budget: int,
        rows: int,
        *,
        prefill_first: bool = False,
        runtime: IdealizedRuntime | None = None,
    ) -> None:
        self.runner = Runner(model)
        self.counter = Counter(self.runner.store.token_bytes, runtime)
        block_bytes = BLOCK * self.runner.store.token_bytes
        # One sequence must always be able to fill the context, or it could wait for ever.
        capacity = max(kv_bytes // block_bytes, -(-model.context_length // BLOCK))
        self.blocks = BlockManager(capacity, min(capacity, prefix_bytes // block_bytes))
        self.runner.attach(self.blocks)
        self.scheduler = Scheduler(self.blocks, budget, rows, prefill_first=prefill_first)
        self.drafting = Drafting(budget)
        self._tasks: dict[Row, Task] = {}
        self._inbox: list[Task] = []
        self._errands: list[Callable[[], object]] = []
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, tasks: Sequence[Task]) -> None:
        """Hand in work; it joins the running batch at the next step."""
        with self._changed:
            if self._closed:
                raise InferenceError("the engine is closed; open it again")
            self._inbox += tasks
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="engine-steps", daemon=True)
                self._thread.start()
            self._changed.notify()

    def fork(self, parent: Row, tasks: Sequence[Task], cached: int) -> None:
        """Start tasks whose rows share the first `cached` entries of `parent`; inside a step."""
        for task in tasks:
            (row,) = task.rows
            self._tasks[row] = task
            self.scheduler.fork(parent, row, cached)

    def call(self, act: Callable[[], T]) -> T:
        """Run `act` between two steps, in the step thread or, if there is none, here and now."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(act())
            except BaseException as error:
                done.set_exception(error)

        if self._thread is threading.current_thread():  # a sink, or a policy
            return act()
        with self._changed:
            if self._closed:
                raise InferenceError("the engine is closed; open it again")
            if self._thread is None:
                run()
            else:
                self._errands.append(run)
                self._changed.notify()
        return done.result()

    def forget(self) -> None:
        """Drop every kept prefix."""
        self.call(self.blocks.clear)

    def load(self, snapshot: Snapshot, salt: bytes) -> int:
        """Make the entries of a whole snapshot findable; how many of its tokens are."""
        return self.call(partial(self._load, snapshot, salt))

    def _load(self, snapshot: Snapshot, salt: bytes) -> int:
        row = Row(list(snapshot.token_ids), len(snapshot.token_ids), salt)
        if not self.blocks.grow(row, len(row.ids)):
            raise InferenceError(
                f"there is no room for {len(row.ids)} tokens of key/value entries now; "
                "raise kv_cache_bytes, or try again when fewer requests run"
            )
        try:
            self.runner.load(row, snapshot)
            self.blocks.publish(row)
        finally:
            self.blocks.release(row)
        self.blocks.match(row)
        found = row.cached
        self.blocks.release(row)
        return found

    def close(self) -> None:
        """End all work as aborted and wait for the thread."""
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while self._collect():
            self._interrupt()
            try:
                self._step()
            except Exception as error:
                # A forward that failed leaves no entry that can be trusted.
                for task in self._working():
                    self._leave(task, error)
                self.blocks.clear()

    def _collect(self) -> bool:
        """Take in new work, waiting for it if there is none; False ends the thread."""
        with self._changed:
            if not (self._inbox or self._tasks or self._errands or self._closed):
                release_workers()  # whoever takes over, perhaps another engine, gets the cores
                self._changed.wait(IDLE_SECONDS)
            errands, self._errands = self._errands, []
            for errand in errands:
                errand()
            for task in self._inbox:
                for row in task.rows:
                    self._tasks[row] = task
                    self.scheduler.add(row)
            self._inbox = []
            if self._tasks or errands:
                return True  # another errand may follow the first
            self._thread = None
            return False

    def _interrupt(self) -> None:
        """End what was aborted or ran out of time; its blocks are free for this step."""
        for task in self._working():
            reason = FinishReason.ABORTED if self._closed else task.job.interrupted()
            if reason is not None:
                self._leave(task, reason)

    def _step(self) -> None:
        picked = self.scheduler.schedule()
        if not picked:
            return
        for task in {id(self._tasks[row]): self._tasks[row] for row in picked}.values():
            if all(row.turn < 0 for row in task.rows):
                task.job.began = task.job.began or time.monotonic()
        copies, self.blocks.copies = self.blocks.copies, []
        began = time.perf_counter()
        results = self.runner.step(picked, copies)
        self.scheduler.advance()
        shown: dict[int, tuple[Task, list[Tapped]]] = {}
        for result in results:
            task = self._tasks[result.row]
            _, tapped = shown.setdefault(id(task), (task, []))
            tapped += [result.tapped] if result.tapped is not None else []
        for task, tapped in shown.values():
            self.counter.stepped(task)
            self._guarded(task, partial(task.stepped, tapped))
        with torch.inference_mode():
            for result in results:
                # Another row of the same task may have ended it in this very step.
                if result.logits is not None and result.row in self._tasks:
                    task = self._tasks[result.row]
                    self._guarded(task, partial(self._deliver, task, result))
            self._draft(results, time.perf_counter() - began)

    def _draft(self, results: Sequence[Result], seconds: float) -> None:
        """Let those go on drafting who do, once it is known what the step cost and gave."""
        drafted: list[tuple[Speculation, int]] = []
        waited: list[Speculation] = []
        asking: list[tuple[Speculation, Row, int]] = []
        for result in results:
            task = self._tasks.get(result.row)
            speculation = task.job.speculation if task is not None else None
            if task is None or speculation is None:
                continue
            if result.view.tree is not None:
                drafted.append((speculation, speculation.gave))
            else:
                waited.append(speculation)
            if result.logits is not None:
                assert isinstance(task, Drafts)
                asking.append((speculation, result.row, task.left))
        rows = [result.view.rows for result in results]
        if all(result.view.rows == 1 or result.view.tree is not None for result in results):
            self.drafting.stepped(rows, drafted, waited, seconds)
        for row, error in self.drafting.propose(asking, len(self.scheduler.running)):
            self._leave(self._tasks[row], error)

    def _deliver(self, task: Task, result: Result) -> FinishReason | None:
        """Give a task its logits, those below a draft's accepted path if there is a draft."""
        row, logits = result.row, result.logits
        assert logits is not None
        if row.draft is not None:
            assert isinstance(task, Drafts)
            path = task.verify(row, logits)
            self.runner.settle(result, path)
            last = path[-1] + 1 if path else 0
            logits = logits[last : last + 1]
            if result.hidden is not None:
                result.hidden = result.hidden[last : last + 1]
        if task.job.speculation is not None and result.hidden is not None:
            task.job.speculation.hidden = result.hidden[-1]
        return task.take(row, logits)

    def _guarded(self, task: Task, act: Callable[[], FinishReason | None]) -> None:
        """Let a task act; one that breaks harms nobody else."""
        try:
            reason = act()
        except Exception as error:
            self._leave(task, error)
            return
        if reason is not None:
            self._leave(task, reason)

    def _working(self) -> list[Task]:
        """Every task once."""
        return list({id(task): task for task in self._tasks.values()}.values())

    def _leave(self, task: Task, outcome: FinishReason | Exception) -> None:
        for row in task.rows:
            if self._tasks.pop(row, None) is not None:
                self.scheduler.finish(row)
        self.settle(task, outcome)

    def settle(self, task: Task, outcome: FinishReason | Exception) -> None:
        """Count a task that is not, or no longer, in the loop, and let it tell its end."""
        task.job.left = time.monotonic()
        self.counter.left(task, outcome)
        if isinstance(outcome, Exception):
            task.fail(outcome)
            return
        try:
            task.end(outcome)
        except Exception as error:
            task.fail(error)
