"""A population by ``torch.func.vmap``: for networks that do not fuse layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from optuna_robustloss.training.population.fusion import check_alike, plain_copy
from optuna_robustloss.training.population.population import Population


class Vmapped(Population):
    """K networks of one architecture, vectorised over their stacked weights.

    All candidates share the dropout masks. Operations that ``vmap`` does not support, or whose
    control flow depends on values, raise when they run. Under autocast linear layers add their bias
    in single precision, so the logits are in single precision.

    Args:
        networks: K networks with the same structure, or one several times; they are copied.

    Raises:
        ValueError: there are no networks, or their structures differ.

    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        check_alike(networks)
        self._template = (copy.deepcopy(networks[0]),)  # in a tuple: no child of this module
        parameters, buffers = stack_module_state(list(networks))
        plain = dict(networks[0].named_parameters())
        self._parameter_names, self._buffer_names = tuple(parameters), tuple(buffers)
        self.stacked = nn.ParameterList(
            nn.Parameter(tensor.detach(), plain[name].requires_grad)
            for name, tensor in parameters.items()
        )
        for index, tensor in enumerate(buffers.values()):
            self.register_buffer(f"buffer{index}", tensor)

    def forward(self, images: Tensor) -> Tensor:
        """See ``Population``."""
        template = self._template[0].train(self.training)

        def logits(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            out: Tensor = functional_call(template, (parameters, buffers), (images,))
            return out

        all_logits: Tensor = vmap(logits, randomness="same")(
            dict(zip(self._parameter_names, self.stacked, strict=True)),
            dict(zip(self._buffer_names, self.buffers(), strict=True)),
        )
        return all_logits

    def network(self, index: int) -> nn.Module:
        """See ``Population``."""
        return plain_copy(self._template[0], self, index, training=self.training)
