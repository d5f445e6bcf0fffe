"""The methods inside transformers' `Trainer` and TRL's `SFTTrainer`, on a model that PEFT wraps.

`mixin` has what a trainer's class gets, `courses` what each method does in a step, `adapter`,
`banks` and `standins` act on the model, `checks` refuses settings that cannot be honoured. Nothing
here imports TRL. What a step computes is the engine's mathematics, from the engine's own functions.
"""

from schemabank.trainer.mixin import MethodTrainerMixin

__all__ = ["MethodTrainerMixin"]
