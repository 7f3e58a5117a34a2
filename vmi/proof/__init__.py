# SPDX-License-Identifier: GPL-2.0-only
"""Execute a patched kernel's windows against the original's, and say where they disagree.

Reading order: windows (what is compared), code (how it is decoded), setting and stage (from what state and
where it runs), runner (how far), compare and pair (what must be the same), connect (the second life, with
a ROM), prove (the whole of it), result.
"""

from vmi.proof.prove import prove
from vmi.proof.result import Disagreement, Proof

__all__ = ["Disagreement", "Proof", "prove"]
