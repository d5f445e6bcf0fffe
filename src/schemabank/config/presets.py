"""Presets: named sets of defaults, each by what it changes in those of the settings.

``sound`` is ours and changes nothing. ``paper`` is the document's experiment.
"""

from typing import Any

from schemabank.config.train import THREE_STAGES

PRESETS: dict[str, dict[str, Any]] = {
    "sound": {},
    "paper": {
        "model": {"name": "Qwen/Qwen2-0.5B"},
        "task": {
            "name": "gsm8k",
            "target": "final",
            "end_token": False,
            "completion_only_loss": False,
            "gsm8k": {"validation_ratio": 0.0},
        },
        "bank": {"residual": False},
        "tags": {"delivery": "prefix"},
        "curriculum": [
            stage.model_dump(mode="json", exclude_defaults=True) for stage in THREE_STAGES
        ],
        # Its runs have 2, 4, 6, 8 and 10 epochs: fewer orders, fewer slots that wait for a cycle.
        "train": {"num_train_epochs": 10, "epoch_orders": 2, "learning_rate": 1e-4},
        "eval": {"split": "test", "limit": 500, "max_new_tokens": 200},
    },
}
