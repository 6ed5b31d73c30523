"""What is logged of a squeeze."""

import torch
from torch import Tensor

from dit_shd.squeezing.plans import merge_names
from dit_shd.squeezing.squeeze import Squeeze


def squeeze_logs(layer: str, squeezed: Squeeze) -> dict[str, Tensor]:
    """Means over the samples, by one reduction: alpha, in all and by merge, how often it was clamped, the residual."""
    known = {f"alpha/{layer}": squeezed.alpha, "clamped": squeezed.clamped, "residual": squeezed.residual}
    parts = {name: part for name, part in known.items() if part is not None and part.numel()}
    logs: dict[str, Tensor] = {}
    if parts:
        means = torch.cat([*parts.values()], 1).mean(0).split([part.shape[1] for part in parts.values()])
        for name, mean in zip(parts, means):
            logs[name] = mean.mean()
            if name.startswith("alpha/"):
                logs |= {f"{name}/{merge}": one for merge, one in zip(merge_names(squeezed.plan), mean.unbind())}
    return logs
