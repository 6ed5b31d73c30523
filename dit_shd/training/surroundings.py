"""What a caller may have set in torch around a run, by which it would be another run or none."""

import torch

from dit_shd.core.errors import UserError


def refuse_autocast(device: torch.device) -> None:
    """Refuse a block of torch.autocast around a run, which would decide on its precision.

    Raises:
        UserError: It is on.
    """
    if torch.is_autocast_enabled(device.type):
        raise UserError("precision: the run is inside of torch.autocast, which would decide; leave it for the run")


def refuse_surroundings(device: torch.device) -> None:
    """Refuse what training cannot work by: autocast, no gradients, another default precision, the meta device.

    Raises:
        UserError: Naming it.
    """
    refuse_autocast(device)
    dtype = torch.get_default_dtype()
    states = {
        "torch.inference_mode": torch.is_inference_mode_enabled(),
        "torch.no_grad": not torch.is_grad_enabled(),
        f"torch.set_default_dtype({dtype})": dtype != torch.float32,
        "torch.device('meta')": torch.get_default_device().type == "meta",
    }
    state = next((name for name, is_set in states.items() if is_set), None)
    if state is not None:
        raise UserError(f"train: the run is inside of {state}; leave it for the run")
