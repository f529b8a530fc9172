"""When a run has had enough: held-out music is told worse than at step 0, or the training music is known by heart."""

import json
from dataclasses import dataclass, field


@dataclass
class StopRule:
    """Watches losses; what it has seen is kept with a checkpoint.

    Args:
      worse: held-out losses in a row above that of step 0 after which a run ends; 0 = never.
      below: the training loss that the run ends under, three steps in a row; 0 = never.
    """

    worse: int = 0
    below: float = 0.0
    begun: float | None = None  # the held-out loss of step 0
    above: int = 0
    under: list[int] = field(default_factory=list)  # the last steps whose loss was below

    def saw(self, step: int, loss: float) -> None:
        """Takes note of a step's training loss."""
        if loss < self.below:
            self.under = [*self.under[-3:], step]

    def heard(self, step: int, loss: float) -> None:
        """Takes note of a held-out loss."""
        if step == 0:
            self.begun = loss
        elif self.begun is not None:
            self.above = 0 if loss <= self.begun else self.above + 1

    def reason(self, step: int) -> str:
        """Why the run is to end after a step; "" while it is not.

        Whether the loss of that step is known already, as before a save, must not matter.
        """
        if self.worse and self.above >= self.worse:
            return f"the held-out loss has been above the {self.begun:.4g} of step 0 for {self.above} validations"
        if self.below and {step - 1, step - 2, step - 3} <= set(self.under):
            return f"the loss has been below train.stop_loss={self.below:g} for 3 steps"
        return ""

    def dump(self) -> str:
        """What has been seen."""
        return json.dumps([self.begun, self.above, self.under])

    def load(self, text: str) -> None:
        """Goes on from what `dump` gave."""
        self.begun, self.above, self.under = json.loads(text)
