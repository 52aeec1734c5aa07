"""Channels that must be cut together, found by a read-only trace and proved by a rehearsal.

What cannot be followed is not touched: it is named, with the reason.
"""

from enxuto.groups.find import Groups, find_groups
from enxuto.groups.rehearse import masked_

__all__ = ["Groups", "find_groups", "masked_"]
