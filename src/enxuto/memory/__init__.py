"""Where memory goes and what fits: predict it on tensors without storage, record it in a real run, plan within a limit."""

from enxuto.memory.checkpoint import checkpoint_, checkpointed
from enxuto.memory.plan import Option, Plan, plan
from enxuto.memory.predict import predict
from enxuto.memory.profile import Profile
from enxuto.memory.record import record

__all__ = ["Option", "Plan", "Profile", "checkpoint_", "checkpointed", "plan", "predict", "record"]
