"""Where memory goes and what fits: predict it on tensors without storage, record it in a real run, watch it live."""

from enxuto.memory.drawing import draw
from enxuto.memory.predict import predict
from enxuto.memory.profile import Profile
from enxuto.memory.record import record
from enxuto.memory.watch import Watch, watch

__all__ = ["Profile", "Watch", "draw", "predict", "record", "watch"]
