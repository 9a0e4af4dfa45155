"""Recurrent layers over rows of a prompt and its completions: Qwen3.5's gated delta rule.

Three of four layers of Qwen3.5 carry a state from token to token (Gated DeltaNet, arXiv
2412.06464), which no mask can keep from the next completion. So a row's prompt runs once, and its
completions run as a batch that begins with the prompt's state: the recurrent one, and the last
columns before the convolution. The backward pass adds the completions' gradients up in it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus
from torch.nn.utils.rnn import pad_sequence
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5GatedDeltaNet,
    causal_conv1d_fn,
    torch_chunk_gated_delta_rule,
)

from trainer.batches.batch import RowLayout


def use_grouped_recurrence(model: Any) -> None:
    """Make a model's recurrent layers read a batch's layout; most models have none."""
    for module in model.modules():
        if type(module) is Qwen3_5GatedDeltaNet:
            module.__class__ = GroupedDeltaNet


class GroupedDeltaNet(Qwen3_5GatedDeltaNet):  # type: ignore[misc]
    """The layer with its own weights and kernels, for rows.

    Its kernels are those of flash-linear-attention and causal-conv1d where they are installed, else
    torch's.
    """

    def forward(
        self, hidden_states: Tensor, layout: Sequence[RowLayout] | None = None, **kwargs: Any
    ) -> Tensor:
        """[1, S, hidden_size] to the same.

        Args:
            hidden_states: Of S tokens.
            layout: The rows; they fill S.
            **kwargs: What transformers hands down to a layer.

        Raises:
            ValueError: The layout is missing.
        """
        if layout is None:
            raise ValueError("a recurrent layer takes the rows' `layout`")
        decay = -self.A_log.float().exp() * softplus(
            self.in_proj_a(hidden_states).float() + self.dt_bias
        )
        mixed = self.in_proj_qkv(hidden_states)[0], decay[0], self.in_proj_b(hidden_states)[0]
        lengths = [row.prompt + sum(row.completions) for row in layout]
        rows = zip(layout, *(tensor.split(lengths) for tensor in mixed), strict=True)
        out = torch.cat([part for row in rows for part in self._row(*row)])
        gate = self.in_proj_z(hidden_states).view(-1, self.head_v_dim)
        gated = self.norm(out.reshape(-1, self.head_v_dim), gate)
        return self.out_proj(gated.view(1, -1, self.value_dim))

    def _row(self, row: RowLayout, *mixed: Tensor) -> list[Tensor]:
        """[length, value heads, D] of the prompt and of each completion."""
        parts = [tensor.split([row.prompt, *row.completions]) for tensor in mixed]
        qkv, decay, beta = (part[0].unsqueeze(0) for part in parts)
        out, state = self._scan(qkv, decay, beta)
        columns = self.conv_kernel_size - 1
        before = pad(qkv, (0, 0, columns, 0))[:, -columns:]
        qkv, decay, beta = (pad_sequence(part[1:], batch_first=True) for part in parts)
        outs, _ = self._scan(qkv, decay, beta, before, state)
        return [out[0], *(o[:length] for o, length in zip(outs, row.completions, strict=True))]

    def _scan(
        self,
        qkv: Tensor,
        decay: Tensor,
        beta: Tensor,
        before: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Convolution and delta rule, as transformers' layer calls them.

        Args:
            qkv: [B, L, channels] before the convolution.
            decay: [B, L, value heads], and so `beta` before its sigmoid.
            beta: See `decay`.
            before: [1, columns, channels] that the convolution sees before each sequence.
            state: [1, value heads, D, D] before each sequence.

        Returns:
            [B, L, value heads, D] and the state behind it.
        """
        size, length = qkv.shape[:2]
        if before is not None and state is not None:
            qkv = torch.cat([before.expand(size, -1, -1), qkv], dim=1)
            state = state.expand(size, -1, -1, -1)
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        mixed = causal_conv1d_fn(qkv.transpose(1, 2), weight, bias, activation=self.activation)
        mixed = mixed.transpose(1, 2)[:, -length:]
        query, key, value = mixed.split([self.key_dim, self.key_dim, self.value_dim], dim=-1)
        repeats = self.num_v_heads // self.num_k_heads
        query, key = (
            t.reshape(size, length, -1, self.head_k_dim).repeat_interleave(repeats, dim=2)
            for t in (query, key)
        )
        found: tuple[Tensor, Tensor] = torch_chunk_gated_delta_rule(
            query,
            key,
            value.reshape(size, length, -1, self.head_v_dim),
            g=decay,
            beta=beta.sigmoid(),
            initial_state=state,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        return found
