"""SWAP: a run that goes on in several branches and ends as the mean of their weights.

After the steps that ``train`` gives it, a run goes on from where it stands, several times: each
branch starts with the same weights and a fresh optimizer, has the run's own schedule of the
learning rate, and sees other batches. The mean of what the branches come to has less of the noise
that the order of the batches brings into each of them. This is stochastic weight averaging in
parallel (arXiv 2001.02312); here one slot takes the branches in turn, while others train.
"""

from functools import partial

from schemabank.config.methods import SWAPSettings
from schemabank.config.settings import RunConfig
from schemabank.engine.run import Course, OnCourse, Run, RunMethod, TrainingData
from schemabank.engine.schedule import StagePlan
from schemabank.methods.method import Method, Setup


class SWAPCourse(Course):
    """Says when the branches start.

    Args:
        run: the run.
        data: its training data.
        swap: how many branches there are, and how long they are.
    """

    def __init__(self, run: Run, data: TrainingData, *, swap: SWAPSettings) -> None:
        super().__init__(run, data)
        before, steps = self.num_steps, swap.branch_steps(self.num_steps)
        self.branch_starts = tuple(before + steps * number for number in range(swap.num_branches))
        self.num_steps = before + steps * swap.num_branches
        last = self.plans[-1].stage
        self.plans += tuple(
            StagePlan(last.model_copy(update={"name": f"branch {number}"}), start, start + steps)
            for number, start in enumerate(self.branch_starts, start=1)
        )


class SWAP(Method):
    """LoRA that ends as the mean of several branches."""

    def of_run(self, run: RunConfig, setup: Setup) -> RunMethod:
        """Return the course with its branches."""
        del setup
        return OnCourse(partial(SWAPCourse, swap=run.own(SWAPSettings)))
