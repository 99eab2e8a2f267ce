"""The sentence decoder of stage 1: the clip's sentence from its visual tokens (`clcl.sentence`).

C2RL's second task, explicit context learning (Chen et al. 2024): beside the contrastive loss a light decoder writes the
paired sentence, and is dropped before stage 2. Here it is the first three decoder layers of the language model, a
trained copy that reads the context encoder's hidden states, or the tokens L without one. Its word vectors, of input and
output, are the language model's, frozen.

No dropout: the embedding cache computes it twice.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MBartForConditionalGeneration
from transformers.models.mbart.modeling_mbart import MBartDecoder

from sage_scale.losses.tokens import pad_packed

LAYERS = 3
"""Of C2RL's decoder; fewer where the language model has fewer."""


class SentenceDecoder(nn.Module):
    """Packed hidden states of clips and their sentences to a cross-entropy."""

    def __init__(self, language_model: MBartForConditionalGeneration, copied: bool = True) -> None:
        """`copied`: weights of the language model's first layers, else random ones."""
        super().__init__()
        config = copy.deepcopy(language_model.config)
        config.decoder_layers = min(LAYERS, config.decoder_layers)
        config.dropout = config.attention_dropout = config.activation_dropout = config.decoder_layerdrop = 0.0
        config.use_cache = False
        words: Any = language_model.get_input_embeddings()
        self.scale = config.d_model**0.5 if config.scale_embedding else 1.0
        config.vocab_size, config.pad_token_id = 1, 0  # its own table is not used
        decoder: Any = MBartDecoder(config)
        decoder.embed_tokens = nn.Identity()
        self.decoder = decoder
        if copied:
            wanted = self.decoder.state_dict().keys()
            state = language_model.model.decoder.state_dict()
            self.decoder.load_state_dict({name: state[name] for name in wanted})
        self.words_VD: Tensor
        self.register_buffer("words_VD", words.weight.detach(), persistent=False)

    def forward(
        self,
        hidden_ND: Tensor,
        lengths_B: Tensor,
        labels_BL: Tensor,
        inputs_BL: Tensor,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Returns the label-smoothed cross-entropy, summed over the labels that are not -100, as stage 2's.

        `hidden_ND` is packed, `lengths_B` its tokens of each clip. No clips give 0, with a gradient of zeros.
        """
        if not lengths_B.numel():
            # One clip of one token of zeros without a target, as in stage 2.
            hidden_BLD = hidden_ND.sum(0).expand(1, 1, -1)
            mask_BL = torch.ones(1, 1, dtype=torch.bool, device=hidden_ND.device)
            inputs_BL = labels_BL.new_zeros((1, 1))
            labels_BL = labels_BL.new_full((1, 1), -100)
        else:
            hidden_BLD, mask_BL = pad_packed(hidden_ND, lengths_B)
        states_BLD = self.decoder(
            inputs_embeds=self.scale * F.embedding(inputs_BL, self.words_VD),
            encoder_hidden_states=hidden_BLD,
            encoder_attention_mask=mask_BL.long(),
        ).last_hidden_state
        logits_BLV = states_BLD @ self.words_VD.T.to(states_BLD.dtype)
        logits_BLV = logits_BLV if logits_BLV.dtype == torch.float64 else logits_BLV.float()
        return F.cross_entropy(
            logits_BLV.flatten(0, 1),
            labels_BL.flatten(),
            ignore_index=-100,
            label_smoothing=label_smoothing,
            reduction="sum",
        )
