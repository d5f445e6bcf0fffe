"""What the loss of a batch is divided by: its own labels, or the mean number of all batches."""

from dataclasses import replace

import pytest
import torch

from cohorts import LORA, bank_run, cohort, data, lora_run, train
from schemabank.engine.run import Run
from tiny import tiny_model

STILL = LORA.model_copy(update={"lora_dropout": 0.0})


def weighted(run: Run, loss_weighting: str, *, name: str | None = None) -> Run:
    settings = run.train.model_copy(update={"loss_weighting": loss_weighting})
    return replace(run, name=name or run.name, train=settings)


@pytest.mark.parametrize("completion_only", [True, False])
def test_by_token_an_epochs_mean_over_steps_is_that_over_all_labels(completion_only: bool) -> None:
    """The last batch has rows to spare, and batches have different numbers of labels."""
    training = data(completion_only=completion_only)
    run = replace(lora_run(3, num_train_epochs=1), lora=STILL)
    still = run.train.model_copy(update={"learning_rate": 1e-30, "weight_decay": 0.0})
    stages = tuple(s.model_copy(update={"learning_rate": 1e-30}) for s in run.stages)
    run = weighted(replace(run, train=still, stages=stages), "token")
    steps = [report for (report,) in train(cohort([run], training))]
    model = tiny_model("llama")
    losses = []
    for example in training.encoded:
        tokens = torch.tensor([example.tokens])
        logits = model(input_ids=tokens, use_cache=False).logits[0].double()
        labels = torch.tensor(example.tokens[example.label_start :])
        before = logits[example.label_start - 1 : len(example.tokens) - 1]
        losses.append(torch.nn.functional.cross_entropy(before, labels, reduction="none"))
    expected = torch.cat(losses).mean().item()
    assert sum(s.total_loss for s in steps) / len(steps) == pytest.approx(expected, rel=2e-6)
    by_batch = sum(s.loss for s in steps) / len(steps)
    assert by_batch != pytest.approx(expected, rel=5e-5), "the data tell the two apart"


def test_by_token_loss_and_gradient_are_the_batchs_own_times_its_share_of_labels() -> None:
    training = data()
    run = lora_run(3)
    both = cohort(
        [weighted(run, "batch", name="batch"), weighted(run, "token", name="token")], training
    )
    batch, token = next(both.steps())
    rows = [i for i in training.schedule.rows(3, 0)[0] if i >= 0]
    num_labels = sum(training.encoded[i].num_labels for i in rows)
    share = num_labels / training.labels_per_batch
    assert share != pytest.approx(1, rel=0.01)
    assert batch.loss == batch.total_loss == token.loss
    assert token.total_loss == pytest.approx(share * batch.loss, rel=1e-6)
    assert token.grad_norm == pytest.approx(share * batch.grad_norm, rel=1e-5)


def test_a_neighbours_weighting_changes_no_bit() -> None:
    training, found = data(), []
    for neighbour in ("batch", "token"):
        runs = [weighted(bank_run(5), "token"), weighted(bank_run(6), neighbour)]
        trained = cohort(runs, training)
        found.append(([step[0] for step in train(trained)], trained.finished["bank-5"]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(row, found[1][1][name]) for name, row in found[0][1].items())
    first = found[0][0][0]
    assert first.total_loss != first.loss
